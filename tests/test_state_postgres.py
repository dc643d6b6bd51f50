"""The state on a server: what happens to it when server, session, line, disk or owner go, and what it leaves alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from psycopg import sql

from cdc.demo.cluster import Cluster
from cdc.errors import StateBusy, StateError
from cdc.state import LetterFilter, StateStore, open_state
from cdc.state.server import LEASE_SECONDS
from tests.conftest import Database, OwnCluster, drop_database
from tests.faults.proxy import Proxy
from tests.running import wait_until
from tests.stored import at, checkpoint, gap, letter

TAKEOVER_SECONDS = 5.0
BUSY_SECONDS = 15.0
"""What a busy machine may add."""
OWNER = """
import sys
from cdc.errors import StateError
from cdc.state import open_state

store = open_state(sys.argv[1], owner=True)
print("owner", flush=True)
for line in sys.stdin:
    try:
        getattr(store, line.strip())()
        print("done", flush=True)
    except StateError as error:
        print(type(error).__name__, flush=True)
"""


def state_url(cluster: Cluster, database: str = "postgres", user: str = "", tcp: int = 0, **parameters: str) -> str:
    """Of a state there, through the socket or, with `tcp`, through that port of the loopback."""
    where = {"host": "127.0.0.1", "port": str(tcp), "password": cluster.password} if tcp else {}
    given = {"host": str(cluster.socket_dir), "port": str(cluster.port)} | where | parameters
    query = "&".join(f"{key}={quote(value, safe='')}" for key, value in given.items())
    return f"postgresql://{user or cluster.superuser}@/{database}?{query}"


@pytest.fixture
def url(database: Database) -> str:
    """Where a state may be; there is none yet."""
    return state_url(database.cluster, database.name)


def sessions(database: Database) -> list[int]:
    """The server's processes that serve states."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'walsignal%'"
    return [pid for (pid,) in database.execute(query)]


def end_sessions(database: Database) -> None:
    """As an operator would; returns when they have ended."""
    ending = set(sessions(database))
    for pid in ending:
        database.execute(f"SELECT pg_terminate_backend({pid})")
    wait_until(lambda: ending.isdisjoint(sessions(database)))


def owned(url: str) -> StateStore:
    """Become the owner as soon as nobody else is."""
    opened: list[StateStore] = []

    def is_free() -> bool:
        with suppress(StateBusy):
            opened.append(open_state(url, owner=True))
        return bool(opened)

    wait_until(is_free)
    return opened[0]


# --- ownership


def test_busy_state_names_its_holder(url: str, database: Database) -> None:
    """Process, host, since when, and the server's process, which an operator could end."""
    with closing(open_state(url, owner=True)):
        (pid,) = sessions(database)
        with pytest.raises(StateBusy) as caught:
            open_state(url, owner=True)

    assert caught.value.holder.startswith(f"process {os.getpid()} on {os.uname().nodename}"[:40])
    assert f"(server process {pid}, since 20" in caught.value.holder
    assert "?schema=NAME" in caught.value.hint


def test_owner_comes_back_when_nobody_was_owner_meanwhile(url: str, database: Database) -> None:
    """The session was ended: the next call makes another, with the lock, and nothing was lost."""
    with closing(open_state(url, owner=True)) as store:
        store.save(checkpoint(100))
        end_sessions(database)
        with pytest.raises(StateError):
            store.save(checkpoint(200))

        store.save(checkpoint(300))

        assert store.load() == checkpoint(300)
        with pytest.raises(StateBusy):
            open_state(url, owner=True)


def test_lost_owner_never_writes_again(url: str, database: Database) -> None:
    """Not while the other owns the state, and not afterwards: what it knows is older than what is written."""
    with closing(open_state(url, owner=True)) as first:
        first.save(checkpoint(100))
        end_sessions(database)
        with closing(open_state(url, owner=True)) as second:
            assert second.taken_over
            second.save(checkpoint(200))
            with pytest.raises(StateError):
                first.ping()  # its connection has ended: this is how it learns of it
            for _ in range(2):
                with pytest.raises(StateBusy):
                    first.save(checkpoint(900))
            with pytest.raises(StateBusy):
                first.ping()

        with pytest.raises(StateBusy, match="taken over by another cdc run"):
            first.load()
        with pytest.raises(StateBusy, match="taken over by another cdc run"):
            first.save(checkpoint(900))
    with closing(open_state(url)) as store:
        assert store.load() == checkpoint(200)


