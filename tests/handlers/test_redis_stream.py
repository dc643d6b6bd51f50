"""The `redis_stream` handler against a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, OutOfMemoryError
from redis.exceptions import ConnectionError as Away
from redis.exceptions import TimeoutError as Silent
from structlog.testing import capture_logs

from cdc import CallbackError, PermanentError
from handlers.redis_stream import RedisStream, RedisStreamOptions
from tests.handlers.brokers import persistently, taken
from tests.handlers.changes import NOON, event
from tests.handlers.servers import RedisServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that writes to its disk before it answers."""
    with RedisServer(tmp_path) as process:
        yield process


@asynccontextmanager
async def opened(server: RedisServer, **options: Any) -> AsyncIterator[RedisStream]:
    """The handler, open; all tables in one stream."""
    handler = RedisStream(RedisStreamOptions(**{"url": server.url, "stream": "all", **options}))
    await persistently(handler.open, Silent)
    try:
        yield handler
    finally:
        await handler.close()


@asynccontextmanager
async def client(server: RedisServer) -> AsyncIterator[Any]:
    """A connection of the test's own."""
    connection: Redis = Redis(port=server.port, decode_responses=True)
    try:
        yield connection
    finally:
        await connection.aclose()


async def ordinals(server: RedisServer, stream: str = "all") -> list[int]:
    """Of the events in the stream, from front to back."""
    async with client(server) as connection:
        return [int(fields["position"].split()[0].split(":")[1]) for _, fields in await connection.xrange(stream)]


async def test_entry_has_the_position_as_its_id_and_the_event_as_json(server: RedisServer) -> None:
    """Id: the commit LSN in decimal digits, and the ordinal."""
    async with opened(server, stream="{schema}.{table_name}") as handler:
        await handler.handle_batch([event(3, "update", lsn=0x1_0000_0010)])

    async with client(server) as connection:
        ((entry_id, fields),) = await connection.xrange("public.users")
    assert entry_id == f"{0x1_0000_0010}-3"
    assert fields == {
        "position": "1/10:3 2026-01-01T12:00:00+00:00",
        "kind": "update public.users",
        "event": event(3, "update", lsn=0x1_0000_0010).to_json().decode(),
    }


@pytest.mark.parametrize("options", [{}, {"max_length": 1000}, {"entry_ids": "auto"}])
async def test_traceparent_is_a_field_of_the_entries_that_have_one(
    server: RedisServer, options: dict[str, Any]
) -> None:
    """With ids of either kind, trimmed or not."""
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    async with opened(server, **options) as handler:
        await handler.handle_batch([event(1), event(2, tags=["audit", f"traceparent:{trace}"]), event(3)])

    assert await ordinals(server) == [1, 2, 3]
    async with client(server) as connection:
        entries = await connection.xrange("all")
    assert [fields.get("traceparent") for _, fields in entries] == [None, trace, None]


async def test_event_that_comes_twice_is_one_entry(server: RedisServer) -> None:
    """In the same batch again, or after others, through the same handler or another."""
    async with opened(server) as handler:
        await handler.handle_batch([event(1), event(2)])
        await handler.handle_batch([event(1), event(2), event(3)])
    async with opened(server) as handler:
        await handler.handle_batch([event(2), event(3), event(4)])

    assert await ordinals(server) == [1, 2, 3, 4]


async def test_late_event_is_appended_once(server: RedisServer) -> None:
    """A dead letter that is tried again, after later ones were written: it is not lost, and the log tells."""
    async with opened(server) as handler:
        await handler.handle_batch([event(1), event(3)])
        with capture_logs() as logged:
            await handler.handle_batch([event(2)])
        await handler.handle_batch([event(2)])
        await handler.handle_batch([event(4), event(5), event(1, lsn=0x2000)])
        await handler.handle_batch([event(4), event(5), event(1, lsn=0x2000)])

    assert await ordinals(server) == [1, 3, 2, 4, 5, 1]
    assert [(entry["event"], entry["events"]) for entry in logged] == [("events_appended_late", 1)]


async def test_same_position_of_another_history_is_another_event(server: RedisServer) -> None:
    """A slot on another cluster: its positions begin again, its commit times do not."""
    async with opened(server) as handler:
        await handler.handle_batch([event(1), event(2)])
        await handler.handle_batch([event(1, timestamp=NOON + timedelta(days=1))])

    assert await ordinals(server) == [1, 2, 1]


