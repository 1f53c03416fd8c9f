"""The workbench in the browser: `python app.py [--run DIR] [--preset NAME] [--method NAME] …`.

A run folder that exists is gone on with; otherwise a new run starts there. A run that another
process has open, or whose folder cannot be written, is shown read-only, and so is any run with
--read-only. The page is reachable from this machine only, unless --host and --auth say otherwise.
Ctrl-C saves the run and stops.

Exit codes: 0 done, 2 something you can put right (said in one line on stderr).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from workbench import heap
from workbench.__main__ import setting

if TYPE_CHECKING:  # torch and gradio are imported after the flags are checked: errors come at once
    from workbench.session import Session

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"app.py: {message} (see python app.py --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Open the run, serve the page until Ctrl-C, save the run. Returns the exit code."""
    heap.share()
    parser = _options()
    options = parser.parse_args(arguments)
    if options.host not in LOOPBACK and options.auth is None:
        parser.error(f"--host {options.host} opens the page to others: add --auth USER:PASS")
    if options.port is not None and not _is_free(options.host, options.port):
        parser.error(f"--port {options.port} is in use: choose another, or leave it out")
    from workbench.config import ConfigError
    from workbench.store import RunFolderError

    try:
        session = _open(options)
    except (ConfigError, RunFolderError) as error:
        for line in str(error).splitlines():
            print(f"app.py: {line}", file=sys.stderr)
        return 2
    with session:
        _serve(session, options)
    from workbench.ui.read_only import ReadOnlySession

    if not isinstance(session, ReadOnlySession):
        again = f"python app.py --run {session.run_dir}"
        print(f"saved at step {session.step_number}; go on with: {again}")
    return 0


def _options() -> argparse.ArgumentParser:
    parser = _Parser(prog="python app.py", description="The BRIDGE workbench in the browser.")
    parser.add_argument(
        "--run", metavar="DIR", help="the run's folder (default: a new one in runs)"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--preset", help="named settings of a new run (default: pocket)")
    start.add_argument("--config", metavar="FILE", help="a TOML file with settings instead")
    parser.add_argument("--method", help="of a new run: bridge, grpo, sft, … (all: README)")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        type=setting,
        default=[],
        help="settings of a new run by name, e.g. --set base_lr=1e-5 group_size=4",
    )
    parser.add_argument(
        "--read-only", action="store_true", help="look at the run in --run; no model is loaded"
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 up")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    parser.add_argument("--auth", type=_login, metavar="USER:PASS", help="ask for a login")
    return parser


def _login(text: str) -> tuple[str, str]:
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise argparse.ArgumentTypeError("want USER:PASS")
    return user, password


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _open(options: argparse.Namespace) -> Session:
    """Go on with the run in --run, or start a new one."""
    from workbench.config import ConfigError, RunConfig

    exists = options.run is not None and (Path(options.run) / "run.sqlite").exists()
    new = {"--preset": options.preset, "--config": options.config, "--method": options.method}
    given = [flag for flag, value in (new | {"--set": options.set}).items() if value]
    if exists and given:
        raise ConfigError(
            f"{options.run} holds a run, which keeps its own settings: leave out {', '.join(given)}"
        )
    if options.read_only and not exists:
        raise ConfigError("--read-only: say with --run DIR which run to look at")
    changes = dict(options.set) | ({"method": options.method} if options.method else {})
    preset = options.preset or "pocket"
    config = RunConfig.load(options.config) if options.config else RunConfig.preset(preset)
    config = config.with_changes(**changes)
    name = Path(options.config).stem if options.config else preset
    path = options.run or time.strftime(f"runs/{name}-%Y%m%d-%H%M%S")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    from workbench.session import Session
    from workbench.ui.read_only import ReadOnlySession, only_to_read

    if exists and (options.read_only or only_to_read(path)):
        print("reading", path, flush=True)
        return ReadOnlySession(path)
    print("resuming" if exists else "starting", path, flush=True)
    return Session.resume(path) if exists else Session(config, path)


def _serve(session: Session, options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C or a polite kill."""
    from workbench.ui import LAUNCH, build_app

    # the server asks itself whether it is up: never through a proxy
    os.environ["NO_PROXY"] = ",".join([*filter(None, [os.environ.get("NO_PROXY")]), *LOOPBACK])
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    app = build_app(session)
    heap.settle()
    _, url, _ = app.launch(
        server_name=options.host,
        server_port=options.port,
        auth=options.auth,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        **LAUNCH,
    )
    print(f"open {url} (Ctrl-C saves the run and stops)", flush=True)
    stop.wait()
    print("stopping", flush=True)
    app.close(verbose=False)


if __name__ == "__main__":
    sys.exit(main())
