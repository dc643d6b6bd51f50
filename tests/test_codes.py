"""Codes and events: each situation has one stable name, and docs/runbook.md has a section for each, and no other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml

from cdc import errors
from cdc.codes import Code
from cdc.errors import CdcError, StreamLost

ROOT = Path(__file__).resolve().parent.parent
RUNBOOK = ROOT / "docs" / "runbook.md"
SOURCES = sorted([*(ROOT / "cdc").rglob("*.py"), *(ROOT / "handlers").rglob("*.py")])
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
LOUD = LEVELS - {"debug", "info"}
LOGGERS = {"log", "_log"}  # what a module calls its logger
# Written into the runbook before the branches that log them were merged: take out what has come.
COMING = {
    "callback_paused", "handler_stays_paused", "http_beyond_loopback", "http_order", "http_token_refused",
    "http_token_unusable", "page_gone",
}  # fmt: skip
RULES = ROOT / "deploy" / "prometheus" / "rules"
WORD = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@dataclass(frozen=True)
class Call:
    """One call of a logger: `event` is None where it is no literal."""

    place: str
    level: str
    event: str | None
    fields: frozenset[str]


def calls(source: str, place: str) -> Iterator[Call]:
    """All log calls of a module."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
            continue
        owner = node.func.value
        is_logger = isinstance(owner, ast.Name) and owner.id in LOGGERS
        if is_logger or "get_logger" in ast.unparse(owner) or "getLogger" in ast.unparse(owner):
            fields = frozenset(keyword.arg or "**" for keyword in node.keywords) - {"exc_info"}
            for event in literals(node.args[0]) if len(node.args) == 1 else [None]:
                yield Call(f"{place}:{node.lineno}", node.func.attr, event, fields)


def literals(node: ast.expr) -> list[str | None]:
    """The texts that it may be: one literal, or two between which a condition chooses; None for anything else."""
    if isinstance(node, ast.IfExp):
        return literals(node.body) + literals(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else [None]


TREES = {file: ast.parse(file.read_text()) for file in SOURCES}
ALL_CALLS = [call for file in SOURCES for call in calls(file.read_text(), str(file.relative_to(ROOT)))]
EVENTS = {call.event for call in ALL_CALLS if call.event is not None}
LOUD_EVENTS = {call.event for call in ALL_CALLS if call.event is not None and call.level in LOUD}


@cache
def used_codes() -> dict[str, list[str]]:
    """Where each member of `Code` is written: by its name, or, in a handler, as `code="word"`."""
    names = {member.name: str(member) for member in Code}
    found = defaultdict(list)
    for file in SOURCES:
        if file.name == "codes.py":
            continue
        for node in ast.walk(TREES[file]):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Code":
                found[names[node.attr]].append(f"{file.name}:{node.lineno}")
    return found


def literal_codes() -> Iterator[tuple[str, str]]:
    """(place, word) of each code that is written as text."""
    for file in SOURCES:
        for node in ast.walk(TREES[file]):
            if isinstance(node, ast.Call):
                words = (word.value for word in node.keywords if word.arg == "code" and "preflight" not in file.parts)
                for word in words:
                    if isinstance(word, ast.Constant) and word.value:
                        yield f"{file.name}:{node.lineno}", str(word.value)
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(isinstance(target, ast.Name) and target.id == "default_code" for target in targets):
                assert isinstance(node, ast.Assign)
                if isinstance(node.value, ast.Constant):
                    yield f"{file.name}:{node.lineno}", str(node.value.value)


@cache
def sections() -> dict[str, str]:
    """Heading → text of the runbook's sections of the third level, whose headings are names in backquotes."""
    parts = re.split(r"^### (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    found: dict[str, str] = {}
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        body = re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]
        for name in re.findall(r"`([^`]+)`", heading):
            assert name not in found, f"{name} has two sections"
            found[name] = body
    return found


def info_events() -> set[str]:
    """Those of the runbook's table of events that need no action."""
    (table,) = re.findall(r"<!-- events:begin -->(.*?)<!-- events:end -->", RUNBOOK.read_text(), re.DOTALL)
    return set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def test_every_log_event_is_a_literal_word() -> None:
    """So that it can be searched for, in the source and in a log."""
    assert [call.place for call in ALL_CALLS if call.event is None or not WORD.fullmatch(call.event)] == []
    assert len(EVENTS) > 40, "the walk has found what it should"


def test_an_event_has_one_meaning() -> None:
    """Wherever it is logged, its level and its fields are the same."""
    meanings = defaultdict(set)
    for call in ALL_CALLS:
        meanings[call.event].add((call.level, call.fields))

    assert {event: found for event, found in meanings.items() if len(found) > 1} == {}


def test_every_code_is_a_word_and_used() -> None:
    """A code that nothing raises explains nothing."""
    written = {word for _, word in literal_codes()}

    assert [code for code in Code if not WORD.fullmatch(code)] == []
    assert [code for code in Code if code not in used_codes() and code not in written] == []


def test_codes_that_are_written_as_text_exist() -> None:
    """A handler imports public names only, and writes the word."""
    assert [(place, word) for place, word in literal_codes() if word not in set(Code)] == []


def test_every_error_class_has_a_code_of_its_own() -> None:
    """Also those of handlers and of the demo; one that inherits the root's tells nothing."""
    shared = {CdcError, errors.SlotBusy}  # SlotBusy has that of its reason

    classes = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, CdcError)]
    assert [item.__name__ for item in classes if item not in shared and "default_code" not in vars(item)] == []
    assert errors.SlotBusy("x").code == Code.SLOT_BUSY