def test_session_that_has_lost_its_term_writes_nothing(url: str, database: Database) -> None:
    """Behind a pooler a session may live on without its lock: then the number in the state refuses it."""
    with closing(open_state(url, owner=True)) as store:
        store.save(checkpoint(100))
        database.execute("UPDATE walsignal.service SET term = term + 1")

        with pytest.raises(StateBusy):
            store.save(checkpoint(200), [gap("a", 1, 1)])

    with closing(open_state(url)) as store:
        assert store.load() == checkpoint(100)
        assert store.gaps() == []


def test_ping_notices_that_the_term_is_over(url: str, database: Database) -> None:
    """So that a service that has nothing to write learns of it, too."""
    with closing(open_state(url, owner=True)) as store:
        database.execute("UPDATE walsignal.service SET term = term + 1")

        with pytest.raises(StateBusy):
            store.ping()


@contextmanager
def owner_process(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the state, and calls what it is told."""
    command = [sys.executable, "-c", OWNER, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "owner\n"
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[str], method: str) -> str:
    """Let it call a method of its store."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{method}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_killed_owner_is_followed_at_once(url: str) -> None:
    """Its connection ends with it; the next one is told that the state was not closed."""
    with owner_process(url) as process:
        process.kill()
        began = time.monotonic()
        with closing(owned(url)) as store:
            assert time.monotonic() - began < TAKEOVER_SECONDS + BUSY_SECONDS
            assert store.taken_over


def test_silent_owner_is_followed_in_time_and_writes_no_more(url: str) -> None:
    """A process that is stopped, or whose host is gone, says nothing; awake again, it is refused."""
    with owner_process(url) as process:
        began = time.monotonic()
        assert ask(process, "ping") == "done"
        os.kill(process.pid, signal.SIGSTOP)
        with closing(owned(url)) as store:
            assert LEASE_SECONDS / 2 < time.monotonic() - began < TAKEOVER_SECONDS + BUSY_SECONDS
            store.save(checkpoint(200))
            os.kill(process.pid, signal.SIGCONT)

            assert ask(process, "ping") in {"StateError", "StateBusy"}
            assert ask(process, "ping") == "StateBusy"


def test_owner_who_pings_keeps_the_state(url: str) -> None:
    """Well past the time after which a silent one would have lost it."""
    with closing(open_state(url, owner=True)) as store:
        until = time.monotonic() + LEASE_SECONDS * 1.5

        def is_over() -> bool:
            store.ping()
            return time.monotonic() > until

        wait_until(is_over)
        with pytest.raises(StateBusy):
            open_state(url, owner=True)


def test_own_dead_session_is_ended(own_cluster: OwnCluster) -> None:
    """The line broke and the server does not know yet: that session is provably ours, nobody need wait for it."""
    cluster = own_cluster()
    with Proxy(cluster.port) as proxy, closing(open_state(state_url(cluster, tcp=proxy.port), owner=True)) as store:
        store.save(checkpoint(100))
        assert proxy.abandon_client() == 1
        with pytest.raises(StateError):
            store.ping()

        store.save(checkpoint(200))

        assert store.load() == checkpoint(200)
        # Not by its own silence, which the server would have ended later.
        assert "terminating connection due to administrator command" in cluster.log_file.read_text()


def test_dead_line_is_given_up(own_cluster: OwnCluster) -> None:
    """Nothing comes back and nobody says why: a ping ends by itself, long before the kernel would give up."""
    cluster = own_cluster()
    with Proxy(cluster.port) as proxy, closing(open_state(state_url(cluster, tcp=proxy.port), owner=True)) as store:
        proxy.blacken()
        with pytest.raises(StateError, match="cannot be reached: no answer within 2 s"):
            store.ping()

        store.save(checkpoint(100))
        assert store.load() == checkpoint(100)


def test_closed_state_is_free_at_once(own_cluster: OwnCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the end of its connection is on its way still: whoever stands by need not wait for that."""
    monkeypatch.setattr("cdc.state.postgres._CLOSE_SECONDS", 30.0)
    cluster = own_cluster()
    with Proxy(cluster.port) as proxy:
        store = open_state(state_url(cluster, tcp=proxy.port), owner=True)
        proxy.delay = 0.5
        store.close()

        with closing(open_state(state_url(cluster), owner=True)) as other:
            assert not other.taken_over


# --- what is left of a write


def test_session_ended_inside_a_transaction_leaves_the_checkpoint_before(url: str, database: Database) -> None:
    """The new checkpoint was written but for its gap; none of it is there, and the next save goes in."""
    with closing(open_state(url, owner=True)) as store, ThreadPoolExecutor(1) as pool:
        store.save(checkpoint(100, mail=at(100)))
        with database.connect() as other, other.transaction():
            other.execute("LOCK TABLE walsignal.gap IN EXCLUSIVE MODE")
            saving = pool.submit(store.save, checkpoint(200, mail=at(200)), [gap("mail", 1, 1)])
            wait_until(lambda: database.execute("SELECT 1 FROM pg_locks WHERE NOT granted"))
            end_sessions(database)
            with pytest.raises(StateError):
                saving.result(30)

        assert store.load() == checkpoint(100, mail=at(100))
        assert store.gaps() == []
        store.save(checkpoint(300), [gap("mail", 1, 1)])


def test_saved_is_durable_whatever_the_role_is_set_to(own_cluster: OwnCluster) -> None:
    """The server dies right after the save; ALTER DATABASE had asked it not to wait for its WAL."""
    cluster = own_cluster({"wal_writer_delay": "10s"})
    with cluster.connect() as connection:
        for setting in ("synchronous_commit = off", "search_path = nowhere", "default_transaction_read_only = on"):
            connection.execute(f"ALTER DATABASE postgres SET {setting}".encode())
    with closing(open_state(state_url(cluster), owner=True)) as store:
        for number in range(1, 20):
            store.save(checkpoint(number))
        cluster.kill()
        with pytest.raises(StateError):
            store.save(checkpoint(20))
        with pytest.raises(StateError, match=r"cannot be reached: .* \| is the server up"):
            store.load()
        cluster.start()

        assert store.load() == checkpoint(19)
        store.save(checkpoint(21))


@contextmanager
def small_disk(cluster: Cluster, folder: Path) -> Iterator[Path]:
    """A disk of 24 MiB that the server may write to, and which fills up when `folder`/ballast grows."""
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a disk of its own for the server's tables needs the right to mount one")
    try:
        (folder / "space").mkdir(mode=0o700)
        owner = cluster.data.stat()
        os.chown(folder / "space", owner.st_uid, owner.st_gid)
        yield folder
    finally:
        cluster.remove()
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_keeps_what_was_written(own_cluster: OwnCluster) -> None:
    """The tables lie on a small disk that fills up: what went in is there, and with room again writing goes on."""
    cluster = own_cluster()
    # Not below pytest's own folders, where only their owner may go.
    with tempfile.TemporaryDirectory() as folder, small_disk(cluster, Path(folder)) as disk:
        Path(folder).chmod(0o755)
        with cluster.connect() as connection:
            space = sql.Literal(str(disk / "space"))
            connection.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(space))
            connection.execute("CREATE DATABASE state TABLESPACE small")
        with closing(open_state(state_url(cluster, "state"), owner=True)) as store:
            store.save(checkpoint(100, mail=at(100)))
            ballast = disk / "ballast"
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))
            kept, error = add_until_it_fails(store)
            assert "cannot be written, its server's disk is full" in str(error)

            assert [found.position for found in store.letters(LetterFilter())] == list(map(at, range(1, kept + 1)))
            assert store.load() == checkpoint(100, mail=at(100))
            ballast.unlink()
            store.add_letters([letter("mail", kept + 1)])
            store.save(checkpoint(200, mail=at(200)), [gap("mail", 1, 1)])
            assert store.load() == checkpoint(200, mail=at(200))


def add_until_it_fails(store: StateStore) -> tuple[int, StateError]:
    """How many letters went in, and why the next did not."""
    for lsn in range(1, 10_000):
        try:
            store.add_letters([letter("mail", lsn, event=os.urandom(10_000))])
        except StateError as error:
            return lsn - 1, error
    pytest.fail("the disk never became full")


def test_server_that_was_restarted_is_found_again(own_cluster: OwnCluster) -> None:
    """A command fails and says what to look at; the owner goes on by itself."""
    cluster = own_cluster()
    with (
        closing(open_state(state_url(cluster), owner=True)) as service,
        closing(open_state(state_url(cluster))) as command,
    ):
        service.save(checkpoint(100))
        cluster.stop()
        for _ in range(2):
            with pytest.raises(StateError):
                service.ping()
            with pytest.raises(StateError):
                command.load()
        cluster.start()

        service.save(checkpoint(200))
        assert service.load() == checkpoint(200)
        with pytest.raises(StateError, match=r"connection was lost \| try again"):
            command.load()


# --- what it leaves alone


def test_idle_owner_writes_no_wal(own_cluster: OwnCluster) -> None:
    """Nor do questions and a standby's attempts: a state in the source's own database must not feed the stream."""
    cluster = own_cluster({"autovacuum": "off"})
    url = state_url(cluster)
    with cluster.connect() as monitor, closing(open_state(url, owner=True)) as store:
        store.save(checkpoint(100, mail=at(100)))
        store.add_letters([letter("mail", 1)])

        def written() -> str:
            return str(monitor.execute("SELECT pg_current_wal_insert_lsn()").fetchone())

        def idle_for_two_seconds() -> bool:
            """The server's own background processes write now and then; they are idle sooner or later."""
            before, until = written(), time.monotonic() + 2

            def is_over() -> bool:
                store.ping()
                store.version()
                store.load()
                store.letter_totals()
                store.callbacks()
                with pytest.raises(StateBusy):
                    open_state(url, owner=True)
                open_state(url, read_only=True).close()
                return time.monotonic() > until

            wait_until(is_over)
            return written() == before

        wait_until(idle_for_two_seconds)
        before = written()
        store.save(checkpoint(200, mail=at(200)))
        assert written() != before


def test_state_knows_whether_it_moves_the_wal_of_the_source(url: str, database: Database) -> None:
    """By the identity of the cluster; a role without any right may ask."""
    database.execute(
        "DROP ROLE IF EXISTS asks_only; CREATE ROLE asks_only LOGIN; CREATE SCHEMA its AUTHORIZATION asks_only"
    )
    ((identifier,),) = database.execute("SELECT system_identifier::text FROM pg_control_system()")
    asking = state_url(database.cluster, database.name, user="asks_only", schema="its")
    try:
        with closing(open_state(asking)) as store:
            assert store.schema == "its"
            assert store.shares_wal(identifier)
            assert not store.shares_wal("7301234567890123456")
    finally:
        database.execute("DROP SCHEMA its CASCADE; DROP ROLE asks_only")


# --- what it refuses


def test_schema_of_another_program_is_refused(url: str, database: Database) -> None:
    """Somebody else's tables are left alone, whatever they are called."""
    database.execute("CREATE SCHEMA walsignal; CREATE TABLE walsignal.mine (a int)")
    with pytest.raises(StateError, match=r"of another program \| .*schema=NAME"):
        open_state(url)

    database.execute("CREATE TABLE walsignal.service (a int)")
    with pytest.raises(StateError, match=r"of another program.* \| .*schema=NAME"):
        open_state(url)


def test_newer_layout_is_refused(url: str, database: Database) -> None:
    """After a downgrade one cannot know what the newer version meant."""
    open_state(url).close()
    database.execute("UPDATE walsignal.service SET layout = 2")

    with pytest.raises(StateError, match=r"a newer version of cdc \(layout 2, this one knows 1\)"):
        open_state(url)


def test_impossible_value_is_refused(url: str, database: Database) -> None:
    """A position that is none, written by some other hand, is not read as 0/0."""
    with closing(open_state(url)) as store:
        store.save(checkpoint(100, mail=at(100)))
        database.execute("UPDATE walsignal.settled SET position = 'yesterday'")

        with pytest.raises(StateError, match="is damaged: 'yesterday' is not a position"):
            store.load()


@pytest.mark.parametrize("schema", ["public", "pg_catalog", "pg_toast", "information_schema", "", "x" * 64, "a%00b"])
def test_schema_that_is_not_its_own_is_refused(schema: str) -> None:
    """Its changes are kept out of the stream: it must hold nothing else."""
    with pytest.raises(StateError, match=r"state\.url: "):
        open_state(f"postgresql://cdc@nowhere/state?schema={schema}")


def test_role_that_may_not_make_the_schema_is_told_what_to_run(database: Database) -> None:
    """And with just that done, it is enough."""
    database.execute("CREATE ROLE makes_none LOGIN")
    url = state_url(database.cluster, database.name, user="makes_none", schema='odd "name"')
    try:
        with pytest.raises(StateError, match="cannot be made by role makes_none") as caught:
            open_state(url)
        database.execute(caught.value.hint.partition("run: ")[2])

        with closing(open_state(url, owner=True)) as store:
            store.save(checkpoint(100))
            assert store.load() == checkpoint(100)
    finally:
        database.execute("DROP OWNED BY makes_none; DROP ROLE makes_none")


def test_no_message_holds_the_password(own_cluster: OwnCluster) -> None:
    """Wrong password, no server, no database, a URL that cannot be read."""
    cluster = own_cluster()
    secret = "s3cr#t%40"
    urls = [
        state_url(cluster, tcp=cluster.port, password="s3cr#t@"),
        state_url(cluster, tcp=cluster.port, user="s3cr", password="s3cr"),  # the server repeats the user's name
        f"postgresql://cdc:{secret}@127.0.0.1:1/state",
        f"postgresql://cdc:{secret}@127.0.0.1:1/state?schema=public",
        "postgresql://cdc:s3cr%zz@127.0.0.1/state",
        "postgresql://cdc:s3cr@[127.0.0.1/state",
        "postgresql://cdc@127.0.0.1/state?password=s3cr&nonsense=1",
    ]
    for url in urls:
        with pytest.raises(StateError) as caught:
            open_state(url)
        assert "s3cr" not in str(caught.value)
        assert caught.value.hint


def test_refused_login_is_mended_in_the_url_and_not_at_the_server(own_cluster: OwnCluster) -> None:
    """libpq gives no SQLSTATE for it: password, role and database are known by the server's words."""
    cluster = own_cluster()
    with cluster.connect() as connection:
        connection.execute("CREATE ROLE guest LOGIN")
        for name in ("closed", "private"):
            connection.execute(f"CREATE DATABASE {name}".encode())
        connection.execute("ALTER DATABASE closed ALLOW_CONNECTIONS false")
        connection.execute("REVOKE CONNECT ON DATABASE private FROM PUBLIC")
    for url, code, fix in (
        (state_url(cluster, tcp=cluster.port, password="wrong"), "state_not_permitted", "PGPASSFILE"),
        (state_url(cluster, user="nobody"), "state_not_permitted", "mend user"),
        (state_url(cluster, "nowhere"), "state_missing", "create the database"),
        (state_url(cluster, "closed"), "state_unreachable", "is the server up"),
        (state_url(cluster, "private", user="guest"), "state_not_permitted", "GRANT CONNECT"),
    ):
        with pytest.raises(StateError) as caught:
            open_state(url)
        assert (caught.value.code, fix in caught.value.hint) == (code, True), caught.value


def test_database_of_another_encoding_takes_every_text(database: Database) -> None:
    """The state may lie in the source's own database, whatever that was made with."""
    name = f"{database.name}_latin"
    with database.cluster.connect() as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'").format(sql.Identifier(name))
        )
    try:
        with closing(open_state(state_url(database.cluster, name))) as store:
            store.add_letters([letter("mail", 1, error_text="schön \u20ac")])
            store.mark_removed("mail", at(1), "\u20ac")

            assert store.letters(LetterFilter())[0].error_text == "sch\\xf6n \\u20ac"
            assert store.callbacks()[0].reason == "\\u20ac"
    finally:
        drop_database(database.cluster, name)
