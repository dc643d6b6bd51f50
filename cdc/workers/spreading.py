"""How the events of a batch are shared out to the lanes of a callback, so that each record keeps its order.

Must not know callbacks, states and limits: only events, works and gates.
"""

from __future__ import annotations

from collections.abc import Sequence

from cdc.events import DatabaseEvent, EventType
from cdc.progress import Batch
from cdc.workers.lane import Lane
from cdc.workers.work import Gate, Work

__all__ = ["after_all_queued", "distribute"]


def distribute(batch: Batch, events: Sequence[DatabaseEvent], lanes: Sequence[Lane]) -> None:
    """Queue `events` of `batch`, a share for each lane that gets some."""
    if len(lanes) == 1:
        lanes[0].put(Work(batch.share(events)))
    else:
        _spread(batch, events, lanes)


def _spread(batch: Batch, events: Sequence[DatabaseEvent], lanes: Sequence[Lane]) -> None:
    """Share events out by record, so that each record keeps its order.

    A change of a key, a truncate or an event without a key concerns more than one record: it waits
    for all that was queued before it, and all that comes after waits for it.
    """
    slices: list[list[DatabaseEvent]] = [[] for _ in lanes]
    for event in events:
        record_id = None if event.event_type is EventType.TRUNCATE else event.record_id
        if record_id is None or event.row.previous_record_id() != record_id:
            _put(batch, slices, lanes)
            slices = [[] for _ in lanes]
            _barrier(batch, event, lanes)
        else:
            slices[hash((event.kind.schema, event.kind.table_name, record_id)) % len(lanes)].append(event)
    _put(batch, slices, lanes)


def _put(batch: Batch, slices: Sequence[list[DatabaseEvent]], lanes: Sequence[Lane]) -> None:
    for events, lane in zip(slices, lanes, strict=True):
        if events:
            lane.put(Work(batch.share(events)))


def _barrier(batch: Batch, event: DatabaseEvent, lanes: Sequence[Lane]) -> None:
    """Queue an event that runs alone: in the first lane, while the others wait at a gate."""
    begin = after_all_queued(lanes)
    end = Gate(1)
    lanes[0].put(Work(batch.share([event]), begin, [end]))
    for lane in lanes[1:]:
        lane.put(Work(None, end))


def after_all_queued(lanes: Sequence[Lane]) -> Gate:
    """A gate that opens when all that is queued now is finished."""
    before = [lane.last for lane in lanes if lane.last is not None and not lane.last.finished]
    gate = Gate(len(before))
    for work in before:
        work.gates.append(gate)
    return gate
