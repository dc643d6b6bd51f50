"""Tests of `handlers.messages`: templates, headers and keys."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc import DatabaseEvent, Lsn, PermanentError, Position
from handlers.kafka import TOPIC
from handlers.messages import Template, key_of, message_headers
from handlers.nats_options import SUBJECT
from handlers.rabbitmq_options import ROUTING_KEY

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def event(table: str = "orders", payload: dict[str, Any] | None = None, **fields: Any) -> DatabaseEvent:
    """A created row at 0/10:2."""
    given: dict[str, Any] = {"id": 7, "record_id": "42", "position": Position(Lsn(16), 2), "timestamp": MOMENT}
    return DatabaseEvent.of("create", table, payload or {"region": "eu"}, **given | fields)


def test_template_fills_in_every_field() -> None:
    """Schema, table, type, record and a column stand where the template says."""
    template = Template("a.{schema}.{table}.{event_type}.{record_id}.{payload.region}", SUBJECT)
    assert template.of(event()) == "a.public.orders.create.42.eu"


def test_template_without_fields_of_the_row_makes_a_name_once_per_kind() -> None:
    """Events of one kind get the very same string."""
    template, first = Template("{schema}.{table}", SUBJECT), event()
    assert template.of(first) is template.of(first.with_row(first.row))
    assert template.of(event("users")) == "public.users"


@pytest.mark.parametrize(
    ("table", "subject", "key", "topic"),
    [
        ("a.b", "public.a%2Eb", "public.a%2Eb", "public.a_x2Eb"),
        ("a b", "public.a%20b", "public.a%20b", "public.a_x20b"),
        ("a*>#", "public.a%2A%3E#", "public.a%2A>%23", "public.a_x2A_x3E_x23"),
        ("100%", "public.100%25", "public.100%25", "public.100_x25"),
        ("größe", "public.größe", "public.größe", "public.gr_xC3_xB6_xC3_x9Fe"),
        ("a\r\nPUB x", "public.a%0D%0APUB%20x", "public.a%0D%0APUB%20x", "public.a_x0D_x0APUB_x20x"),
    ],
)
def test_template_escapes_what_a_broker_does_not_allow(table: str, subject: str, key: str, topic: str) -> None:
    """A value is one part of the name, whatever it holds."""
    one = event(table)
    assert Template("{schema}.{table}", SUBJECT).of(one) == subject
    assert Template("{schema}.{table}", ROUTING_KEY).of(one) == key
    assert Template("{schema}.{table}", TOPIC).of(one) == topic


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(min_size=1, max_size=40).filter(lambda text: text != "-"))
def test_escaped_value_is_read_back_and_is_one_token(value: str) -> None:
    """Percent-decoding gives the value back; no separator, wildcard or blank is left in it."""
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        return  # PostgreSQL sends UTF-8, which has none of these
    for alphabet in (SUBJECT, ROUTING_KEY):
        name = alphabet.escaped(value)
        assert unquote(name) == value
        assert not set(name) & set(". *\r\n\t")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        (True, "true"),
        (12, "12"),
        (Decimal("1.50"), "1%2E50"),
        (date(2026, 1, 2), "2026-01-02"),
        (MOMENT, "2026-01-02T03:04:05%2E678901+00:00"),
    ],
)
def test_template_writes_a_column_as_text(value: object, text: str) -> None:
    """No part is empty, as brokers refuse that."""
    assert Template("x.{payload.c}", SUBJECT).of(event(payload={"c": value})) == f"x.{text}"


def test_template_names_a_column_with_dots() -> None:
    """Everything behind `payload.` is the column's name."""
    assert Template("{payload.a.b}", SUBJECT).of(event(payload={"a.b": 1})) == "1"


def test_template_without_a_record_id_has_a_dash() -> None:
    """A table without a primary key still has a subject."""
    assert Template("{table}.{record_id}", SUBJECT).of(event(record_id=None)) == "orders.-"


def test_template_that_names_a_missing_column_is_permanent() -> None:
    """The error names template and column, and shows no value."""
    with pytest.raises(PermanentError, match=r"column 'city'.*create of public\.orders") as caught:
        Template("{payload.city}", SUBJECT).of(event(payload={"secret": "hunter2"}))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("alphabet", "limit"), [(SUBJECT, 1024), (ROUTING_KEY, 255), (TOPIC, 249)])
def test_name_that_is_too_long_is_permanent(alphabet: Any, limit: int) -> None:
    """The limit is in bytes, and the error shows no value."""
    template = Template("{record_id}", alphabet)
    assert len(template.of(event(record_id="k" * limit))) == limit
    with pytest.raises(PermanentError, match=f"longer than {limit} bytes") as caught:
        template.of(event(record_id="k" * (limit + 1)))
    assert "kkk" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("a.{nothing}", r"\{nothing\} is unknown; known are \{schema\}"),
        ("a.{payload.}", "is unknown"),
        ("a.{table!r}", "is unknown"),
        ("a.{table:>9}", "is unknown"),
        ("a.{}", "is unknown"),
        ("a.{table", "expected '}'"),
        ("a b", "is not allowed"),
        ("a..{table}", "is not allowed"),
        (".{table}", "is not allowed"),
        ("a.*.{table}", "is not allowed"),
    ],
)
def test_template_that_cannot_be_used_is_refused(text: str, problem: str) -> None:
    """At the start, and in words."""
    with pytest.raises(ValueError, match=problem):
        Template(text, SUBJECT)


def test_pattern_has_a_wildcard_for_each_part_with_a_field() -> None:
    """What a stream subscribes to."""
    assert Template("app.db-{schema}.{table}{event_type}.end", SUBJECT).pattern("*") == "app.*.*.end"


def test_headers_tell_what_the_event_is() -> None:
    """All as text; what an event does not have is absent."""
    assert message_headers(event(tags=["audit", "user:7"])) == {
        "cdc-position": "0/10:2",
        "cdc-event-id": "7",
        "cdc-event-type": "create",
        "cdc-schema": "public",
        "cdc-table": "orders",
        "cdc-commit-time": "2026-01-02T03:04:05.678901+00:00",
        "cdc-record-id": "42",
        "cdc-tags": "audit,user:7",
    }
    assert not {"cdc-record-id", "cdc-tags", "traceparent"} & message_headers(event(record_id=None)).keys()


def test_trace_goes_on_in_a_header() -> None:
    """Of W3C's name, so that a consumer's own tracer goes on with it."""
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    assert message_headers(event(tags=["audit", f"traceparent:{trace}"]))["traceparent"] == trace


def test_key_is_the_same_for_all_events_of_a_record() -> None:
    """And for all of a table that has no primary key."""
    assert key_of(event(id=1)) == key_of(event(id=2)) == b"public.orders/42"
    assert key_of(event(record_id=None)) == b"public.orders"
