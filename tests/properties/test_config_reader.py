"""The configuration's reader: any file is a configuration, or a ConfigError that names what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.config import (
    Columns,
    Config,
    HandlerConfig,
    HttpConfig,
    LogConfig,
    SignalConfig,
    SourceConfig,
    StateConfig,
    TagRule,
    load,
)
from cdc.errors import ConfigError
from tests.properties.profiles import examples
from tests.toml import toml

SECRET = "s3cr3t"
ENVIRONMENT = {"A": "from A", "EMPTY": "", "NUMBER": "7", "DSN": f"postgresql://u:{SECRET}@h/db", "ODD": "${A}\n\udcff"}
SECTIONS = (Columns, HandlerConfig, HttpConfig, LogConfig, SignalConfig, SourceConfig, StateConfig, TagRule)
VALID: dict[str, Any] = {
    "python_path": ["lib"],
    "source": {
        "dsn": "postgresql://u@h/db", "slot": "cdc", "create_slot": True, "plugin": "wal2json",
        "tables": ["public.*"], "exclude_tables": ["public.x"], "tag_message_prefix": "p", "tags_column": "t",
        "soft_delete_columns": ["gone"],
    },
    "state": {"url": "sqlite:///s.db", "checkpoint_interval_seconds": 2.5},
    "signal": {
        "callback_timeout_seconds": 3, "max_callbacks": 7, "remove_failing_callbacks": False,
        "max_queued_bytes": "1MiB", "max_parked_bytes": 5000, "drain_timeout_seconds": 1.5,
    },
    "http": {"enabled": False, "host": "::1", "port": 0},
    "log": {"level": "debug", "format": "json"},
    "tag_rules": [{"tables": ["a.b"], "event_types": ["create"], "tags": ["x"]}],
    "handlers": [
        {
            "name": "one", "callback": "a.b:c", "tables": ["a.*"], "event_types": ["delete", "truncate"],
            "tags": ["x:*"], "columns": {"exclude": ["p"], "mask": ["q"]}, "concurrency": 2, "timeout_seconds": 9,
            "max_attempts": 1, "on_failure": "block", "after_removal": "drop", "options": {"deep": [{"er": 1}]},
        },
        {"callback": "console"},
    ],
}  # fmt: skip


def document(data: Mapping[str, Any]) -> str:
    """A whole file."""
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in data.items())


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """For cdc.toml, and a file that may be referred to."""
    with TemporaryDirectory() as name, mock.patch.dict(os.environ, ENVIRONMENT):
        path = Path(name)
        (path / "secret").write_text(f"{SECRET}\n")
        (path / "binary").write_bytes(b"\xff\xfe")
        yield path


def read(folder: Path, data: Mapping[str, Any] | bytes) -> Config | ConfigError:
    """What `load` makes of it; the error is fit to be printed, and keeps what is secret."""
    path = folder / "cdc.toml"
    path.write_bytes(data if isinstance(data, bytes) else document(data).encode())
    try:
        return load(path)
    except ConfigError as error:
        told = error
    assert SECRET not in f"{told} {told.problems}"
    assert told.hint
    assert told.problems or not isinstance(data, Mapping)
    for problem in told.problems:
        assert "\n" not in problem
        problem.encode()
    return told


def comparable(config: Config) -> dict[str, Any]:
    """Its settings, by name."""
    return config.model_dump()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
sizes = st.integers(1, 10**6).flatmap(lambda n: st.sampled_from([n, f"{n}", f"{n}kB", f"{n} MiB", f"{n}.5GiB"]))
seconds = st.integers(1, 10**6) | st.floats(0.001, 1e6)
references = st.lists(
    st.sampled_from(
        ["$", "$$", "${A}", "${EMPTY}", "${EMPTY:-x}", "${NONE:-a:-b}", "${NONE}", "${file:secret}", "${file:none}",
         "${file:binary}", "${file:\0}", "${file:.}", "${ODD}", "${NUMBER}", "${DSN}", "${", "}", "${}", "${1A}",
         "${file:${A}", "${file:${DSN}}", "${A\n}", "${file:}", "{", "é", " ", "x"]
    ), max_size=4
).map("".join)  # fmt: skip
scalars = st.one_of(
    texts,
    references,
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 1 << 64, 0, -1]),
    st.floats(),
    st.datetimes(),
    st.dates(),
    st.times(),
    st.sampled_from(["9" * 400 + "GiB", "1e9", "٣MiB", "-5", "--5", "sqlite:///", "postgresql://%", "a=b c", "*.*"]),
)
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def places(node: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to every value of the file."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    here = [path] if path else []
    return here + [place for step, inner in items for place in places(inner, (*path, step))]


def replaced(node: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """The same with another value there."""
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    if isinstance(copy, dict) and path[0] not in copy:
        return copy | {path[0]: value}
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)  # type: ignore[index]
    return copy


def test_the_valid_file_is_valid(folder: Path) -> None:
    """What the properties begin with; every key that is not said has its default."""
    config = read(folder, VALID)

    assert isinstance(config, Config)
    assert config.handlers[0].options == {"deep": [{"er": 1}]}
    assert config.state.url == f"sqlite:///{folder}/s.db"


@examples(150)
@given(st.sampled_from(places(VALID)), junk)
def test_any_value_in_any_place_is_taken_or_told_by_its_key(
    folder: Path, place: tuple[str | int, ...], value: Any
) -> None:
    """Never an error of another kind; the problem names the key, and nothing else is called wrong."""
    result = read(folder, replaced(VALID, place, value))

    if isinstance(result, ConfigError):
        key = next(str(step) for step in reversed(place) if isinstance(step, str))
        others = ("handlers: ", "handlers[2].name") if place[0] in {"handlers", "signal"} else ()  # they follow from it
        assert all(key in problem for problem in result.problems if not problem.startswith(others))
        assert any(key in problem or place[0] in problem for problem in result.problems)  # type: ignore[operator]


@examples(60)
@given(st.sampled_from([(), *(place for place in places(VALID))]), texts.filter(bool), junk)
def test_unknown_key_anywhere_is_told(folder: Path, place: tuple[str | int, ...], key: str, value: Any) -> None:
    """But in the options of a handler, which are the handler's own."""
    node: Any = VALID
    for step in place:
        node = node[step]
    if not isinstance(node, dict) or "options" in place or key in Config.model_fields:
        return
    known = key in node or any(key in type_.model_fields for type_ in SECTIONS)
    result = read(folder, replaced(VALID, (*place, key), value))

    if not known:
        assert isinstance(result, ConfigError)
        assert any("unknown key" in problem for problem in result.problems)


