"""Callbacks as facts: how they are called, which events they want and see, and how they are accounted for."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cdc.callbacks import MAX_KINDS, CallbackState, Registration
from cdc.config import SignalConfig
from cdc.errors import CallbackError, TooManyCallbacks
from cdc.events import DatabaseEvent, EventType, Position
from cdc.histogram import SECONDS_BUCKETS, Histogram
from cdc.invocation import Invocation
from cdc.lsn import Lsn
from cdc.patterns import TablePatterns, TagPatterns
from cdc.registry import OTHER, Registry

ALL = frozenset(EventType)


def function(event: DatabaseEvent) -> None:
    """A plain function."""


async def coroutine(event: DatabaseEvent) -> None:
    """A coroutine function."""


class Handler:
    """An object with `handle`, `open` and `close`."""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def handle(self, event: DatabaseEvent) -> None: ...

    async def handle_async(self, event: DatabaseEvent) -> None: ...


class AsyncHandler:
    """An object whose `handle` is a coroutine function."""

    async def handle(self, event: DatabaseEvent) -> None: ...


class BatchHandler:
    """An object with `handle_batch`, which is preferred to `handle`."""

    def handle(self, event: DatabaseEvent) -> None: ...

    def handle_batch(self, events: list[DatabaseEvent]) -> None: ...


class AsyncBatchHandler:
    """An object whose `handle_batch` is a coroutine function."""

    async def handle_batch(self, events: list[DatabaseEvent]) -> None: ...


class PlainCallable:
    """An object that is called itself."""

    def __call__(self, event: DatabaseEvent) -> None: ...


class AsyncCallable:
    """An object whose call is a coroutine function."""

    async def __call__(self, event: DatabaseEvent) -> None: ...


@pytest.mark.parametrize(
    ("callback", "is_async", "is_batch"),
    [
        (function, False, False),
        (coroutine, True, False),
        (print, False, False),
        ([].append, False, False),
        (Handler(), False, False),
        (Handler().handle, False, False),
        (Handler().handle_async, True, False),
        (AsyncHandler(), True, False),
        (BatchHandler(), False, True),
        (AsyncBatchHandler(), True, True),
        (PlainCallable(), False, False),
        (AsyncCallable(), True, False),
        (functools.partial(function), False, False),
        (functools.partial(coroutine), True, False),
        (functools.partial(AsyncHandler().handle), True, False),
        (lambda event: event, False, False),
    ],
)
def test_invocation_knows_every_kind_of_callback(callback: object, is_async: bool, is_batch: bool) -> None:
    """Functions, methods, partials and objects are told apart by what they are, once, at registration."""
    invocation = Invocation(callback)
    assert (invocation.is_async, invocation.is_batch) == (is_async, is_batch)


def generator(event: DatabaseEvent) -> Iterator[None]:
    """Not a callback: calling it does nothing."""
    yield


async def async_generator(event: DatabaseEvent) -> AsyncIterator[None]:
    """Not a callback either."""
    yield


class NotCallable:
    """Its `handle` is no function."""

    handle = 5


@pytest.mark.parametrize(
    "wrong", [None, 5, "module:name", Handler, NotCallable(), generator, async_generator, object()]
)
def test_invocation_refuses_what_cannot_be_a_callback(wrong: object) -> None:
    """A class, a generator or a value is an error at once, not a failure at every event."""
    with pytest.raises(CallbackError) as caught:
        Invocation(wrong)
    assert caught.value.hint


def test_invocation_takes_open_and_close_of_handlers_only() -> None:
    """What a plain function happens to carry is not opened."""

    def carrier(event: DatabaseEvent) -> None: ...

    carrier.open = function  # type: ignore[attr-defined]
    assert Invocation(carrier).open is None
    handler = Handler()
    assert Invocation(handler).open == handler.open


def registration(callback: object = function, **fields: Any) -> Registration:
    """A registration that wants everything but what `fields` says."""
    values: dict[str, Any] = {
        "id": 1,
        "name": "test",
        "invocation": Invocation(callback),
        "tables": TablePatterns(),
        "event_types": ALL,
        "tags": TagPatterns(),
        "excluded": frozenset(),
        "masked": frozenset(),
        "concurrency": 1,
        "timeout_seconds": 1.0,
        "configured": False,
    }
    return Registration(**values | fields)


def event(event_type: str = "create", table: str = "t", ordinal: int = 1, **fields: Any) -> DatabaseEvent:
    """An event of transaction 100."""
    return DatabaseEvent.of(event_type, table, position=Position(Lsn(100), ordinal), **fields)


def selected(item: Registration, *events: DatabaseEvent) -> list[DatabaseEvent]:
    """What the registration gets of a batch of these."""
    return list(item.select(events, {one.kind for one in events}))


def test_select_leaves_out_tables_and_types_that_are_not_wanted() -> None:
    """Only the wanted kinds pass, whichever of the batch's kinds is asked first."""
    item = registration(
        tables=TablePatterns(["public.a*"]), event_types=frozenset({EventType.CREATE, EventType.DELETE})
    )
    wanted = [event(table="a"), event("delete", table="ab")]
    unwanted = [event(table=f"b{number}") for number in range(20)] + [event("update", "a"), event("truncate", "a")]
    assert selected(item, *unwanted[:10], wanted[0], *unwanted[10:], wanted[1]) == wanted


