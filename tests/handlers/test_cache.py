"""The `cache` handler against a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Away

from cdc import CallbackError, PermanentError
from handlers.cache import Cache, CacheOptions, CacheRule
from tests.conftest import Database
from tests.handlers.changes import event, moved
from tests.handlers.servers import RedisServer
from tests.streaming import streaming

JSON: dict[str, Any] = {"key": "user:{record_id}", "action": "json"}
HASH: dict[str, Any] = {"key": "user:{record_id}", "action": "hash"}
DELETE: dict[str, Any] = {"key": "user:{record_id}"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that writes to its disk before it answers."""
    with RedisServer(tmp_path) as process:
        yield process


@pytest.fixture
async def keys(server: RedisServer) -> AsyncIterator[Any]:
    """What is in it."""
    connection: Redis = Redis(port=server.port, decode_responses=True)
    yield connection
    await connection.aclose()


@asynccontextmanager
async def opened(server: RedisServer, *rules: dict[str, Any], **options: Any) -> AsyncIterator[Cache]:
    """The handler, open, with these rules."""
    handler = Cache(CacheOptions(**{"url": server.url, "rules": rules, "durability": "fsync", **options}))
    await handler.open()
    try:
        yield handler
    finally:
        await handler.close()


async def users(keys: Any) -> list[str]:
    """The keys of rows, without those of positions."""
    return sorted(await keys.keys("user:*"))


async def test_row_is_written_as_json(server: RedisServer, keys: Any) -> None:
    """Exact values in text form, as everywhere; chosen columns, or all."""
    row = {"id": 7, "total": Decimal("1.10"), "note": None}
    async with opened(server, JSON, {**JSON, "key": "short:{record_id}", "columns": ["total"]}) as handler:
        await handler.handle_batch([event(7, payload=row)])

    assert orjson.loads(await keys.get("user:7")) == {"id": 7, "total": "1.10", "note": None}
    assert orjson.loads(await keys.get("short:7")) == {"total": "1.10"}


async def test_row_is_written_as_a_hash(server: RedisServer, keys: Any) -> None:
    """A column that has become NULL is no field any more."""
    async with opened(server, HASH) as handler:
        await handler.handle_batch([event(1, record_id="7", payload={"id": 7, "ok": True, "note": "a"})])
        await handler.handle_batch([event(2, "update", record_id="7", payload={"id": 7, "ok": False, "note": None})])

    assert await keys.hgetall("user:7") == {"id": "7", "ok": "false"}


async def test_change_deletes_the_key(server: RedisServer, keys: Any) -> None:
    """Invalidation: whoever reads next fetches the row. Others' keys stay."""
    for key in ("user:1", "user:2", "user:3"):
        await keys.set(key, "from the application")
    async with opened(server, DELETE) as handler:
        await handler.handle_batch([event(1, "update"), event(2, "delete")])

    assert await users(keys) == ["user:3"]


async def test_deleted_row_deletes_the_key_that_was_written(server: RedisServer, keys: Any) -> None:
    """In one batch, or in the next."""
    async with opened(server, JSON) as handler:
        await handler.handle_batch(
            [event(1, record_id="a"), event(2, record_id="b"), event(3, "delete", record_id="a")]
        )
        await handler.handle_batch([event(4, "delete", record_id="b")])

    assert await users(keys) == []


async def test_older_change_never_replaces_a_newer(server: RedisServer, keys: Any) -> None:
    """A late retry, or another lane; neither does what is delivered twice."""
    new = event(2, "update", record_id="7", payload={"name": "new"})
    old = event(1, "update", record_id="7", payload={"name": "old"})
    async with opened(server, JSON) as handler:
        await handler.handle_batch([new])
        await handler.handle_batch([old])
        assert orjson.loads(await keys.get("user:7")) == {"name": "new"}
        await keys.set("user:7", "from the application")
        await handler.handle_batch([old, new])

    assert await keys.get("user:7") == "from the application"


async def test_positions_compare_as_numbers(server: RedisServer, keys: Any) -> None:
    """Of LSNs beyond 2**53, and of ordinals with more digits."""
    top = (1 << 64) - 8
    async with opened(server, JSON) as handler:
        for lsn, number in ((top - 8, 10), (top, 9), (top, 10)):
            await handler.handle_batch([event(number, lsn=lsn, record_id="7", payload={"n": f"{lsn}-{number}"})])
        await handler.handle_batch([event(9, lsn=top, record_id="7", payload={"n": "older"})])

    assert orjson.loads(await keys.get("user:7")) == {"n": f"{top}-10"}


async def test_deleted_row_does_not_come_back(server: RedisServer, keys: Any) -> None:
    """Its tombstone outlives it, for as long as the option says."""
    async with opened(server, JSON, tombstone_seconds=500) as handler:
        await handler.handle_batch([event(2, "delete", record_id="7")])
        await handler.handle_batch([event(1, record_id="7")])

    assert await users(keys) == []
    assert 490_000 < await keys.pttl("cdc:position:user:7") <= 500_000


