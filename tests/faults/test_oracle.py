"""The oracle itself: each breach of a guarantee, put on a tape by hand, is seen."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdc.events import Position
from tests.conftest import Database
from tests.faults.conftest import MakeScene
from tests.faults.oracle import Broken, InOrder, Oracle, PerKey

Tape = list[dict[str, Any]]


@pytest.fixture(scope="module")
def recorded() -> Tape:
    """Three transactions as the recorder would have them: two rows of a bank, a row in two versions."""
    rows = [
        (1, "0/10:1", "create", "pairs", {"a": 1, "b": "x", "v": 0}, None),
        (2, "0/10:2", "update", "pairs", {"a": 1, "b": "x", "v": 1}, {"a": 1, "b": "x"}),
        (
            3,
            "0/10:3",
            "create",
            "ledger",
            _ledger(1, [["create", "pairs", [1, "x"]], ["update", "pairs", [1, "x"]]]),
            None,
        ),
        (4, "0/20:1", "update", "pairs", {"a": 2, "b": "x", "v": 1}, {"a": 1, "b": "x"}),
        (5, "0/20:2", "create", "ledger", _ledger(2, [["update", "pairs", [2, "x"], [1, "x"]]]), None),
        (6, "0/30:1", "delete", "pairs", {"a": 2, "b": "x"}, {"a": 2, "b": "x"}),
        (7, "0/30:2", "create", "ledger", _ledger(3, [["delete", "pairs", [2, "x"]]]), None),
    ]
    return [
        {
            "run": 1,
            "id": number,
            "position": position,
            "type": kind,
            "table": table,
            "key": json.dumps(list(row.values())[:2]),
            "before": before,
            "row": row,
            "unchanged": [],
        }
        for number, position, kind, table, row, before in rows
    ]


def _ledger(number: int, changes: list[Any]) -> dict[str, Any]:
    return {"writer": 1, "n": number, "changes": json.dumps(changes)}


def again(tape: Tape, first: int, run: int) -> Tape:
    """The events from `first` on, by another process."""
    return [{**entry, "run": run} for entry in tape if entry["id"] >= first]


def fed(oracle: Oracle, tape: Tape) -> Oracle:
    """All of the tape."""
    for entry in tape:
        oracle.feed(entry)
    return oracle


@pytest.mark.parametrize("kind", [InOrder, PerKey])
def test_what_may_happen_is_not_held_against_it(recorded: Tape, tmp_path: Path, kind: type[Oracle]) -> None:
    """Redelivery after a restart, from any event on."""
    oracle = fed(kind(tmp_path / "t"), recorded + again(recorded, 4, 2) + again(recorded, 2, 3))
    assert oracle.ledger.lacks({1: 3}) == {}
    assert oracle.ledger.lacks({1: 4}) == {1: 4}
    assert oracle.repeated == 10
    assert oracle.shadow.tables["pairs"] == {}


def _swapped(tape: Tape) -> Tape:
    return [tape[1], tape[0], *tape[2:]]


def _changed(tape: Tape) -> Tape:
    other = copy.deepcopy(again(tape, 4, 2))
    other[0]["row"]["v"] = 99
    return tape + other


def _moved(tape: Tape) -> Tape:
    other = again(tape, 4, 2)
    other[0]["position"] = "0/20:9"
    return tape + other


BREACHES: dict[str, Callable[[Tape], Tape]] = {
    "lost": lambda tape: [tape[0], *tape[2:]],
    "lost across a restart": lambda tape: tape[:3] + again(tape, 5, 2),
    "doubled in one process": lambda tape: [tape[0], tape[0], *tape[1:]],
    "out of order": _swapped,
    "another event again": _changed,
    "another position again": _moved,
    "not what was committed": lambda tape: [tape[0], {**tape[1], "type": "create"}, *tape[2:]],
    "a transaction without its end": lambda tape: [
        *tape[:2],
        *({**entry, "id": entry["id"] - 1} for entry in tape[3:]),
    ],
    "overlap": lambda tape: [*tape, {"overlap": ["pairs", "1"]}],
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_of_order_is_seen(recorded: Tape, tmp_path: Path, breach: str) -> None:
    """By the oracle of a handler with one lane."""
    with pytest.raises(Broken):
        fed(InOrder(tmp_path / "t"), BREACHES[breach](recorded))


@pytest.mark.parametrize("breach", ["doubled in one process", "out of order", "another event again", "overlap"])
def test_a_breach_of_the_order_of_a_record_is_seen(recorded: Tape, tmp_path: Path, breach: str) -> None:
    """By the oracle of a handler with several lanes."""
    with pytest.raises(Broken):
        fed(PerKey(tmp_path / "t"), BREACHES[breach](recorded))


def test_what_a_checkpoint_had_settled_must_not_come_again(recorded: Tape, tmp_path: Path) -> None:
    """And a checkpoint must not speak of what was never delivered."""
    oracle = fed(InOrder(tmp_path / "t"), recorded)
    oracle.restarted(Position.parse("0/20:1"))
    with pytest.raises(Broken, match="again, although"):
        fed(oracle, again(recorded, 4, 2))
    with pytest.raises(Broken, match="is the last that was delivered"):
        oracle.restarted(Position.parse("0/40:1"))


def test_accounts_that_do_not_add_up_are_seen(recorded: Tape, tmp_path: Path) -> None:
    """Case 61: half of a transfer, although the ledger says nothing else."""
    row = {"id": 1, "balance": 999}
    entry = {**recorded[0], "table": "accounts", "key": "1", "row": row}
    ledger = {**recorded[2], "id": 2, "position": "0/10:2", "row": _ledger(1, [["create", "accounts", "1"]])}
    with pytest.raises(Broken, match="add up"):
        fed(InOrder(tmp_path / "t"), [entry, ledger])


def test_any_difference_between_shadow_and_source_is_seen(faulty_database: Database, make_scene: MakeScene) -> None:
    """A value, a row too few, a row too many, a transaction that nobody heard of: on real tables."""
    scene = make_scene("difference")
    scene.start()
    with scene.workload:
        scene.wait_for_events(200)
    scene.settle()
    for statement in (
        "UPDATE accounts SET balance = balance + 1 WHERE id = 1",
        "DELETE FROM accounts WHERE id = 1",
        "INSERT INTO accounts VALUES (999, 0)",
        "INSERT INTO ledger VALUES (77, 1, '[]')",
    ):
        with faulty_database.connect() as connection, connection.transaction(force_rollback=True):
            connection.execute(statement.encode())
            with pytest.raises(Broken):
                scene.ordered.assert_equal_to(connection)
    scene.stop()