async def test_redelivery_of_what_was_trimmed_adds_nothing(server: RedisServer) -> None:
    """Otherwise old entries would push out the newest."""
    batch = [event(number) for number in range(1, 1001)]
    async with opened(server, max_length=100) as handler:
        await handler.handle_batch(batch)
        kept = await ordinals(server)
        await handler.handle_batch(batch)

    assert kept[-1] == 1000
    assert 100 <= len(kept) < 1000
    assert await ordinals(server) == kept


async def test_redelivery_of_what_a_reader_has_deleted_is_appended(server: RedisServer) -> None:
    """Without trimming nobody can say that it was there: rather twice than never."""
    async with opened(server) as handler:
        await handler.handle_batch([event(1), event(2)])
        async with client(server) as connection:
            await connection.xdel("all", f"{0x1000}-1")
        await handler.handle_batch([event(1)])

    assert await ordinals(server) == [2, 1]


async def test_old_entries_are_trimmed_by_age(server: RedisServer) -> None:
    """By the server's clock, which gives the ids of ``entry_ids = "auto"``."""
    async with client(server) as connection:
        for number in range(1, 301):
            await connection.xadd("all", {"position": f"0/1:{number} old"}, id=f"1-{number}")
    async with opened(server, entry_ids="auto", max_age_seconds=60) as handler:
        await handler.handle_batch([event(1)])

    assert len(await ordinals(server)) < 200
    assert (await ordinals(server))[-1] == 1


async def test_settled_entries_survive_a_kill(server: RedisServer) -> None:
    """The server is killed right after the answer."""
    async with opened(server) as handler:
        await handler.handle_batch([event(number) for number in range(1, 257)])
        server.kill()
        server.start()

        assert await ordinals(server) == list(range(1, 257))


async def test_handler_goes_on_after_an_outage(server: RedisServer) -> None:
    """Away: the error is one that may pass. Back, with no script in its memory: the same handler writes."""
    async with opened(server) as handler:
        await handler.handle_batch([event(1)])
        server.kill()
        with pytest.raises(Away):
            await handler.handle_batch([event(2)])
        server.start()
        await handler.handle_batch([event(2), event(3)])

    assert await ordinals(server) == [1, 2, 3]


async def test_silent_server_is_an_error_that_passes(server: RedisServer) -> None:
    """It may have done it or not: the retry finds out."""
    async with opened(server, answer_seconds=0.3) as handler:
        await taken(handler, [event(1)], Silent)
        server.freeze()
        with pytest.raises(Silent):
            await handler.handle_batch([event(2)])
        server.thaw()
        await taken(handler, [event(2), event(3)], Silent)

    assert await ordinals(server) == [1, 2, 3]


async def test_cancelled_call_leaves_the_handler_usable(server: RedisServer) -> None:
    """No answer of the cancelled call is taken for one of the next."""
    async with opened(server) as handler:
        server.freeze()
        call = asyncio.create_task(handler.handle_batch([event(1), event(2)]))
        done, _ = await asyncio.wait([call], timeout=0.2)
        assert not done
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        server.thaw()
        await handler.handle_batch([event(1), event(2)])
        await handler.handle_batch([event(3)])

    assert await ordinals(server) == [1, 2, 3]


async def test_full_server_stops_the_batch_without_a_hole(tmp_path: Path) -> None:
    """Out of memory may pass; what follows the refused entry is not written before it."""
    with RedisServer(tmp_path, maxmemory="3mb", maxmemory_policy="noeviction") as server:
        async with opened(server) as handler:
            big = [event(number, payload={"text": "x" * 300_000}) for number in range(1, 11)]
            with pytest.raises(OutOfMemoryError):
                await handler.handle_batch(big)
            async with client(server) as connection:
                await connection.config_set("maxmemory", "100mb")
            await handler.handle_batch(big)

            assert await ordinals(server) == list(range(1, 11))


async def test_large_batch_goes_in_several_calls(server: RedisServer) -> None:
    """One script blocks the server: its arguments have a bound."""
    async with opened(server) as handler:
        await handler.handle_batch([event(number, payload={"text": "x" * 1_500_000}) for number in range(1, 9)])

    assert await ordinals(server) == list(range(1, 9))
    async with client(server) as connection:
        scripts = (await connection.info("commandstats"))["cmdstat_evalsha"]
    assert scripts["calls"] - scripts["failed_calls"] == 4