async def test_written_key_lives_as_long_as_told(server: RedisServer, keys: Any) -> None:
    """Its position at least as long; without `ttl_seconds` both for ever."""
    async with opened(server, {**JSON, "ttl_seconds": 50}, {**JSON, "key": "all:{record_id}"}) as handler:
        await handler.handle_batch([event(7)])

    assert 40_000 < await keys.pttl("user:7") <= 50_000
    assert await keys.pttl("cdc:position:user:7") > 50_000
    assert await keys.pttl("all:7") == await keys.pttl("cdc:position:all:7") == -1


async def test_changed_primary_key_touches_both_keys(server: RedisServer, keys: Any) -> None:
    """The old one is deleted, the new one written."""
    async with opened(server, JSON) as handler:
        await handler.handle_batch([event(1, record_id="a")])
        await handler.handle_batch([moved(2, "a", "b", id="b", name="x")])

    assert await users(keys) == ["user:b"]
    assert orjson.loads(await keys.get("user:b")) == {"id": "b", "name": "x"}


async def test_changed_column_of_the_key_touches_both_keys(server: RedisServer, keys: Any) -> None:
    """Where the replica identity tells the old value."""
    rule = {"key": "user:{name}", "action": "json"}
    async with opened(server, rule) as handler:
        await handler.handle_batch([event(1, payload={"name": "ann"})])
        await handler.handle_batch([event(2, "update", payload={"name": "eve"}, before={"name": "ann"})])

    assert await users(keys) == ["user:eve"]


async def test_unknown_old_key_fails_unless_told_otherwise(server: RedisServer, keys: Any) -> None:
    """The old key may be another: it would stay for ever, and nobody would know."""
    change = event(2, "update", payload={"id": 1, "name": "secret-value"}, before={"id": 1})
    async with opened(server, {"key": "user:{name}"}) as handler:
        with pytest.raises(PermanentError, match=r"'name'.*REPLICA IDENTITY FULL") as caught:
            await handler.handle_batch([change])
    assert "secret-value" not in str(caught.value)
    await keys.set("user:secret-value", "x")
    async with opened(server, {"key": "user:{name}", "old_key": "if_known"}) as handler:
        await handler.handle_batch([change])

    assert await users(keys) == []


async def test_row_with_an_unknown_large_value_is_deleted_instead_of_written(server: RedisServer, keys: Any) -> None:
    """Half a row is worse than none; columns that are not wanted do not matter."""
    change = event(2, "update", record_id="7", payload={"id": 7, "name": "x"}, unchanged=["text"], before={"id": 7})
    async with opened(server, JSON, {**JSON, "key": "short:{record_id}", "columns": ["name"]}) as handler:
        await handler.handle_batch([event(1, record_id="7"), change])

    assert await users(keys) == []
    assert orjson.loads(await keys.get("short:7")) == {"name": "x"}


async def test_row_with_null_in_its_key_has_no_key(server: RedisServer, keys: Any) -> None:
    """Nothing is written; when the value has become NULL, the old key goes."""
    rule = {"key": "user:{name}", "action": "json"}
    async with opened(server, rule) as handler:
        await handler.handle_batch([event(1, payload={"name": "ann"}), event(2, payload={"name": None})])
        await handler.handle_batch([event(3, "update", payload={"name": None}, before={"name": "ann"})])

    assert await users(keys) == []


async def test_truncate_deletes_the_tables_keys(server: RedisServer, keys: Any) -> None:
    """Those of the rule's pattern, also of the application, more than one step of the scan; not those of others."""
    await keys.set("other:1", "x")
    await keys.set("user:[odd]*", "from the application")
    async with opened(server, JSON) as handler:
        await handler.handle_batch([event(number) for number in range(1, 1501)])
        await handler.handle_batch([event(1, "truncate", lsn=0x2000, record_id=None), event(2, lsn=0x2000)])
        assert await users(keys) == ["user:2"]
        # Again, from a checkpoint before it, and something older from the dead letters:
        await handler.handle_batch([event(1, "truncate", lsn=0x2000, record_id=None)])
        await handler.handle_batch([event(9), event(10, record_id="of a dead letter")])

    assert await users(keys) == ["user:2"]
    assert await keys.exists("other:1")


async def test_truncate_takes_a_pattern_in_a_key_as_text(server: RedisServer, keys: Any) -> None:
    """What looks like a pattern is a part of the name; schema and table are those of the event."""
    for key in ("us?r[s]:public:users:1", "us?r[s]:public:orders:1", "us-rs:public:users:1", "user[s]:public:users:1"):
        await keys.set(key, "x")
    async with opened(server, {"key": "us?r[s]:{schema}:{table_name}:{record_id}"}) as handler:
        await handler.handle_batch([event(1, "truncate", record_id=None)])

    left = await keys.keys("us*")
    assert sorted(left) == ["us-rs:public:users:1", "us?r[s]:public:orders:1", "user[s]:public:users:1"]