def test_select_needs_one_tag_of_one_glob() -> None:
    """Any tag that any glob matches is enough; without globs tags do not matter."""
    events = [event(tags=["audit:x", "y"]), event(tags=["user:1"]), event(tags=["other"]), event()]
    assert selected(registration(tags=TagPatterns(["audit:*", "user:1"])), *events) == events[:2]
    assert selected(registration(), *events) == events


def test_select_hides_and_masks_columns_everywhere() -> None:
    """Excluded columns are gone from payload, before and unchanged; masked ones show that there is a value."""
    row = {"id": 1, "secret": "s", "email": "e", "phone": None}
    item = registration(excluded=frozenset({"secret", "big"}), masked=frozenset({"email", "phone"}))
    original = event("update", payload=row, before=row, unchanged=["big", "text"], record_id="1")
    (seen,) = selected(item, original)
    assert seen.payload == seen.before == {"id": 1, "email": "***", "phone": None}
    assert seen.unchanged == {"text"}
    assert (seen.record_id, seen.position, seen.id) == ("1", original.position, original.id)
    assert original.payload == row
    assert b"secret" not in seen.to_json()


def test_select_leaves_before_none_under_a_mask() -> None:
    """Without an old row there is none to mask."""
    (seen,) = selected(registration(masked=frozenset({"email"})), event(payload={"email": "e"}))
    assert seen.before is None


def test_select_skips_what_was_settled_in_an_earlier_run_once() -> None:
    """Events up to the settled position are skipped and counted; past it nothing is compared any more."""
    item = registration(settled=Position(Lsn(100), 2))
    events = [event(ordinal=ordinal) for ordinal in (1, 2, 3)]
    assert selected(item, *events) == events[2:]
    assert item.outcomes["skipped"] == 2
    assert selected(item, event(ordinal=4))
    assert item.settled is None


def test_registration_remembers_a_bounded_number_of_kinds() -> None:
    """Events made by hand each bring a kind of their own, and must not fill the memory."""
    item = registration()
    for number in range(3 * MAX_KINDS):
        item.wants(event(table=f"t{number}").kind)
    assert len(item._wants) <= MAX_KINDS


def test_drop_records_first_last_and_count_of_a_removed_callback() -> None:
    """The range of what is missed is exact, also when slices of several lanes come one after the other."""
    item = registration(state=CallbackState.REMOVED)
    item.drop([event(ordinal=5), event(ordinal=9)])
    item.drop([event(ordinal=2), event(ordinal=7)])
    item.drop([])
    lost = item.missed["removed"]
    assert (lost.first.ordinal, lost.last.ordinal, lost.events, item.outcomes["missed"]) == (2, 9, 4, 4)


def test_drop_counts_as_skipped_when_the_callback_left() -> None:
    """Who ends a subscription misses nothing."""
    item = registration(state=CallbackState.UNSUBSCRIBED)
    item.drop([event()])
    assert (item.outcomes["skipped"], item.missed) == (1, {})