async def test_key_of_another_type_is_permanent(server: RedisServer) -> None:
    """And the error holds nothing of the row."""
    async with client(server) as connection:
        await connection.set("all", "a string")
    async with opened(server) as handler:
        with pytest.raises(PermanentError, match="WRONGTYPE") as caught:
            await handler.handle_batch([event(1, payload={"name": "secret-value"})])

    assert "secret-value" not in str(caught.value)


async def test_row_without_the_value_of_the_stream_is_permanent(server: RedisServer) -> None:
    """A column that is not there, and one that is NULL."""
    async with opened(server, stream="by:{region}") as handler:
        with pytest.raises(PermanentError, match="'region'"):
            await handler.handle_batch([event(1)])
        with pytest.raises(PermanentError, match="NULL"):
            await handler.handle_batch([event(1, payload={"region": None})])


async def test_missing_replicas_fail_the_batch(server: RedisServer) -> None:
    """Nothing is settled that fewer replicas have than asked for."""
    async with opened(server, replicas=1, replica_seconds=0.05) as handler:
        with pytest.raises(CallbackError, match="0 of 1 replicas"):
            await handler.handle_batch([event(1)])


async def test_replica_that_follows_settles_the_batch(server: RedisServer, tmp_path: Path) -> None:
    """The server waits for its word."""
    folder = tmp_path / "replica"
    folder.mkdir()
    async with client(server) as connection:
        await connection.config_set("repl-diskless-sync-delay", 0)  # it would wait 5 s for more replicas
    with RedisServer(folder, replicaof=f"127.0.0.1 {server.port}") as replica:
        async with opened(server, replicas=1, replica_seconds=60, answer_seconds=90) as handler:
            await handler.handle_batch([event(1), event(2)])

        assert await ordinals(replica) == [1, 2]


@pytest.mark.parametrize("settings", [{"appendonly": "no"}, {"appendfsync": "everysec"}])
async def test_server_that_may_forget_is_refused(tmp_path: Path, settings: dict[str, str]) -> None:
    """Unless the configuration says that this is accepted."""
    with RedisServer(tmp_path, **settings) as server:
        with pytest.raises(CallbackError, match="may lose what it has acknowledged"):
            async with opened(server):
                pass
        async with opened(server, durability="memory") as handler:
            await handler.handle_batch([event(1)])

        assert await ordinals(server) == [1]


async def test_wrong_password_may_pass_and_is_not_told(tmp_path: Path) -> None:
    """An operator mends it; neither the right nor the wrong one is in the error."""
    with RedisServer(tmp_path, requirepass="right-one") as server:
        with pytest.raises(AuthenticationError) as caught:
            async with opened(server, url=f"redis://:wrong-one@127.0.0.1:{server.port}/0"):
                pass
        async with opened(server, url=f"redis://:right-one@127.0.0.1:{server.port}/0") as handler:
            await handler.handle_batch([event(1)])

    assert "one" not in str(caught.value)


async def test_closed_handler_takes_nothing(server: RedisServer) -> None:
    """Closing twice, and without opening, is harmless."""
    never = RedisStream(RedisStreamOptions())
    await never.close()
    async with opened(server) as handler:
        await handler.close()
        with pytest.raises(CallbackError, match="not open"):
            await handler.handle_batch([event(1)])


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"url": "http://secret-host"}, "url"),
        ({"stream": "a:{"}, "stream"),
        ({"stream": ""}, "stream"),
        ({"stream": "{name!r}"}, "stream"),
        ({"entry_ids": "time"}, "entry_ids"),
        ({"max_length": 0}, "max_length"),
        ({"max_age_seconds": 5}, "max_age_seconds"),
        ({"entry_ids": "auto", "max_length": 5, "max_age_seconds": 5}, "max_age_seconds"),
        ({"replicas": -1}, "replicas"),
        ({"durability": "perhaps"}, "durability"),
        ({"maxlen": 5}, "maxlen"),
        ({"url": "redis://127.0.0.1:6379/orders"}, "url"),
        ({"url": "redis://127.0.0.1:6379/2/3"}, "url"),
    ],
)
def test_bad_option_names_the_key(options: dict[str, Any], key: str) -> None:
    """And shows no value."""
    with pytest.raises(ValidationError) as caught:
        RedisStreamOptions(**options)

    assert [error["loc"] for error in caught.value.errors()] == [(key,)]
    assert "secret-host" not in str(caught.value)
