"""Server and role: version, settings, encoding, privileges, retention, and room for one more slot.

What is judged by values alone is a function of those values; one query brings them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from cdc.encodings import CODECS
from cdc.preflight import standbys
from cdc.preflight.findings import Finding, error, ok, quoted, warning

__all__ = ["Server", "judge", "read"]

OLDEST = 130000  # the first with wal_status, without which nobody sees a slot dying
# Minors before these can lose changes that run beside some kinds of DDL (release notes of 2025-05-08).
DATA_LOSS_FIXED = {13: 21, 14: 18, 15: 13, 16: 9, 17: 5}
# Later corrections of logical decoding: aborted subtransactions with DDL, a race in the first snapshot.
DECODING_FIXED = {15: 20}
SMALL_KEEP_MB = 1024  # a bulk load of minutes writes as much
CONNECTIONS = 4  # of the service: stream, lookout, and for moments the catalog and a lookout that is renewed
LONGEST_STATUS_MS = 10_000  # as in `cdc.session`
SHORT_SENDER_TIMEOUT_MS = 10_000  # a pause of a busy client's machine must not look like its death

_SETTINGS = (
    "wal_level", "effective_wal_level", "output_plugin_libraries", "server_encoding", "max_replication_slots",
    "max_wal_senders", "max_slot_wal_keep_size", "idle_replication_slot_timeout", "wal_sender_timeout",
)  # fmt: skip
_QUERY = """
SELECT r.rolname, r.rolcanlogin, r.rolreplication, r.rolsuper,
       (SELECT count(*) FROM pg_replication_slots),
       (SELECT count(*) FROM pg_stat_get_wal_senders()),  -- pg_stat_activity hides those of other roles
       (SELECT json_object_agg(name, setting) FROM pg_settings WHERE name = ANY(%s)),
       r.rolconnlimit, pg_is_in_recovery(), pg_backend_pid(),
       (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT active)
       + (SELECT count(*) FROM pg_stat_get_wal_senders() w WHERE NOT EXISTS (
             SELECT FROM pg_replication_slots s WHERE s.active_pid = w.pid AND s.slot_type = 'logical'))