@pytest.mark.parametrize(("reason", "code"), StreamLost.REASONS.items())
def test_a_lost_stream_has_the_code_of_its_reason(reason: str, code: str) -> None:
    """What the metric's label says, and the log's code, are one thing."""
    assert StreamLost("gone", reason=reason).code == code


def test_a_lost_stream_of_another_reason_is_just_lost() -> None:
    """An SQLSTATE of the server's is no code of ours."""
    assert StreamLost("gone", reason="57P01").code == Code.STREAM_LOST


def test_every_reason_in_the_source_is_known() -> None:
    """`StreamLost(reason=...)` with a word that has no code would be just lost."""
    reasons = {
        keyword.value.value
        for file in SOURCES
        for node in ast.walk(TREES[file])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "StreamLost"
        for keyword in node.keywords
        if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant)
    }

    assert reasons
    assert reasons <= StreamLost.REASONS.keys()


def test_an_error_says_its_code_and_takes_a_finer_one() -> None:
    """Also for JSON."""
    assert errors.SlotMissing("gone").code == "slot_missing"
    assert errors.SlotMissing("gone", code=Code.SLOT_GONE).to_dict() == {
        "code": "slot_gone",
        "message": "gone",
        "hint": "",
    }
    assert errors.ConfigError("bad", problems=["a", "b"]).to_dict()["problems"] == ["a", "b"]


def test_the_runbook_has_a_section_for_every_code_and_every_loud_event() -> None:
    """What may wake somebody is explained."""
    assert (set(Code) | LOUD_EVENTS) - sections().keys() == set()


def test_the_runbook_explains_nothing_that_does_not_exist() -> None:
    """Alerts have capital letters, and tests of their own."""
    words = {name for name in sections() if not name.startswith("Cdc")}

    assert words - set(Code) - LOUD_EVENTS - {"library_log"} - COMING == set()


def test_the_runbook_lists_every_other_event() -> None:
    """In one table: they need no action."""
    assert info_events() - COMING == EVENTS - LOUD_EVENTS - COMING
    assert info_events() >= EVENTS - LOUD_EVENTS


def test_the_runbook_has_a_section_for_every_alert_and_no_other() -> None:
    """Heading = name of the alert, where its `runbook_url` leads."""
    groups = [group for file in RULES.glob("*.y*ml") for group in yaml.safe_load(file.read_text())["groups"]]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}

    assert {name for name in sections() if name.startswith("Cdc")} == alerts or not RULES.exists()
    assert len({name for name in sections() if name.startswith("Cdc")}) > 20


@pytest.mark.parametrize("name", sections())
def test_a_section_says_what_it_means_what_is_lost_and_what_to_do(name: str) -> None:
    """In three lines that a person finds at once."""
    text = sections()[name]

    assert text.strip()
    assert "**Lost:**" in text, name
    assert "**Do:**" in text, name
