"""The `search_index` handler: what both engines do, then each by itself. The remote one talks to a double."""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tantivy
from opensearchpy.exceptions import ConnectionError as Away
from opensearchpy.exceptions import TransportError
from pydantic import ValidationError

from cdc import CallbackError, DatabaseEvent, Lsn, PermanentError, Position, RetryLater
from handlers.search_index import SearchIndex, SearchIndexOptions
from handlers.search_remote import version
from tests.conftest import Database
from tests.handlers.changes import event, moved
from tests.handlers.opensearch import OpenSearchDouble
from tests.streaming import streaming

FIELDS = {"id": "integer", "name": "text"}


@dataclass(frozen=True, slots=True)
class Target:
    """An index, how to make a handler of it, and what it holds: the columns of a document, None without one."""

    make: Callable[..., SearchIndex]
    read: Callable[..., Any]  # of a record id (and an index), a coroutine
    server: OpenSearchDouble | None = None

    async def names(self, *record_ids: str) -> list[str | None]:
        """The column `name` of each."""
        found = [await self.read(record_id) for record_id in record_ids]
        return [None if document is None else document["name"] for document in found]


@pytest.fixture
def embedded(tmp_path: Path) -> Target:
    """A folder."""
    folder = tmp_path / "index"

    def make(**options: Any) -> SearchIndex:
        return SearchIndex(SearchIndexOptions(**{"folder": folder, "fields": FIELDS, **options}))

    async def read(record_id: str) -> Mapping[str, Any] | None:
        found = [one for one in documents(folder) if one["_record_id"] == record_id and not one["_deleted"]]
        return found[0] if found else None

    return Target(make, read)


@pytest.fixture
async def remote(tmp_path: Path) -> AsyncIterator[Target]:
    """The double of a server."""
    with OpenSearchDouble(tmp_path) as server:
        async with aiohttp.ClientSession() as client:
            address = server.url

            def make(**options: Any) -> SearchIndex:
                given = {"engine": "opensearch", "hosts": [address], **options}
                return SearchIndex(SearchIndexOptions(**given))

            async def read(record_id: str, index: str = "users") -> Mapping[str, Any] | None:
                async with client.get(f"{address}/{index}/_doc/{record_id}") as response:
                    found = await response.json()
                return found["_source"] if found["found"] else None

            yield Target(make, read, server)


@pytest.fixture(params=["embedded", "remote"])
def target(request: pytest.FixtureRequest) -> Target:
    """Each engine in turn."""
    found: Target = request.getfixturevalue(request.param)
    return found


@asynccontextmanager
async def opened(target: Target, **options: Any) -> AsyncIterator[SearchIndex]:
    """The handler, open."""
    handler = target.make(**options)
    await handler.open()
    try:
        yield handler
    finally:
        await handler.close()


def documents(folder: Path) -> list[dict[str, Any]]:
    """All of an embedded index, tombstones too."""
    searcher = tantivy.Index.open(str(folder)).searcher()
    hits = searcher.search(tantivy.Query.all_query(), limit=10_000).hits
    return [{name: values[0] for name, values in searcher.doc(address).to_dict().items()} for _, address in hits]


def named(number: int, kind: str, record_id: str, name: str, lsn: int = 0x1000) -> DatabaseEvent:
    """A change of a row with this name in it."""
    return event(number, kind, lsn=lsn, record_id=record_id, payload={"id": 1, "name": name})


# --- both engines


async def test_rows_are_put_changed_and_taken_out(target: Target) -> None:
    """In one batch, and in the next."""
    async with opened(target) as handler:
        await handler.handle_batch([named(1, "create", "a", "one"), named(2, "create", "b", "two")])
        assert await target.names("a", "b", "c") == ["one", "two", None]
        await handler.handle_batch(
            [
                named(3, "update", "a", "uno"),
                named(4, "delete", "b", ""),
                named(5, "create", "c", "three"),
                named(6, "delete", "c", ""),
            ]
        )

    assert await target.names("a", "b", "c") == ["uno", None, None]


async def test_older_change_never_replaces_a_newer(target: Target) -> None:
    """Whatever the order of arrival, in a batch too; a document that was deleted does not come back."""
    async with opened(target) as handler:
        await handler.handle_batch([named(9, "update", "a", "new"), named(8, "update", "a", "old")])
        await handler.handle_batch([named(3, "delete", "b", "")])
        await handler.handle_batch([named(1, "create", "a", "older"), named(2, "create", "b", "older")])
        await handler.handle_batch([named(1, "update", "a", "newest", 0x2000)])

    assert await target.names("a", "b") == ["newest", None]