def test_failed_keeps_no_text_of_the_error() -> None:
    """An error's text may hold values of the row; its type is enough for a status page."""
    item = registration()
    item.failed(event(), ValueError("secret"), "failed")
    assert item.last_error == "ValueError"
    assert (item.consecutive_failures, item.outcomes["failed"], item.missed["failed"].events) == (1, 1, 1)


def test_registry_refuses_more_than_max_callbacks() -> None:
    """The bound is of those that get events: one that was removed makes room."""
    registry = Registry(SignalConfig(max_callbacks=2))
    first = registry.add(lambda number: registration(id=number, name="a"))
    registry.add(lambda number: registration(id=number, name="b"))
    with pytest.raises(TooManyCallbacks):
        registry.add(lambda number: registration(id=number, name="c"))
    registry.remove(first, CallbackState.UNSUBSCRIBED, "unsubscribed")
    assert registry.add(lambda number: registration(id=number, name="c")).id == 3


def test_registry_refuses_a_name_in_use_and_frees_that_of_one_who_left() -> None:
    """A name can be taken again as soon as its owner has unsubscribed; its counts are kept."""
    registry = Registry(SignalConfig())
    first = registry.add(lambda number: registration(id=number))
    with pytest.raises(CallbackError, match="exists already"):
        registry.add(lambda number: registration(id=number))
    first.outcomes["ok"] = 5
    registry.remove(first, CallbackState.UNSUBSCRIBED, "unsubscribed")
    registry.add(lambda number: registration(id=number))
    assert registry.retired["test"].outcomes["ok"] == 5


def test_registry_removes_each_callback_once() -> None:
    """A second removal is told from the first, and counted only once; a removed one may still leave."""
    registry = Registry(SignalConfig())
    item = registry.add(lambda number: registration(id=number))
    assert registry.remove(item, CallbackState.REMOVED, "failures")
    assert not registry.remove(item, CallbackState.REMOVED, "failures")
    assert registry.removed_total == {"failures": 1}
    assert registry.remove(item, CallbackState.UNSUBSCRIBED, "unsubscribed")
    assert registry.removed_total == {"failures": 1}
    assert not registry.remove(item, CallbackState.REMOVED, "failures")
    assert not registry.remove(item, CallbackState.UNSUBSCRIBED, "unsubscribed")


@pytest.mark.parametrize(("failures", "remove", "too_often"), [(2, True, False), (3, True, True), (9, False, False)])
def test_registry_says_who_has_failed_too_often(failures: int, remove: bool, too_often: bool) -> None:
    """At the maximum, not before, and never when the configuration says so."""
    registry = Registry(SignalConfig(max_consecutive_failures=3, remove_failing_callbacks=remove))
    assert registry.has_failed_too_often(registration(consecutive_failures=failures)) == too_often


def test_registry_shares_one_tally_when_names_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that subscribes under ever new names does not fill the memory, and no count is lost."""
    monkeypatch.setattr("cdc.registry.MAX_RETIRED", 2)
    registry = Registry(SignalConfig())
    for number in range(4):
        item = registry.add(lambda id_, name=f"n{number}": registration(id=id_, name=name))  # type: ignore[misc]
        item.outcomes["ok"] = 1
        registry.remove(item, CallbackState.UNSUBSCRIBED, "unsubscribed")
        registry.forget_unsubscribed()
    assert set(registry.retired) == {"n0", "n1", OTHER}
    assert sum(tally.outcomes["ok"] for tally in registry.retired.values()) == 4


def test_histogram_counts_each_duration_in_one_bucket() -> None:
    """A bucket holds what took at most its bound; the last holds the rest."""
    histogram = Histogram()
    for seconds in (*SECONDS_BUCKETS, 1000.0):
        histogram.observe(seconds)
    histogram.observe_fast(5, 0.0001)
    assert histogram.counts == [6, *([1] * len(SECONDS_BUCKETS))]
    assert histogram.count == len(SECONDS_BUCKETS) + 6
