"""What a server says when it refuses us → what that means here, and what the operator does.

The one place that reads SQLSTATEs and libpq's sentences; it knows no connection.
"""

from __future__ import annotations

import psycopg

from cdc.errors import CdcError, ServerUnfit, SlotBusy, SlotInvalidated, SlotMissing, StreamLost

__all__ = ["command_error", "connect_error", "remedy"]

_PASSWORD = "put the right password into source.dsn, or into a PGPASSFILE"  # noqa: S105 - a sentence, no secret
_HBA = "allow role, database and address in the server's pg_hba.conf, then: SELECT pg_reload_conf();"
_ROLE = "ALTER ROLE ... WITH LOGIN REPLICATION;"
_TLS = "see sslmode and sslrootcert in source.dsn"
_NO_SERVER = "is the server up, and source.dsn right? try: pg_isready"

_CONNECTING: tuple[tuple[str, str, bool], ...] = (
    # part of the sentence (libpq gives no SQLSTATE here), what to do, whether trying again is useless
    ("authentication failed", _PASSWORD, True),
    ("no password supplied", _PASSWORD, True),
    ("pg_hba.conf", _HBA, True),
    ("is not permitted to log in", _ROLE, True),
    ("replication role", _ROLE, True),
    ("start WAL sender", _ROLE, True),
    ("permission denied for database", "GRANT CONNECT ON DATABASE ... TO ...;", True),
    ("certificate verify failed", _TLS, True),
    ("server does not support SSL", _TLS, True),
    ("does not exist", "mend role or database in source.dsn; psql -l lists the databases", True),
    ("too many", "free a connection, or raise max_connections", False),
    ("remaining connection slots", "free a connection, or raise max_connections", False),
    ("number of requested standby connections", "free a walsender, or raise max_wal_senders", False),
)


def connect_error(error: psycopg.Error) -> CdcError:
    """Why there is no connection: StreamLost when it may come, ServerUnfit when an operator must act."""
    text = " ".join(str(error).split())[:500]
    for part, fix, permanent in _CONNECTING:
        if part in text and permanent:
            return ServerUnfit(f"cannot connect: {text}", hint=fix)
    return StreamLost(f"cannot connect: {text}", reason="connect", hint=remedy(error))


def remedy(error: psycopg.Error) -> str:
    """What to do when the server cannot be reached or refuses us."""
    if error.sqlstate is not None:
        return "see the server's log"  # it was reached, and has said why
    text = str(error)
    return next((fix for part, fix, _ in _CONNECTING if part in text), _NO_SERVER)


_CHECK = "cdc check"
_ANEW = "cdc slot show; events are missing: cdc run --accept-gap makes it anew and puts the range on record"
_REFUSALS: tuple[tuple[str, str, type[CdcError], str], ...] = (
    # SQLSTATE, part of the message, what it means here, what the operator does
    ("55006", "", SlotBusy, "another consumer, or our own last connection, holds the slot"),
    ("42704", "", SlotMissing, "cdc slot create"),
    ("55000", "wal_level", ServerUnfit, "ALTER SYSTEM SET wal_level = logical; then restart the server"),
    ("55000", "can no longer", SlotInvalidated, _ANEW),  # 14 and newer
    ("55000", "cannot read from logical", SlotInvalidated, _ANEW),
    ("55000", "cannot use replication slot", ServerUnfit, "it is the standby's copy: use the primary, or promote"),
    (
        "42501",
        "output plugin",
        ServerUnfit,
        "ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding, wal2json; SELECT pg_reload_conf();",
    ),
    ("42501", "", ServerUnfit, "ALTER ROLE <role> REPLICATION;"),
    ("58P01", "", ServerUnfit, "install wal2json for this server, e.g. apt-get install postgresql-NN-wal2json"),
    ("53400", "", ServerUnfit, "raise max_replication_slots, or drop a slot that nobody uses"),
    ("22023", "", ServerUnfit, "the plugin does not know an option: wal2json 2.5 or newer is needed"),
    ("0A000", "", ServerUnfit, _CHECK),
    ("42601", "", ServerUnfit, _CHECK),
    ("42710", "", ServerUnfit, _CHECK),
)
"""What the server refuses for good, first match; everything else is worth another attempt.

An invalidated slot is also told by what `pg_replication_slots` says at the next attempt, in whatever language
the server speaks.
"""


def command_error(error: psycopg.Error) -> CdcError:
    """What a command on the connection was refused for."""
    text = (error.diag.message_primary or str(error)).replace("\n", " ")[:500]
    for state, part, kind, hint in _REFUSALS:
        if error.sqlstate == state and part in text:
            return kind(text, hint=hint)
    return StreamLost(text, reason=error.sqlstate or "connection_lost")