async def test_batch_that_comes_twice_has_effect_once(target: Target) -> None:
    """Through the same handler or another."""
    batch = [named(1, "create", "a", "one"), named(2, "update", "a", "two"), named(3, "create", "b", "b")]
    async with opened(target) as handler:
        await handler.handle_batch(batch)
        await handler.handle_batch(batch)
    async with opened(target) as handler:
        await handler.handle_batch(batch)
        await handler.handle_batch([named(4, "update", "b", "c")])

    assert await target.names("a", "b") == ["two", "c"]


async def test_changed_primary_key_moves_the_document(target: Target) -> None:
    """The old id is taken out, the new one put in."""
    async with opened(target) as handler:
        await handler.handle_batch([named(1, "create", "a", "one")])
        await handler.handle_batch([moved(2, "a", "b", id=2, name="one")])

    assert await target.names("a", "b") == [None, "one"]


async def test_truncate_takes_out_what_is_older(target: Target) -> None:
    """Also when it comes again, after newer rows were put in; other tables stay."""
    truncate = event(2, "truncate", lsn=0x2000, record_id=None)
    async with opened(target) as handler:
        await handler.handle_batch([named(1, "create", "a", "one"), named(2, "create", "b", "two")])
        await handler.handle_batch([named(1, "create", "c", "same transaction", 0x2000)])
        await handler.handle_batch([truncate, named(3, "create", "b", "new", 0x2000)])
        assert await target.names("a", "b", "c") == [None, "new", None]
        await handler.handle_batch([truncate, named(3, "create", "b", "new", 0x2000)])
        await handler.handle_batch([named(4, "update", "b", "newest", 0x2000)])

    assert await target.names("a", "b") == [None, "newest"]


async def test_documents_are_the_rows_of_a_real_stream(target: Target, database: Database) -> None:
    """Of a table of a real server, with parts of the stream delivered again."""
    async with streaming(database) as stream:
        events = await stream.events_of(
            "CREATE TABLE users (id int PRIMARY KEY, name text)",
            "INSERT INTO users SELECT i, 'name ' || i FROM generate_series(1, 50) i",
            "UPDATE users SET name = 'new' WHERE id % 3 = 0",
            "UPDATE users SET id = id + 100 WHERE id % 5 = 0",
            "DELETE FROM users WHERE id % 7 = 0",
        )
    async with opened(target) as handler:
        for batch in (events[:40], events[20:], events):
            await handler.handle_batch(batch)

    rows: dict[int, str] = dict(database.execute("SELECT id, name FROM users"))
    numbers = [*range(1, 51), *range(100, 151)]
    assert await target.names(*map(str, numbers)) == [rows.get(number) for number in numbers]


async def test_record_without_an_id_is_permanent(target: Target) -> None:
    """As is a row of which a wanted column is not known; of other columns nobody asks."""
    unknown: dict[str, Any] = {"payload": {"id": 1}, "unchanged": ["name"], "before": {"id": 1}}
    async with opened(target, fields=FIELDS) as handler:
        with pytest.raises(PermanentError, match="primary key"):
            await handler.handle_batch([event(1, record_id=None)])
        with pytest.raises(PermanentError, match=r"'name'.*REPLICA IDENTITY FULL"):
            await handler.handle_batch([event(2, "update", **unknown)])
        other = event(3, "update", record_id="a", payload={"id": 1, "name": "x"}, unchanged=["text"])
        await handler.handle_batch([other])

    assert await target.names("a") == ["x"]


async def test_value_that_does_not_fit_is_permanent_and_not_told(target: Target) -> None:
    """The others of its batch are put in when they are given by themselves, as the pool does."""
    good, bad = named(1, "create", "a", "fine"), event(2, payload={"id": "secret-value", "name": "x"})
    async with opened(target) as handler:
        await handler.handle_batch([named(1, "create", "first", "first")])
        with pytest.raises(PermanentError) as caught:
            await handler.handle_batch([good, bad])
        await handler.handle_batch([good])

    assert "secret-value" not in str(caught.value)
    assert await target.names("a", "2") == ["fine", None]


async def test_closed_handler_takes_nothing(target: Target) -> None:
    """Closing twice, and without opening, is harmless."""
    await target.make().close()
    async with opened(target) as handler:
        await handler.close()
        with pytest.raises(CallbackError, match="not open"):
            await handler.handle_batch([event(1)])


async def test_cancelled_call_leaves_the_handler_usable(target: Target) -> None:
    """The retry has its effect, once."""
    batch = [named(number, "create", str(number), "x") for number in range(1, 200)]
    async with opened(target) as handler:
        call = asyncio.create_task(handler.handle_batch(batch))
        await asyncio.sleep(0)  # it has begun
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        await handler.handle_batch(batch)
        await handler.handle_batch([named(200, "update", "1", "y")])

    assert await target.names("1", "2", "199") == ["y", "x", "x"]