FROM pg_roles r WHERE r.rolname = current_user
"""


@dataclass(frozen=True, slots=True)
class Server:
    """What the server says of itself and of our role."""

    version: int
    role: str
    can_login: bool
    can_replicate: bool
    is_superuser: bool
    slots: int
    walsenders: int
    settings: Mapping[str, str]
    connection_limit: int = -1  # of the role
    in_recovery: bool = False
    backend_pid: int = 0
    standbys: int = 0  # physical ones, as far as they show: walsenders that serve no logical slot, and physical slots

    @property
    def major(self) -> int:
        return self.version // 10_000

    @property
    def minor(self) -> int:
        return self.version % 10_000

    def number(self, name: str) -> int:
        """An integer setting, in the unit of pg_settings; 0 when this server does not have it."""
        return int(self.settings.get(name, 0))


async def read(connection: AsyncConnection[TupleRow]) -> Server:
    """Ask all at once."""
    row = await (await connection.execute(_QUERY, [list(_SETTINGS)])).fetchone()
    assert row is not None  # noqa: S101 - current_user is always in pg_roles
    return Server(connection.info.server_version, *row)


def judge(server: Server, *, slot_exists: bool, failover: bool = False) -> Iterator[Finding]:
    """Everything that the values tell, the most basic first. `failover`: what the configuration asks for."""
    yield from _version(server)
    yield from standbys.judge(
        major=server.major, in_recovery=server.in_recovery, standbys=server.standbys, failover=failover
    )
    yield from _wal_level(server)
    yield from _encoding(server)
    yield from _role(server)
    yield from _room(server, slot_exists=slot_exists)
    yield from _retention(server)


def _version(server: Server) -> Iterator[Finding]:
    text = f"PostgreSQL {server.major}.{server.minor}"
    if server.version < OLDEST:
        yield error("server_version", f"{text} is too old", "upgrade to PostgreSQL 13 or newer")
    elif server.minor < DATA_LOSS_FIXED.get(server.major, 0):
        fixed = f"{server.major}.{DATA_LOSS_FIXED[server.major]}"
        yield warning(
            "server_version",
            f"{text} can lose changes that run beside DDL; {fixed} corrects that",
            f"upgrade to PostgreSQL {fixed} or newer",
        )
    elif server.minor < DECODING_FIXED.get(server.major, 0):
        fixed = f"{server.major}.{DECODING_FIXED[server.major]}"
        yield warning(
            "server_version",
            f"{text} has faults in logical decoding that {fixed} corrects",
            f"upgrade to PostgreSQL {fixed} or newer",
        )
    else:
        yield ok("server_version", text)


def _wal_level(server: Server) -> Iterator[Finding]:
    level = server.settings.get("wal_level", "")
    if level == "logical" or server.settings.get("effective_wal_level") == "logical":
        yield ok("wal_level", "wal_level is logical")
    else:
        yield error(
            "wal_level",
            f"wal_level is {level}, logical decoding needs logical",
            "ALTER SYSTEM SET wal_level = 'logical';  -- then restart the server",
        )


def _encoding(server: Server) -> Iterator[Finding]:
    encoding = server.settings.get("server_encoding", "")
    if encoding == "UTF8":
        yield ok("server_encoding", "the database is encoded in UTF8")
    elif encoding not in CODECS:
        yield error(
            "server_encoding",
            f"the database is encoded in {encoding}: its text cannot be decoded for certain",
            "restore a dump of it into: CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0;",
        )
    else:
        yield warning(
            "server_encoding",
            f"the database is encoded in {encoding}; every change is converted, UTF8 is faster",
        )


def _role(server: Server) -> Iterator[Finding]:
    if server.is_superuser:
        yield warning(
            "role",
            f"role {server.role} is a superuser: whoever gets its password owns the server; REPLICATION would do",
            "CREATE ROLE cdc LOGIN REPLICATION PASSWORD '...';  -- and name it in source.dsn",
        )
        return
    if not (server.can_login and server.can_replicate):
        yield error(
            "role",
            f"role {server.role} lacks {'REPLICATION' if server.can_login else 'LOGIN REPLICATION'}",
            f"ALTER ROLE {quoted(server.role)} WITH LOGIN REPLICATION;",
        )
        return
    yield ok("role", f"role {server.role} has REPLICATION, which reads every table of the database")
    if 0 <= server.connection_limit < CONNECTIONS:
        yield warning(
            "connection_limit",
            f"role {server.role} may have {server.connection_limit} connections, the service uses up to {CONNECTIONS}",
            f"ALTER ROLE {quoted(server.role)} CONNECTION LIMIT {CONNECTIONS};",
        )


def _room(server: Server, *, slot_exists: bool) -> Iterator[Finding]:
    limit = server.number("max_replication_slots")
    if slot_exists or server.slots < limit:
        yield ok("replication_slots", f"{server.slots} of {limit} replication slots are in use")
    else:
        yield error(
            "replication_slots",
            f"all {limit} replication slots are in use",
            f"ALTER SYSTEM SET max_replication_slots = {limit + 5};  -- then restart; or drop an unused slot",
        )
    senders = server.number("max_wal_senders")
    if server.walsenders < senders:
        yield ok("wal_senders", f"{server.walsenders} of {senders} walsenders are in use")
    else:
        yield error(
            "wal_senders",
            f"all {senders} walsenders are in use",
            f"ALTER SYSTEM SET max_wal_senders = {senders + 5};  -- then restart the server",
        )


def _retention(server: Server) -> Iterator[Finding]:
    if server.settings.get("max_slot_wal_keep_size") == "-1":
        yield warning(
            "max_slot_wal_keep_size",
            "max_slot_wal_keep_size is unlimited: while the service is down, WAL can fill the server's disk",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'; SELECT pg_reload_conf();"
            "  -- a size that outlasts your longest outage and that the disk can spare",
        )
    elif 0 < server.number("max_slot_wal_keep_size") < SMALL_KEEP_MB:
        yield warning(
            "max_slot_wal_keep_size",
            f"max_slot_wal_keep_size is {server.settings['max_slot_wal_keep_size']} MB: a short outage of the service"
            " or one large transaction invalidates the slot, and changes are lost",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'; SELECT pg_reload_conf();"
            "  -- a size that outlasts your longest outage and that the disk can spare",
        )
    elif "max_slot_wal_keep_size" in server.settings:
        kept = server.number("max_slot_wal_keep_size") / 1024
        yield ok("max_slot_wal_keep_size", f"a slot keeps at most {kept:,.1f} GiB of WAL")
    if idle := server.number("idle_replication_slot_timeout"):
        yield warning(
            "idle_replication_slot_timeout",
            f"the slot is invalidated when the service is down for {idle} (pg_settings' unit)",
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        )
    timeout = server.number("wal_sender_timeout")
    if timeout == 0:
        text = "wal_sender_timeout is 0: a connection that died unnoticed holds the slot until TCP gives up"
    elif timeout < SHORT_SENDER_TIMEOUT_MS:
        text = f"wal_sender_timeout is {timeout} ms: a short pause of this machine costs the connection"
    else:
        interval = min(LONGEST_STATUS_MS, timeout / 3) / 1000
        yield ok("wal_sender_timeout", f"wal_sender_timeout is {timeout / 1000:g} s: we answer every {interval:g} s")
        return
    yield warning("wal_sender_timeout", text, "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();")
