"""What reaches the log: structured, in UTC, on one line, without secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import structlog

from cdc import logs
from cdc.errors import CdcError
from cdc.lsn import Lsn


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Logging as it was before the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(level: str = "info", log_format: str = "json") -> io.StringIO:
    """Set logging up; what is logged from now on can be read from the result."""
    stream = io.StringIO()
    logs.setup(level, log_format, stream=stream)
    return stream


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql://cdc:s3cret@db.example/shop", "postgresql://cdc:***@db.example/shop"),
        ("postgresql://cdc:s3/cr@et@db.example/shop", "postgresql://cdc:***@db.example/shop"),
        ("postgresql://cdc@db.example/shop", "postgresql://cdc@db.example/shop"),
        ("host=db password=s3cret user=cdc", "host=db password=*** user=cdc"),
        ("host=db password='it''s se\\'cret' user=cdc", "host=db password=*** user=cdc"),
        ("host=db password = s3cret", "host=db password = ***"),
        (
            "postgresql://db/shop?user=cdc&password=s3cret&x=1",
            "postgresql://db/shop?user=cdc&password=***&x=1",
        ),
        ("sslpassword=s3cret", "sslpassword=***"),
        ('{"password": "s3cret"}', '{"password": ***}'),
        ("no secrets here: 10:30@noon", "no secrets here: 10:30@noon"),
    ],
)
def test_password_of_a_connection_string_is_struck_out(text: str, clean: str) -> None:
    """In every form that libpq reads."""
    assert logs.redact(text) == clean


def test_controls_are_escaped_and_long_values_cut() -> None:
    """No value can begin a line of its own, colour a terminal or fill a disk."""
    assert logs.clean("a\nb\x1b[31mred\x00\u202e\u2028é") == "a\\nb\\x1b[31mred\\x00\\u202e\\u2028é"
    assert logs.clean("x" * 10_000).startswith("x" * 100)
    assert len(logs.clean("x" * 10_000)) < 2_100
    assert logs.clean(b"\xff".decode(errors="surrogateescape")) == "\\udcff", "such a half cannot be written at all"


def test_json_log_is_one_object_per_line_in_utc() -> None:
    """Time, level, event and the values given, each with its type."""
    stream = logged()

    structlog.get_logger().info("connected", lsn=Lsn(0x16B374D848), count=3, good=True, missing=None)

    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    age = datetime.now(UTC) - datetime.fromisoformat(entry.pop("timestamp"))
    assert 0 <= age.total_seconds() < 60
    values = {"lsn": "16/B374D848", "count": 3, "good": True, "missing": None}
    assert entry == {"event": "connected", "level": "info", **values}


def test_values_are_cleaned_however_deep_they_lie() -> None:
    """Keys that name a secret hide any value, and connection strings are found in all others."""
    stream = logged()

    structlog.get_logger().warning(
        "lost\nFAKE", error=ValueError("host=x password=s3cret"), api_key="s3cret",
        nested={"dsn": "s3cret", "list": ["postgres://u:s3cret@h"]},
    )  # fmt: skip

    assert "s3cret" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1
    assert json.loads(stream.getvalue())["nested"]["list"] == ["postgres://u:***@h"]


def test_traceback_is_kept_and_cleaned() -> None:
    """The exception's lines are there, its secrets are not."""
    stream = logged()

    structlog.get_logger().error("failed", exc_info=CdcError("postgres://u:s3cret@h"))

    assert "CdcError: postgres://u:***@h" in json.loads(stream.getvalue())["exception"]


def test_traceback_of_a_strange_error_has_place_and_type_and_no_text() -> None:
    """Nor those of its causes and parts: what a library or a callback says may quote a row."""
    stream = logged()

    def broken() -> None:
        try:
            int("row-value")
        except ValueError as error:
            raise ExceptionGroup("row-value", [KeyError("row-value"), OSError(28, "No space left")]) from error

    try:
        broken()
    except ExceptionGroup as error:
        structlog.get_logger().error("failed", exc_info=error)

    entry = json.loads(stream.getvalue())
    lines = entry["exception"].splitlines()
    assert "row-value" not in "\n".join(line for line in lines if not line.startswith("    "))  # the source's lines
    assert {"ExceptionGroup", "KeyError", "OSError: No space left", "ValueError"} <= set(lines)
    assert any("test_logs.py" in line and "in broken" in line for line in lines)


