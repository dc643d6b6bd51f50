"""Which events a rule wants, and what a message says: conditions and templates, without a server."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, get_args
from uuid import UUID

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from cdc import DatabaseEvent, PermanentError
from handlers.notify_options import Condition, Rule
from handlers.notify_rules import Matcher
from handlers.notify_template import FIELDS, MAX_VALUE, Template, one_line
from tests.running import ROOT

ROW: dict[str, Any] = {
    "name": "EU-Ann",
    "total": Decimal("100.10"),
    "count": 7,
    "ratio": 0.5,
    "paid": True,
    "note": None,
    "at": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "day": date(2026, 3, 1),
    "uid": UUID("12345678-1234-5678-1234-567812345678"),
    "data": {"a": 1},
}


def rule(**settings: Any) -> Rule:
    """A rule with these settings."""
    return Rule.model_validate({"name": "big orders", "channels": ["ops"]} | settings)


def wants(event: DatabaseEvent, *conditions: dict[str, Any], **settings: Any) -> bool:
    """Whether a rule with these conditions and settings is for the event."""
    return Matcher(rule(when=conditions, **settings)).wants(event)


@pytest.mark.parametrize(
    ("column", "op", "value", "expected"),
    [
        ("total", ">", 100, True),
        ("total", ">", 100.1, False),
        ("total", "=", 100.1, True),
        ("total", "=", "100.10", True),
        ("total", "<", 100, False),
        ("count", ">=", 7, True),
        ("count", "!=", 7, False),
        ("count", "in", [1, 7], True),
        ("count", "not in", [1, 7], False),
        ("ratio", "<=", 0.5, True),
        ("paid", "=", True, True),
        ("paid", "!=", "true", False),
        ("name", "=", "EU-Ann", True),
        ("name", "like", "EU-*", True),
        ("name", "like", "eu-*", False),
        ("name", "<", "Z", True),
        ("note", "is null", None, True),
        ("name", "is null", None, False),
        ("note", "is not null", None, False),
        ("name", "is not null", None, True),
        ("note", "=", "x", False),
        ("note", "!=", "x", False),
        ("at", ">", datetime(2026, 3, 1, 11, tzinfo=UTC), True),
        ("at", ">", "2026-03-01T13:00:00+02:00", True),
        ("at", "=", date(2026, 3, 1), True),
        ("at", "<", datetime(2026, 3, 1, 13), True),  # noqa: DTZ001 - without a zone in the file: UTC
        ("day", "=", "2026-03-01", True),
        ("day", "<", date(2026, 3, 1), False),
        ("uid", "=", "12345678-1234-5678-1234-567812345678", True),
        ("uid", "like", "12345678-*", True),
    ],
)
def test_condition_compares_as_the_column_means(column: str, op: str, value: Any, expected: bool) -> None:
    """Numbers as numbers, moments as moments, NULL as in SQL."""
    condition = {"column": column, "op": op} | ({} if value is None else {"value": value})

    assert wants(DatabaseEvent.of("create", "orders", ROW), condition) is expected


@pytest.mark.parametrize(
    "condition",
    [
        {"column": "name", "op": ">", "value": 5},
        {"column": "total", "op": "=", "value": "much"},
        {"column": "paid", "op": ">", "value": True},
        {"column": "paid", "op": "=", "value": 1},
        {"column": "data", "op": "=", "value": "x"},
        {"column": "nowhere", "op": "=", "value": 1},
        {"column": "nowhere", "op": "is null"},
        {"column": "at", "op": "=", "value": "soon"},
        {"column": "day", "op": "<", "value": 3},
    ],
)
def test_condition_that_cannot_be_judged_is_not_met_and_told_once(condition: dict[str, Any]) -> None:
    """The log names rule, column and table, and no value."""
    matcher = Matcher(rule(when=[condition]))
    with capture_logs() as logged:
        assert [matcher.wants(DatabaseEvent.of("create", "orders", ROW)) for _ in range(3)] == [False] * 3

    (entry,) = logged
    assert entry["event"] == "condition_not_judged"
    assert all(word in str(entry) for word in ("big orders", condition["column"], "public.orders"))
    assert "EU-Ann" not in str(entry)


def test_all_conditions_must_be_met() -> None:
    """Of one rule; alternatives are rules of their own."""
    event = DatabaseEvent.of("create", "orders", ROW)
    met, unmet = {"column": "count", "op": "=", "value": 7}, {"column": "count", "op": "=", "value": 8}

    assert wants(event, met, met)
    assert not wants(event, met, unmet)


def test_changed_compares_old_and_new() -> None:
    """Of an update whose old row is known; a create has changed everything, a delete nothing."""
    changed = {"column": "status", "op": "changed"}
    new: dict[str, Any]
    old: dict[str, Any]
    new, old = {"status": "paid", "id": 1}, {"status": "open", "id": 1}

    with capture_logs() as logged:
        assert wants(DatabaseEvent.of("update", "orders", new, before=old), changed)
        assert not wants(DatabaseEvent.of("update", "orders", new, before=new), changed)
        assert wants(DatabaseEvent.of("create", "orders", new), changed)
        assert not wants(DatabaseEvent.of("delete", "orders", old), changed)
        assert not wants(DatabaseEvent.of("update", "orders", {"id": 1}, unchanged=["status"]), changed)
        assert not logged

        assert not wants(DatabaseEvent.of("update", "orders", new, before={"id": 1}), changed)
    assert "REPLICA IDENTITY FULL" in logged[-1]["reason"]


def test_condition_may_look_at_the_old_row() -> None:
    """For "from open to paid"."""
    event = DatabaseEvent.of("update", "orders", {"status": "paid"}, before={"status": "open"})

    assert wants(event, {"column": "status", "op": "=", "value": "open", "old": True})
    assert not wants(event, {"column": "status", "op": "=", "value": "open"})


def test_rule_chooses_by_table_type_and_tag() -> None:
    """Each narrows it down; truncates only when asked for."""
    event = DatabaseEvent.of("update", "orders", ROW, tags=["notify:email"])

    assert wants(event)
    assert wants(event, tables=["public.*"], event_types=["update"], tags=["notify:*"])
    assert not wants(event, tables=["public.users"])
    assert not wants(event, event_types=["create"])
    assert not wants(event, tags=["audit:*"])
    assert not wants(DatabaseEvent.of("truncate", "orders"))


def test_template_fills_in_fields_of_the_event() -> None:
    """Properties, columns of both rows, formats."""
    event = DatabaseEvent.of(
        "update", "orders", ROW, record_id="7", before={"name": "Old"}, tags=["a", "b"], timestamp=ROW["at"]
    )
    template = Template(
        "{event_type} {table} {record_id} {before[name]}→{payload[name]} {payload[total]:,.1f} {payload[note]}"
        " {payload[paid]} {payload[data]} {tags} {timestamp} {{x}}"
    )

    assert template.of(event) == (
        'update public.orders 7 Old→EU-Ann 100.1 NULL true {"a":1} a, b 2026-03-01T12:00:00+00:00 {x}'
    )


def test_template_falls_back_to_the_old_row_for_what_did_not_change() -> None:
    """A large value that was not sent again is known under REPLICA IDENTITY FULL."""
    event = DatabaseEvent.of("update", "docs", {"id": 1}, before={"id": 1, "text": "long"}, unchanged=["text"])

    assert Template("{payload[text]}").of(event) == "long"


def test_missing_column_is_an_error_for_good_or_a_text() -> None:
    """As the rule says."""
    event = DatabaseEvent.of("update", "orders", ROW)

    with pytest.raises(PermanentError, match=r"payload\[customer\]"):
        Template("{payload[customer]}").of(event)
    with pytest.raises(PermanentError, match=r"before\[name\]"):
        Template("{before[name]}").of(event)
    assert Template("{payload[customer]}").of(event, missing="?") == "?"


def test_format_that_does_not_fit_is_an_error_for_good_without_the_value() -> None:
    """A text has no decimals."""
    with pytest.raises(PermanentError, match=r"payload\[name\] is a str") as caught:
        Template("{payload[name]:.2f}").of(DatabaseEvent.of("create", "orders", ROW))

    assert "EU-Ann" not in str(caught.value)


def test_values_cannot_break_out_of_the_message() -> None:
    """No control characters, no endless text, no line breaks in a title."""
    event = DatabaseEvent.of("create", "t", {"a": "x\x1b[2J\ry\nBcc: z", "b": "y" * 5000, "c": b"\x00" * 5000})

    assert Template("{payload[a]}").of(event) == "x [2J y\nBcc: z"
    assert one_line(Template("{payload[a]}").of(event)) == "x [2J y Bcc: z"
    assert len(Template("{payload[b]}").of(event)) == len(Template("{payload[c]}").of(event)) == MAX_VALUE


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "}",
        "{}",
        "{0}",
        "{nothing}",
        "{payload}",
        "{payload.__class__}",
        "{payload[a].b}",
        "{payload[a][b]}",
        "{id!r}",
        "{id:{id}}",
        "{__class__}",
    ],
)
def test_template_that_is_none_is_refused_at_the_start(text: str) -> None:
    """Attributes, calls and conversions are no part of it."""
    with pytest.raises(ValidationError) as caught:
        rule(title=text)

    assert caught.value.errors()[0]["loc"] == ("title",)


@pytest.mark.parametrize(
    ("condition", "key"),
    [
        ({"column": "a", "op": "~"}, "op"),
        ({"column": "a", "op": "="}, "value"),
        ({"column": "a", "op": "changed", "value": 1}, "value"),
        ({"column": "a", "op": "is null", "value": 1}, "value"),
        ({"column": "a", "op": "in", "value": 1}, "value"),
        ({"column": "a", "op": "=", "value": [1]}, "value"),
        ({"column": "a", "op": "like", "value": 1}, "value"),
        ({"column": "", "op": "changed"}, "column"),
        ({"column": "a", "op": "changed", "when": 1}, "when"),
    ],
)
def test_wrong_condition_is_named(condition: dict[str, Any], key: str) -> None:
    """At the start."""
    with pytest.raises(ValidationError) as caught:
        rule(when=[condition])

    assert [error["loc"] for error in caught.value.errors()] == [("when", 0, key)]


def test_page_names_every_operator() -> None:
    """And every field of an event that a template may hold."""
    page = (ROOT / "docs" / "handlers" / "notify.md").read_text()
    operators = [f"`{op}`" for op in get_args(Condition.model_fields["op"].annotation)]
    fields = [f"`{{{name}}}`" for name in FIELDS]

    assert [text for text in (*operators, *fields) if text not in page] == []