@examples(100)
@given(st.dictionaries(st.sampled_from(sorted(VALID)) | texts, junk, max_size=5))
def test_any_file_at_all_is_a_configuration_or_a_config_error(folder: Path, data: dict[str, Any]) -> None:
    """Right sections with wrong content, wrong sections, nothing."""
    result = read(folder, data)

    if isinstance(result, ConfigError):
        assert any(problem.startswith("source") for problem in result.problems) or "source" in data


@examples(100)
@given(st.binary(max_size=200) | st.text("[]{}=\"'\\.\n# a1-:_").map(str.encode))
def test_any_bytes_are_a_configuration_or_a_config_error(folder: Path, data: bytes) -> None:
    """What is no TOML, or no text."""
    assert isinstance(read(folder, data), ConfigError)


@pytest.mark.parametrize(
    "text",
    [
        f"x = {'[' * 2000}{']' * 2000}",
        f"x = {'{a=' * 2000}1{'}' * 2000}",
        f"x = {'9' * 5000}",
        "x = 0x" + "f" * 5000,
        "x = 1e99999",
        ".".join("a" * 2000) + " = 1",
    ],
    ids=["deep lists", "deep tables", "long number", "long hexadecimal", "infinite", "deep key"],
)
def test_absurd_file_is_a_config_error(folder: Path, text: str) -> None:
    """What the parser itself gives up on, or all that comes after it."""
    assert isinstance(read(folder, text.encode()), ConfigError)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("source", "slot"),
        ("state", "checkpoint_interval_seconds"),
        ("signal", "max_callbacks"),
        ("http", "port"),
        ("log", "level"),
    ],
)
def test_number_of_thousands_of_digits_is_taken_or_told_by_its_key(folder: Path, section: str, key: str) -> None:
    """TOML's hexadecimal has no limit; Python refuses to print such a number."""
    settings = {"source": 'dsn = "host=h"'} | {section: f"{key} = 0x{'f' * 5000}"}
    result = read(folder, "".join(f"[{name}]\n{text}\n" for name, text in settings.items()).encode())

    if isinstance(result, ConfigError):
        assert any(problem.startswith(f"{section}.{key}") for problem in result.problems)