# --- the embedded engine


async def test_each_kind_of_field_is_found(embedded: Target, tmp_path: Path) -> None:
    """Words, whole texts, numbers, times; lists value by value; what is stored comes back as JSON."""
    fields = {
        "title": "text",
        "sku": "keyword",
        "stock": "integer",
        "price": "number",
        "live": "boolean",
        "at": "time",
        "day": "time",
        "extra": "stored",
    }
    row = {
        "title": "The quick brown fox",
        "sku": ["A-1", "B-2"],
        "stock": 5,
        "price": Decimal("9.50"),
        "live": True,
        "at": datetime(2026, 1, 2, 3, tzinfo=UTC),
        "day": date(2026, 1, 2),
        "extra": {"a": [1, None]},
        "not_wanted": "x",
    }
    async with opened(embedded, fields=fields) as handler:
        await handler.handle_batch([event(1, payload=row), event(2, payload=dict.fromkeys(row))])

    index = tantivy.Index.open(str(tmp_path / "index"))
    searcher = index.searcher()
    for query in ("title:quick", 'sku:"B-2"', "stock:[5 TO 6]", "price:[9 TO 10]", "live:true"):
        hits = searcher.search(index.parse_query(query, ["title"]), 5).hits
        assert [searcher.doc(address).get_first("_record_id") for _, address in hits] == ["1"], query
    (found,) = [one for one in documents(tmp_path / "index") if one["_record_id"] == "1"]
    assert found["extra"] == b'{"a":[1,null]}'
    assert found["day"] == datetime(2026, 1, 2, tzinfo=UTC)
    assert "not_wanted" not in found


async def test_committed_documents_survive_a_kill(embedded: Target, tmp_path: Path) -> None:
    """The process is killed right after `handle_batch`; the lock goes with it."""
    script = (
        "import asyncio, os, signal, sys\n"
        "from handlers.search_index import SearchIndex, SearchIndexOptions\n"
        "from tests.handlers.changes import event\n"
        "async def main():\n"
        "    fields = {'id': 'integer', 'name': 'text'}\n"
        "    handler = SearchIndex(SearchIndexOptions(folder=sys.argv[1], fields=fields))\n"
        "    await handler.open()\n"
        "    await handler.handle_batch([event(number) for number in range(1, 257)])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(tmp_path / "index"))
    assert await child.wait() == -9
    async with opened(embedded) as handler:
        await handler.handle_batch([event(257)])

    assert len(documents(tmp_path / "index")) == 257


async def test_second_writer_is_refused(embedded: Target) -> None:
    """After the first has closed, the second may open."""
    async with opened(embedded):
        with pytest.raises(CallbackError, match="another handler or service"):
            await embedded.make().open()
    async with opened(embedded):
        pass


async def test_other_fields_are_refused(embedded: Target) -> None:
    """Those of an index are fixed when it is made."""
    async with opened(embedded):
        pass
    with pytest.raises(CallbackError, match="has other fields"):
        await embedded.make(fields={"name": "keyword"}).open()


async def test_old_tombstones_are_purged(embedded: Target, tmp_path: Path) -> None:
    """At the first batch after the start, and then once an hour; younger ones stay."""
    async with opened(embedded) as handler:
        await handler.handle_batch([event(1), event(2, "delete")])
    async with opened(embedded, tombstone_seconds=1000) as handler:
        await handler.handle_batch([event(3)])
    assert [one["_deleted"] for one in documents(tmp_path / "index")].count(True) == 1
    async with opened(embedded, tombstone_seconds=0.001) as handler:
        await asyncio.sleep(1.1)  # the age of a tombstone is kept in whole seconds
        await handler.handle_batch([event(4)])

    assert [one["_deleted"] for one in documents(tmp_path / "index")].count(True) == 0


async def test_failed_commit_is_taken_back(embedded: Target, tmp_path: Path) -> None:
    """The disk is full: nothing of the batch comes with a later one, and the handler goes on."""
    async with opened(embedded) as handler:
        await handler.handle_batch([event(1)])
        with full_disk(), pytest.raises((OSError, ValueError)):
            await handler.handle_batch([event(2)])
        await handler.handle_batch([event(3)])

    assert sorted(one["_record_id"] for one in documents(tmp_path / "index")) == ["1", "3"]


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process grows past some bytes (the signal that comes with it, Python ignores)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- the remote engine


async def test_settled_documents_survive_a_kill(remote: Target) -> None:
    """Away: an error that may pass. Back: the same handler goes on."""
    assert remote.server is not None
    async with opened(remote) as handler:
        await handler.handle_batch([event(1)])
        remote.server.kill()
        with pytest.raises(Away):
            await handler.handle_batch([event(2)])
        remote.server.start()
        await handler.handle_batch([event(2)])

    assert await remote.names("1", "2") == ["name 1", "name 2"]


async def test_client_logs_no_rows(remote: Target, caplog: pytest.LogCaptureFixture) -> None:
    """It would write every request into the log of a service whose level is debug."""
    caplog.set_level(logging.DEBUG)
    assert remote.server is not None
    async with opened(remote) as handler:
        await handler.handle_batch([event(1, payload={"name": "secret-value"})])
        remote.server.kill()
        with pytest.raises(Away):
            await handler.handle_batch([event(2, payload={"name": "secret-value"})])

    assert "secret-value" not in caplog.text


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, RetryLater), (503, CallbackError), (401, CallbackError), (400, PermanentError), (413, PermanentError)],
)
async def test_status_of_a_request_is_mapped(remote: Target, status: int, error: type[Exception]) -> None:
    """Busy: later. Away, or a wrong login: again. Refused: never."""
    assert remote.server is not None
    address = f"{remote.server.url}/_double/answers"
    async with opened(remote) as handler, aiohttp.ClientSession() as client:
        async with client.post(address, data=str(status)):
            pass
        with pytest.raises(error) as caught:
            await handler.handle_batch([event(1)])
        await handler.handle_batch([event(1)])

    assert isinstance(caught.value, PermanentError) == (error is PermanentError)
    assert not isinstance(caught.value, TransportError)


