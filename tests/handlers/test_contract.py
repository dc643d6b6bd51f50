"""Every built-in handler, held to the same contract, against its real server and inside the service's own pool.

What a handler adds to this (its formats, its errors) is in its own test file.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cdc import ConfigError, DatabaseEvent
from cdc.failures import is_permanent
from cdc.loading import ENTRY_POINTS
from cdc.testing import HandlerHarness
from tests.handlers.contract import Clause, Subject, called, subjects
from tests.handlers.servers import Server, Servers
from tests.waiting import eventually

SUBJECTS = subjects()
CANCELLED_SECONDS = 0.5


def held_to(clause: Clause) -> pytest.MarkDecorator:
    """The subjects that this clause is asked of."""
    chosen = [kind for kind in SUBJECTS if clause not in kind.exempt]
    return pytest.mark.parametrize("kind", chosen, ids=[kind.label() for kind in chosen])


@pytest.fixture
async def subject(kind: type[Subject[Any]], servers: Servers, tmp_path: Path) -> AsyncIterator[Subject[Any]]:
    """The handler and its running server."""
    made = await asyncio.to_thread(kind, servers, tmp_path)
    await made.prepare()
    yield made
    if made.server is not None:
        made.server.thaw()
        await asyncio.to_thread(made.server.start)
    await made.clean_up()


def server_of(subject: Subject[Any]) -> Server:
    """Its server; a clause about servers is exempt where there is none."""
    assert subject.server is not None, "exempt the clauses that need a server"
    server: Server = subject.server
    return server


async def assert_once(subject: Subject[Any], events: Sequence[DatabaseEvent]) -> None:
    """Each event has had its effect at the target, and none has had it twice."""
    found = Counter(await subject.effects())

    assert found == Counter(str(event.position) for event in events)


@held_to(Clause.DURABLE)
async def test_settled_survives_a_killed_server(subject: Subject[Any]) -> None:
    """kill -9 of the server right after the last event is settled: all is there when it is back."""
    server = server_of(subject)
    events = subject.events(subject.count)
    async with subject.harness() as harness:
        await harness.deliver(events)
        server.kill()
        harness.assert_settled(events)
    await asyncio.to_thread(server.start)

    await assert_once(subject, events)


@held_to(Clause.ONCE)
async def test_twice_is_once(subject: Subject[Any]) -> None:
    """Again by a call whose end nobody heard of, again to the same handler, and again to the next process's."""
    events = subject.events(subject.count)
    async with subject.harness() as harness:
        harness.fail_after(1)
        await harness.deliver_twice(events)
        harness.assert_settled(events)
    async with subject.harness() as harness:
        await harness.deliver(events)
        more = subject.events(10)
        await harness.deliver(more)
        harness.assert_settled([*events, *more])

    await assert_once(subject, [*events, *more])


@held_to(Clause.DOWN)
async def test_event_is_retried_and_fails_while_the_server_is_down(subject: Subject[Any]) -> None:
    """Not at the first attempt, and not for good: the dead letter can be retried later."""
    server = server_of(subject)
    first, second = subject.events(3), subject.events(2)
    async with subject.harness(max_attempts=2, timeout_seconds=subject.timeout_seconds) as harness:
        await harness.deliver(first)
        server.kill()
        await harness.deliver(second, timeout=90)
        harness.assert_settled(first)
        harness.assert_dead(second)
        assert [letter.attempts for letter in harness.dead_letters] == [2, 2]
        assert not any(is_permanent(letter.error) for letter in harness.dead_letters)
    await asyncio.to_thread(server.start)

    await assert_once(subject, first)


@held_to(Clause.BACK)
async def test_handler_goes_on_when_the_server_is_back(subject: Subject[Any]) -> None:
    """Without being made or opened anew; what failed meanwhile is done, once."""
    server = server_of(subject)
    first, second = subject.events(3), subject.events(subject.count)
    async with subject.harness(on_failure="block", timeout_seconds=subject.timeout_seconds) as harness:
        await harness.deliver(first)
        server.kill()
        await harness.send(second)
        await eventually(lambda: harness.retries >= 2, timeout=60)
        await asyncio.to_thread(server.start)
        await harness.settle(timeout=60)
        harness.assert_settled([*first, *second])

    await assert_once(subject, [*first, *second])


