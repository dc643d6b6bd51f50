"""For tests of your handlers: events without a database, and the service's own pool around a handler.

    from cdc.testing import EventStream, HandlerHarness

    async def test_twice_is_once() -> None:
        events = EventStream().inserts(10, "users")
        async with HandlerHarness(MyHandler(...)) as harness:
            await harness.deliver_twice(events)
            harness.assert_settled(events)

Works with pytest and without. What the harness does with a handler is what `cdc run` does: the same lanes, retries,
timeouts and dead letters; only the waits between attempts are short.
"""

from cdc.testing.faults import CutShort, InjectedFault
from cdc.testing.harness import Call, HandlerHarness, Letter
from cdc.testing.recorded import read_events, write_events
from cdc.testing.stream import EventStream

__all__ = [
    "Call",
    "CutShort",
    "EventStream",
    "HandlerHarness",
    "InjectedFault",
    "Letter",
    "read_events",
    "write_events",
]
