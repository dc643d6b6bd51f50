"""The count of large values that updates lack is what the events themselves say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cdc.errors import DecodeError
from cdc.events import DatabaseEvent, EventType, Kind, Transaction
from cdc.messages import Begin, Decoded
from cdc.service import Phase
from cdc.unchanged import Unchanged
from cdc.wal2json import Decoder
from tests.conftest import Database
from tests.scraping import scrape
from tests.waiting import eventually, make_config, running

LARGE = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 300) n)"
TABLES = f"""
    CREATE TABLE big (id int PRIMARY KEY, z text, "bö""dy" text, a text);
    ALTER TABLE big ALTER z SET STORAGE EXTERNAL, ALTER "bö""dy" SET STORAGE EXTERNAL;
    CREATE TABLE whole (id int PRIMARY KEY, body text, a text);
    ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE small (id int PRIMARY KEY, a text);
    CREATE TABLE keyed (id text PRIMARY KEY, n int);
    ALTER TABLE keyed ALTER id SET STORAGE EXTERNAL;
    INSERT INTO big SELECT n, {LARGE}, {LARGE}, 'x' FROM generate_series(1, 5) n;
    INSERT INTO whole VALUES (1, {LARGE}, 'x');
    INSERT INTO small VALUES (1, 'x');
    INSERT INTO keyed VALUES (left({LARGE}, 2500), 1);
"""
# A column's name as a value, and as JSON in one; what is set is not missing.
CHANGES = f"""
    UPDATE big SET a = 'z' WHERE id = 1;
    UPDATE big SET a = '"name":"z",' WHERE id = 2;
    UPDATE big SET z = 'short' WHERE id = 3;
    UPDATE big SET z = {LARGE}, "bö""dy" = {LARGE}, a = 'all' WHERE id = 4;
    UPDATE big SET a = 'y', id = 50 WHERE id = 5;
    UPDATE whole SET a = 'y';
    UPDATE small SET a = 'y';
    UPDATE keyed SET n = 2;
    DELETE FROM big WHERE id = 1