async def test_index_and_id_follow_their_templates(remote: Target) -> None:
    """A TRUNCATE of one of several tables in an index is refused: it is not known which documents it means."""
    async with opened(remote, index="all", document_id="{table_name}-{record_id}") as handler:
        await handler.handle_batch([event(1), event(2, table="orders")])
        with pytest.raises(PermanentError, match="table_name"):
            await handler.handle_batch([event(3, "truncate", record_id=None)])

    assert await remote.read("users-1", "all") is not None
    assert await remote.read("orders-2", "all") is not None


@pytest.mark.filterwarnings("ignore:Sending a large body")
async def test_large_batch_goes_in_several_requests(remote: Target) -> None:
    """A server refuses a body that is too large."""
    async with opened(remote) as handler:
        batch = [event(number, payload={"name": "x" * 3_000_000}) for number in range(1, 9)]
        await handler.handle_batch(batch)

    assert await remote.names("1", "8") == ["x" * 3_000_000] * 2


@pytest.mark.parametrize(
    ("older", "newer"),
    [((0x10, 1), (0x10, 2)), ((0x10, 65_534), (0x10, 65_535)), ((0x10, 10**9), (0x18, 1)), ((0, 1), (2**50 - 8, 1))],
)
def test_version_rises_with_the_position(older: tuple[int, int], newer: tuple[int, int]) -> None:
    """And fits 63 bits."""
    low, high = (version(Position(Lsn(lsn), ordinal)) for lsn, ordinal in (older, newer))

    assert 0 <= low < high < 1 << 63


def test_version_of_a_huge_transaction_does_not_fall() -> None:
    """Past 65,535 events of one transaction all share the last number."""
    assert version(Position(Lsn(8), 70_000)) == version(Position(Lsn(8), 65_535))


def test_version_past_a_pebibyte_of_wal_is_refused() -> None:
    """Rather than turned into one that is smaller than others."""
    with pytest.raises(PermanentError, match="1 PiB"):
        version(Position(Lsn(1 << 50), 1))


# --- options


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, {"fields", "folder"}),
        ({"folder": "x", "fields": {"name": "words"}}, {"fields"}),
        ({"folder": "x", "fields": {"_id": "text"}}, {"fields"}),
        ({"engine": "opensearch"}, {"hosts"}),
        ({"engine": "opensearch", "hosts": ["search:9200"]}, {"hosts"}),
        ({"engine": "opensearch", "hosts": ["https://u:secret-value@search"]}, {"hosts"}),
        ({"engine": "opensearch", "hosts": ["https://s"], "index": "{name}"}, {"index"}),
        ({"engine": "opensearch", "hosts": ["https://s"], "document_id": "{table_name}"}, {"document_id"}),
        ({"engine": "lucene", "folder": "x", "fields": FIELDS}, {"engine"}),
        ({"folder": "x", "fields": FIELDS, "commit": 1}, {"commit"}),
    ],
)
def test_bad_option_names_the_key(options: dict[str, Any], keys: set[str]) -> None:
    """And shows no value."""
    with pytest.raises(ValidationError) as caught:
        SearchIndexOptions(**options)

    assert {error["loc"][0] for error in caught.value.errors()} == keys
    assert "secret-value" not in str(caught.value)