def test_text_that_cannot_be_had_does_not_break_the_log() -> None:
    """A `__str__` that raises costs its own text, never the line or the service."""
    stream = logged()

    class Sly:
        def __str__(self) -> str:
            raise KeyError("row-value")

    structlog.get_logger().info("seen", value=Sly())

    assert json.loads(stream.getvalue())["value"] == "<Sly, whose text raises KeyError>"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_names_of_tables_and_texts_of_servers_cannot_forge_a_line(log_format: str) -> None:
    """In both formats one call is one line, without a byte that a terminal obeys; long ones are cut."""
    stream = logged(log_format=log_format)
    nasty = 'public."x\n{"event":"forged"}\x1b[2J\x9b31m\u202e\r' + "y" * 10_000

    structlog.get_logger().warning("missing_replica_identity", table=nasty, **{"key\nforged": nasty})

    text = stream.getvalue()
    assert text.count("\n") == 1
    assert not set(text) & {"\x1b", "\x9b", "\r", "\u202e"}
    assert len(text) < 6_000


def test_lists_and_tables_are_cut() -> None:
    """A thousand names are no line of log."""
    stream = logged()

    structlog.get_logger().info(
        "many", names=list(range(1_000)), table={str(number): number for number in range(1_000)}
    )

    entry = json.loads(stream.getvalue())
    assert (len(entry["names"]), len(entry["table"])) == (100, 100)


def test_every_warning_has_a_code() -> None:
    """That of its cause, or else the event's own name; of a library's one word for all; at levels below none."""
    stream = logged()

    structlog.get_logger().info("streaming")
    structlog.get_logger().warning("stuck")
    structlog.get_logger().error("stream_lost", code="slot_busy")
    logging.getLogger("some.library").warning("text")

    assert [json.loads(line).get("code") for line in stream.getvalue().splitlines()] == [
        None,
        "stuck",
        "slot_busy",
        "library_log",
    ]


def test_what_asyncio_says_of_a_lost_task_quotes_no_error() -> None:
    """Its message ends in the error's text, which may hold values; the first line and the type are enough."""
    stream = logged()

    logging.getLogger("asyncio").error(
        "Task exception was never retrieved\nfuture: <Task exception=ValueError('row-value')>",
        exc_info=ValueError("row-value"),
    )

    assert "row-value" not in stream.getvalue()
    entry = json.loads(stream.getvalue())
    assert (entry["text"], entry["exception"]) == ("Task exception was never retrieved", "ValueError")


def test_levels_below_the_setting_are_silent() -> None:
    """`log.level` is the least that is logged."""
    stream = logged("warning")

    structlog.get_logger().info("not this")
    structlog.get_logger().warning("but this")

    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["but this"]


def test_library_logs_go_the_same_way() -> None:
    """A warning of aiohttp or asyncio is structured and cleaned, too: one event for all, who says it, and what."""
    stream = logged()

    logging.getLogger("some.library").warning("cannot reach %s", "postgres://u:s3cret@h")
    logging.getLogger("some.library").info("reached")

    warning, info = map(json.loads, stream.getvalue().splitlines())
    assert (warning["event"], warning["level"]) == ("library_log", "warning")
    assert (warning["logger"], warning["text"]) == ("some.library", "cannot reach postgres://u:***@h")
    assert (info["event"], info["logger"], info["text"]) == ("library_log", "some.library", "reached")


def test_library_logs_are_read_by_people_too() -> None:
    """In the console format a line has the library's name and its text."""
    stream = logged(log_format="console")

    logging.getLogger("some.library").warning("cannot reach it")

    text = stream.getvalue()
    assert text.count("\n") == 1
    assert all(word in text for word in ("library_log", "some.library", "cannot reach it"))


def test_console_format_is_for_people_without_colour_off_terminals() -> None:
    """A file that gets the console format holds no escape sequences."""
    stream = logged(log_format="console")

    structlog.get_logger().info("connected", slot="cdc")

    assert "connected" in stream.getvalue()
    assert "slot=cdc" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_level_may_change_later() -> None:
    """Also for loggers that have logged before."""
    stream = logged("warning")
    log = structlog.get_logger("t")
    log.info("one")
    logs.set_level("debug")
    log.debug("two")
    logs.set_level("error")
    log.warning("three")
    log.error("four")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["two", "four"]
    logs.set_level("info")


def test_line_that_cannot_be_written_harms_nobody() -> None:
    """A full disk under the log, or its terminal closed."""

    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    logs.setup("info", "json", stream=Full())
    structlog.get_logger("t").info("one")
