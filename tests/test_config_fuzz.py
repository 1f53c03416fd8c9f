"""Two thousand broken configs: each is valid or refused in a line for each field, no traceback."""

from __future__ import annotations

import argparse
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.__main__ import _config, _parser, setting
from workbench.config import ConfigError, RunConfig

WHOLE = RunConfig().model_dump(mode="json")
LEAVES = [
    (section, leaf)
    for section, values in WHOLE.items()
    for leaf in (values if isinstance(values, dict) else [None])
]


def examples(count: int) -> settings:
    """So many configs, the same each time."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


text = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "\0", "a\nb: c", "‮", "🙂" * 300, "../../etc", "x" * 5000, "\x1b[2J"]),
    st.sampled_from(["arithmetic", "gym", "dataset", "self", "cls", "name", "__class__", "nan"]),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 10**400, -(2**63), 2**63, 1e308, -1e-308]),
    st.floats(),
    text,
)
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
names = st.one_of(text, st.sampled_from([leaf for _, leaf in LEAVES if leaf] + list(WHOLE)))


@st.composite
def broken(draw: st.DrawFn) -> dict[str, Any]:
    """The default config with one to four things replaced, added, moved or taken away."""
    values = {n: dict(v) if isinstance(v, dict) else v for n, v in WHOLE.items()}
    for _ in range(draw(st.integers(1, 4))):
        section, leaf = draw(st.sampled_from(LEAVES))
        kind = draw(st.sampled_from(["replace", "section", "add", "top", "delete"]))
        if kind == "section" or leaf is None or not isinstance(values.get(section), dict):
            values[section] = draw(junk)
        elif kind == "replace":
            values[section][leaf] = draw(junk)
        elif kind == "add":
            values[section][draw(names)] = draw(junk)
        elif kind == "top":
            values[draw(names)] = draw(junk)
        else:
            values[section].pop(leaf, None)
    return values


def refused(make: Callable[[], object]) -> list[str]:
    """The lines of the ConfigError; none where the config is valid. Anything else is raised."""
    try:
        make()
    except ConfigError as error:
        return str(error).split("\n")
    return []


def check(lines: list[str]) -> None:
    """Each line names a field, then says what is wrong with it; it can be printed and read."""
    for line in lines:
        assert re.match(r".{1,200}?: \S", line), line
        assert len(line) < 1000, line
        assert line.isprintable(), line
    assert len(set(lines)) == len(lines)


@pytest.mark.slow
@examples(900)
@given(values=broken())
def test_nested_values(values: dict[str, Any]) -> None:
    check(refused(lambda: RunConfig.parse(values)))


def plain(value: Any) -> Any:
    """What TOML can hold: no None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if v is not None}
    return [plain(v) for v in value if v is not None] if isinstance(value, list) else value


@pytest.mark.slow
@examples(600)
@given(values=broken(), data=st.data())
def test_files(values: dict[str, Any], data: st.DataObject, tmp_path: Path) -> None:
    try:
        written = tomli_w.dumps(plain(values)).encode()
    except UnicodeEncodeError:  # a lone surrogate
        written = repr(values).encode("utf-8", "surrogatepass")
    kind = data.draw(st.sampled_from(["whole", "cut", "bytes", "repeated"]))
    at = data.draw(st.integers(0, len(written)))
    if kind == "cut":
        written = written[:at]
    elif kind == "bytes":
        written = written[:at] + data.draw(st.binary(max_size=6)) + written[at:]
    elif kind == "repeated":
        written += written
    (tmp_path / "x.toml").write_bytes(written)
    check(refused(lambda: RunConfig.load(tmp_path / "x.toml")))


@pytest.mark.slow
@examples(500)
@given(
    key=st.one_of(names, st.text(string.printable, min_size=1, max_size=12)),
    value=st.one_of(text, junk.map(repr), st.sampled_from(["[" * 3000, "1\n[model]", "9" * 5000])),
)
def test_settings_of_the_command_line(key: str, value: str) -> None:
    try:
        setting(f"{key}={value}")
    except argparse.ArgumentTypeError as error:
        assert "\n" not in str(error)
        return
    options = _parser().parse_args(["train", f"--set={key}={value}"])  # a key may open with "-"
    check(refused(lambda: _config(options)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"seed = " + b"[" * 5000, "is not TOML"),
        (b"seed = " + b"9" * 5000, "is not TOML"),
        (b"seed = 1\nseed = 2", "is not TOML"),
        (b"[[model]]\n[[model]]", "model: "),
        (b"model.path.x = 1", "model.path: "),
        (b'"a\\nb: c" = 1', "no such setting"),
        (b'task = {kind = "' + b"x" * 5000 + b'"}', "task.kind: Input should be one of"),
    ],
)
def test_broken_files_are_told_in_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    (line,) = refused(lambda: RunConfig.load(tmp_path / "x.toml"))
    assert said in line
    check([line])