"""


async def test_count_is_that_of_the_events(database: Database, tmp_path: Path) -> None:
    """Names that need quotes, full identities, changed and large keys; and again after a reconnect, once."""
    database.execute(TABLES)
    async with running(make_config(database.dsn, tmp_path)) as run:
        database.execute(CHANGES)
        await eventually(lambda: len(run.callbacks.seen) == 9)
        assert run.service.stream is not None
        database.execute(f"SELECT pg_terminate_backend({run.service.stream.backend_pid})")
        await eventually(lambda: run.service.reconnects.total() > 0 and run.service.phase is Phase.STREAMING)
        database.execute("UPDATE big SET a = 'again' WHERE id = 2")
        await eventually(lambda: len(run.callbacks.seen) == 10)
        found = await scrape(run)
        told: Counter[str] = Counter()
        for event in run.callbacks.seen:
            told[event.kind.table] += len(event.unchanged)

    counted = {key[1]: value for key, value in found.items() if key[0] == "cdc_unchanged_toast_total"}
    assert counted == {table: count for table, count in told.items() if count}
    assert counted["public.big"] == 2 + 2 + 1 + 2 + 2


class Columns:
    """In the place of a catalog."""

    def __init__(self, *columns: str) -> None:
        self.columns: frozenset[str] | None = frozenset(columns)
        self.loaders: dict[int, object] = {}

    def known_toastable(self, _schema: str, _table: str) -> frozenset[str] | None:
        """Of any table."""
        return self.columns

    def toastable(self, _schema: str, _table: str) -> frozenset[str]:
        """The same, for the row."""
        return self.columns or frozenset()


def update(row: str, action: str = "U") -> bytes:
    """A message of the plugin."""
    return f'{{"action":"{action}","schema":"public","table":"t","columns":[{row}]}}'.encode()


def column(name: str) -> str:
    """Of a row."""
    return f'{{"name":"{name}","typeoid":25,"value":"x"}}'


def take(unchanged: Unchanged, messages: Sequence[Decoded], handed_out: slice = slice(None)) -> None:
    """Tell of the events that were made of these."""
    kind, transaction = Kind(EventType.UPDATE, "public", "t"), Transaction(1, 1, "2026-01-01 00:00:00+00")
    events = [DatabaseEvent(1, kind, (), transaction, 1, message) for message in messages]  # type: ignore[arg-type]
    unchanged.take(events[handed_out])


def test_only_what_is_handed_out_counts() -> None:
    """What the assembler leaves out, as it was handed out before, is not counted again."""
    catalog = Columns("a", "b")
    unchanged = Unchanged()
    decoder = unchanged.of(Decoder(catalog), catalog)  # type: ignore[arg-type]
    messages, _ = decoder.decode_all([update(column("b")), update(column("a")), update("")])
    take(unchanged, messages, slice(1, None))
    take(unchanged, decoder.decode_all([update(column("a") + "," + column("b"))])[0])

    assert unchanged.counts == {"public.t": 3}


def test_what_waits_for_the_next_burst_counts() -> None:
    """The assembler holds back the last change of a burst; not for longer."""
    catalog = Columns("a")
    unchanged = Unchanged()
    decoder = unchanged.of(Decoder(catalog), catalog)  # type: ignore[arg-type]
    waits, _ = decoder.decode_all([update("")])
    messages, _ = decoder.decode_all([update("")])
    take(unchanged, [*waits, *messages])
    decoder.decode_all([update("")])
    decoder.decode_all([update("")])
    take(unchanged, [*waits, *messages])

    assert unchanged.counts == {"public.t": 2}


def test_a_row_is_read_once_to_learn_what_is_complete_and_then_only_when_something_is_missing() -> None:
    """What the watch costs is a look through the text, not a parse."""
    catalog = Columns("a", "b", "c", "d")
    whole = update(",".join(map(column, "dcab")))
    reads = []

    class Reads:
        event_type, schema, table = EventType.UPDATE, "public", "t"

        def unchanged(self) -> frozenset[str]:
            """Nothing is missing."""
            reads.append(1)
            return frozenset()

    class Decodes:
        def decode_all(self, payloads: Sequence[bytes | memoryview]) -> tuple[list[Decoded], DecodeError | None]:
            """See `Decoder`."""
            return [Reads() for _ in payloads], None  # type: ignore[misc]

    decoder = Unchanged().of(Decodes(), catalog)
    for _ in range(5):
        decoder.decode_all([whole, memoryview(whole)])

    assert len(reads) <= 1


def test_what_is_no_update_or_of_an_unknown_table_is_left_alone() -> None:
    """Nobody waits for the catalog, and the decoder's error passes."""
    catalog = Columns("a")
    unchanged = Unchanged()
    decoder = unchanged.of(Decoder(catalog), catalog)  # type: ignore[arg-type]
    begin = b'{"action":"B","xid":1,"timestamp":"2026-01-01 00:00:00+00","nextlsn":"0/1"}'
    messages, error = decoder.decode_all([begin, update("", "I"), b"{"])
    assert isinstance(messages[0], Begin)
    assert error is not None
    take(unchanged, messages[1:])
    catalog.columns = None
    take(unchanged, decoder.decode_all([update("")])[0])

    assert unchanged.counts == {}


def test_a_damaged_row_is_not_counted() -> None:
    """Whoever reads it is told; the stream goes on."""
    catalog = Columns("a")
    unchanged = Unchanged()
    decoder = unchanged.of(Decoder(catalog), catalog)  # type: ignore[arg-type]
    messages, error = decoder.decode_all([update('{"nom":1}')])
    take(unchanged, messages)

    assert error is None
    assert unchanged.counts == {}


def test_a_damaged_row_teaches_nothing_about_complete_ones() -> None:
    """It may name as many columns as a row that lacks some."""
    catalog = Columns("a", "b")
    unchanged = Unchanged()
    decoder = unchanged.of(Decoder(catalog), catalog)  # type: ignore[arg-type]
    take(unchanged, decoder.decode_all([update('{"name":1}')])[0])
    take(unchanged, decoder.decode_all([update(column("a"))])[0])

    assert unchanged.counts == {"public.t": 1}
