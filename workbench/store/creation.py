"""Making the files of a new run."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from workbench.config import RunConfig
from workbench.store import schema
from workbench.store.durable import write_durably
from workbench.store.errors import RunFolderError
from workbench.store.folder import CONFIG, DATABASE


def check_free(folder: Path) -> None:
    """Raises RunFolderError where the folder holds a run."""
    if (folder / DATABASE).exists():
        raise RunFolderError(
            f"{folder} holds a run already; go on with Session.resume({str(folder)!r}) "
            "or choose another folder"
        )


def write_config(folder: Path, config: RunConfig) -> None:
    """Write `config.toml`."""

    def write(beside: Path) -> None:
        beside.write_text(config.to_toml(), encoding="utf-8")

    write_durably(folder / CONFIG, write)


def make_database(file: Path, meta: dict[str, Any]) -> None:
    """Make the `run.sqlite` of a new run, replacing a file that is there."""
    file.unlink(missing_ok=True)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("PRAGMA synchronous = OFF")  # write_durably flushes the whole file
        schema.create_tables(database)
        database.execute("INSERT INTO timelines VALUES (0, 0, ?)", (time.time(),))
        start = {"created": time.time(), "config_timeline": 0, "state": "idle"}
        schema.write_meta(database, {**meta, **start})