@held_to(Clause.SLOW)
async def test_server_that_does_not_answer_holds_up_no_other_handler(subject: Subject[Any]) -> None:
    """Another callback of the same pool gets all events meanwhile; nothing of this handler's is settled or lost."""
    server = server_of(subject)
    first, second = subject.events(3), subject.events(subject.count)
    others: list[DatabaseEvent] = []

    async def other(event: DatabaseEvent) -> None:
        others.append(event)

    async with subject.harness() as harness:
        await harness.deliver(first)
        harness.manager.add_callback(other)
        server.freeze()
        await harness.send(second)
        await eventually(lambda: len(others) == len(second), timeout=60)
        assert len(harness.handled) == len(first)
        assert not harness.manager.registry.active[0].outcomes["failed"]
        server.thaw()
        await harness.settle(timeout=60)
        harness.assert_settled([*first, *second])

    await assert_once(subject, [*first, *second])


@held_to(Clause.CANCELLED)
async def test_cancelled_call_leaves_the_handler_fit_for_the_next(subject: Subject[Any]) -> None:
    """A timeout in the midst of a batch, while the server keeps silent; and no task is left at the end."""
    server = server_of(subject)
    first, second = subject.events(3), subject.events(20)
    before = asyncio.all_tasks()
    async with subject.harness(on_failure="block") as harness:
        (registration,) = harness.manager.registry.active
        patience = registration.timeout_seconds
        registration.timeout_seconds = CANCELLED_SECONDS  # not for `open`, and not for the retry
        await harness.deliver(first, timeout=60)
        retries = harness.retries
        server.freeze()
        await harness.send(second)
        await eventually(lambda: harness.retries > retries, timeout=60)
        registration.timeout_seconds = patience
        server.thaw()
        await harness.settle(timeout=60)
        harness.assert_settled([*first, *second])
    await eventually(lambda: asyncio.all_tasks() <= before, timeout=60)

    await assert_once(subject, [*first, *second])


@held_to(Clause.CLOSE)
async def test_close_does_no_harm_twice_or_without_open(subject: Subject[Any]) -> None:
    """As after a start that failed; and closed, it can be opened again, as after `cdc handlers resume`."""
    handler = subject.load()
    for name in ("close", "open", "close", "close"):
        assert callable(getattr(handler, name, None)), f"a handler has {name}"
        await called(getattr(handler, name))
    events = subject.events(3)
    async with HandlerHarness(handler) as harness:
        await harness.deliver(events)
        harness.assert_settled(events)


@held_to(Clause.OPTIONS)
async def test_wrong_options_are_told_by_their_key(subject: Subject[Any]) -> None:
    """An unknown one, and each that the handler must refuse; all at once, none with its value."""
    kind = type(subject)
    wrong = {"no_such_option": "secret-value", **kind.wrong_options}

    with pytest.raises(ConfigError) as caught:
        subject.load(**wrong)

    told = [problem.partition(": ")[0] for problem in caught.value.problems]
    assert kind.wrong_options, "name at least one option that must be refused"
    for key in wrong:
        prefix = f"handlers[{kind.name}].options.{key}"
        assert any(key == prefix or key.startswith((f"{prefix}.", f"{prefix}[")) for key in told), (prefix, told)
    assert "secret-value" not in " ".join(caught.value.problems)


@pytest.mark.parametrize("kind", SUBJECTS, ids=[kind.label() for kind in SUBJECTS])
def test_exemption_from_a_clause_has_its_reason(kind: type[Subject[Any]]) -> None:
    """A sentence, so that nobody has to guess why the clause is not asked."""
    for clause, reason in kind.exempt.items():
        assert isinstance(clause, Clause)
        assert len(reason.split()) >= 5, (clause, reason)


NOT_YET: set[str] = set()
"""Handlers that are not held to the contract yet. Whoever writes the subject of one takes its name out."""


def test_every_handler_has_a_subject() -> None:
    """A new handler is held to the contract, or this fails; several subjects of one are told apart."""
    assert len({kind.label() for kind in SUBJECTS}) == len(SUBJECTS)
    written = {entry.name for entry in entry_points(group=ENTRY_POINTS) if find_spec(entry.module) is not None}

    assert written - {kind.name for kind in SUBJECTS} == NOT_YET