async def test_keys_are_the_rows_of_a_real_stream(server: RedisServer, keys: Any, database: Database) -> None:
    """Under the default identity, with changed keys and a soft delete, parts of it delivered again."""
    async with streaming(database) as stream:
        events = await stream.events_of(
            "CREATE TABLE users (id int PRIMARY KEY, name text, __is_active__ bool DEFAULT true)",
            "INSERT INTO users SELECT i, 'name ' || i FROM generate_series(1, 50) i",
            "UPDATE users SET name = 'new' WHERE id % 3 = 0",
            "UPDATE users SET id = id + 100 WHERE id % 5 = 0",
            "DELETE FROM users WHERE id % 7 = 0",
            "UPDATE users SET __is_active__ = false WHERE id = 1",
        )
    async with opened(server, {**JSON, "columns": ["id", "name"]}) as handler:
        for batch in (events[:40], events[20:], events):
            await handler.handle_batch(batch)

    rows = database.execute("SELECT id, name FROM users WHERE __is_active__")
    assert {key: orjson.loads(await keys.get(key)) for key in await users(keys)} == {
        f"user:{number}": {"id": number, "name": name} for number, name in rows
    }


async def test_rules_are_for_their_tables(server: RedisServer, keys: Any) -> None:
    """By globs; a table may have several rules."""
    rules = [{**JSON, "tables": ["public.us*"]}, {**JSON, "key": "row:{table_name}:{record_id}", "tables": ["*"]}]
    async with opened(server, *rules) as handler:
        await handler.handle_batch([event(1), event(2, table="orders")])

    assert await users(keys) == ["user:1"]
    assert sorted(await keys.keys("row:*")) == ["row:orders:2", "row:users:1"]


async def test_settled_keys_survive_a_kill(server: RedisServer, keys: Any) -> None:
    """With ``durability = "fsync"``; afterwards the same handler goes on, although the scripts are gone."""
    async with opened(server, JSON) as handler:
        await handler.handle_batch([event(number) for number in range(1, 257)])
        server.kill()
        with pytest.raises(Away):
            await handler.handle_batch([event(300)])
        server.start()
        assert len(await users(keys)) == 256
        await handler.handle_batch([event(300)])

    assert len(await users(keys)) == 257


async def test_cancelled_call_leaves_the_handler_usable(server: RedisServer, keys: Any) -> None:
    """The retry has its effect, once."""
    async with opened(server, JSON) as handler:
        server.freeze()
        call = asyncio.create_task(handler.handle_batch([event(1), event(2)]))
        await asyncio.wait([call], timeout=0.2)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        server.thaw()
        await handler.handle_batch([event(1), event(2), event(3)])

    assert await users(keys) == ["user:1", "user:2", "user:3"]


async def test_record_without_an_id_is_permanent(server: RedisServer) -> None:
    """As is a column that the table does not have."""
    async with opened(server, JSON) as handler:
        with pytest.raises(PermanentError, match="'record_id'"):
            await handler.handle_batch([event(1, record_id=None)])
    async with opened(server, {**JSON, "columns": ["nmae"]}) as handler:
        with pytest.raises(PermanentError, match="'nmae'"):
            await handler.handle_batch([event(1)])


async def test_closed_handler_takes_nothing(server: RedisServer) -> None:
    """Closing twice, and without opening, is harmless."""
    never = Cache(CacheOptions(rules=[CacheRule(**DELETE)]))
    await never.close()
    async with opened(server, DELETE) as handler:
        await handler.close()
        with pytest.raises(CallbackError, match="not open"):
            await handler.handle_batch([event(1)])


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({}, ("rules",)),
        ({"rules": []}, ("rules",)),
        ({"rules": [{}]}, ("rules", 0, "key")),
        ({"rules": [{"key": "{record_id}"}]}, ("rules", 0, "key")),
        ({"rules": [{"key": "a:{"}]}, ("rules", 0, "key")),
        ({"rules": [{"key": "a:{}"}]}, ("rules", 0, "key")),
        ({"rules": [DELETE, {"key": "a", "action": "warm"}]}, ("rules", 1, "action")),
        ({"rules": [{"key": "a", "ttl": 3}]}, ("rules", 0, "ttl")),
        ({"rules": [DELETE], "tombstone_seconds": 0}, ("tombstone_seconds",)),
        ({"rules": [DELETE], "url": "redis"}, ("url",)),
    ],
)
def test_bad_option_names_the_key(options: dict[str, Any], place: tuple[str | int, ...]) -> None:
    """Of a rule, with its place in the list."""
    with pytest.raises(ValidationError) as caught:
        CacheOptions(**options)

    assert [error["loc"] for error in caught.value.errors()] == [place]