def expanded(text: str) -> str | None:
    """What a string must become, the slow way; None: it cannot be resolved."""
    result = ""
    while text:
        if text.startswith("$$"):
            result, text = result + "$", text[2:]
        elif text.startswith("${"):
            body, end, text = text[2:].partition("}")
            name, has_default, default = body.partition(":-")
            if not end:
                return None
            if body == "file:secret":
                result += SECRET
            elif has_default and name in {"A", "EMPTY", "NONE"}:
                result += ENVIRONMENT.get(name) or default
            elif body in ENVIRONMENT:
                result += ENVIRONMENT[body]
            else:
                return None
        else:
            result, text = result + text[0], text[1:]
    return result


@examples(150)
@given(references, st.booleans())
def test_references_are_resolved_once_and_what_cannot_be_is_told(folder: Path, text: str, deep: bool) -> None:
    """In any string, beside any other text; what came in is not looked at again."""
    result = read(folder, replaced(VALID, ("handlers", 0, "options"), {"x": [{"y": text}] if deep else text}))
    wanted = expanded(text)

    if wanted is None:
        assert isinstance(result, ConfigError)
        assert all("handlers[1] (one).options.x" in problem for problem in result.problems)
    else:
        assert isinstance(result, Config)
        value = result.handlers[0].options["x"]
        assert (value[0]["y"] if deep else value) == wanted
        assert type(value) is (list if deep else str)


settings = st.fixed_dictionaries(
    {},
    optional={
        "source": st.fixed_dictionaries(
            {"dsn": st.just("host=h")},
            optional={
                "slot": st.from_regex(r"[a-z0-9_]{1,63}", fullmatch=True),
                "create_slot": st.booleans(),
                "tags_column": texts,
                "soft_delete_columns": st.lists(texts.filter(bool).filter(lambda t: "$" not in t), max_size=3),
            },
        ),
        "signal": st.fixed_dictionaries(
            {},
            optional={
                "callback_timeout_seconds": seconds,
                "max_callbacks": st.integers(2, 10**9),
                "max_queued_bytes": sizes,
                "remove_failing_callbacks": st.booleans(),
            },
        ),
        "http": st.fixed_dictionaries({}, optional={"port": st.integers(0, 65535), "enabled": st.booleans()}),
    },
)


@given(settings)
def test_valid_configuration_comes_back_as_it_was_written(folder: Path, changes: dict[str, dict[str, Any]]) -> None:
    """Every value under its name; and what was read, written and read again is the same."""
    escaped = {
        name: {key: value.replace("$", "$$") if isinstance(value, str) else value for key, value in section.items()}
        for name, section in changes.items()
    }
    config = read(folder, VALID | escaped)

    assert isinstance(config, Config)
    for name, section in changes.items():
        for key, value in section.items():
            found = getattr(getattr(config, name), key)
            if key != "max_queued_bytes":
                assert (list(found) if isinstance(value, list) else found) == value
            else:
                assert found >= 1
    again = Config.model_validate(comparable(config))
    assert comparable(again) == comparable(config)
