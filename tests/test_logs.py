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

    structlog.get_logger().error("failed", exc_info=RuntimeError("postgres://u:s3cret@h"))

    assert "RuntimeError: postgres://u:***@h" in json.loads(stream.getvalue())["exception"]


def test_levels_below_the_setting_are_silent() -> None:
    """`log.level` is the least that is logged."""
    stream = logged("warning")

    structlog.get_logger().info("not this")
    structlog.get_logger().warning("but this")

    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["but this"]


def test_library_logs_go_the_same_way() -> None:
    """A warning of aiohttp or asyncio is structured and cleaned, too."""
    stream = logged()

    logging.getLogger("some.library").warning("cannot reach %s", "postgres://u:s3cret@h")

    entry = json.loads(stream.getvalue())
    assert entry["event"] == "cannot reach postgres://u:***@h"
    assert entry["level"] == "warning"


def test_console_format_is_for_people_without_colour_off_terminals() -> None:
    """A file that gets the console format holds no escape sequences."""
    stream = logged(log_format="console")

    structlog.get_logger().info("connected", slot="cdc")

    assert "connected" in stream.getvalue()
    assert "slot=cdc" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
