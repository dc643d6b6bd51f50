"""What a server says when it refuses us → what that means here, and what the operator does.

The one place that reads SQLSTATEs and libpq's sentences of the source; it knows no connection.
"""

from __future__ import annotations

import psycopg

from cdc.codes import Code
from cdc.errors import CdcError, ServerUnfit, SlotBusy, SlotInvalidated, SlotMissing, StreamLost

__all__ = ["command_error", "connect_error", "remedy"]

_PASSWORD = "put the right password into source.dsn, or into a PGPASSFILE"  # noqa: S105 - a sentence, no secret
_HBA = "allow role, database and address in the server's pg_hba.conf, then: SELECT pg_reload_conf();"
_NO_PASSWORD = f"{_PASSWORD} (of mode 0600)"
_PLAIN = f"the server may want TLS: sslmode=verify-full in source.dsn; else {_HBA}"
_ROLE = "ALTER ROLE ... WITH LOGIN REPLICATION;"
_TLS = "see sslmode and sslrootcert in source.dsn"
_NAME = "name the host in source.dsn as its certificate does, or have that name put into the certificate"
_AUTHORITY = "put the certificate of the server's authority there, or name its file: sslrootcert=/path/to/ca.crt"
_METHOD = "the server asks for the password in another way than require_auth or channel_binding of source.dsn allow"
_CERTIFICATE = "name our certificate and its key in source.dsn: sslcert=... sslkey=..., the key with mode 0600"
_NO_SERVER = "is the server up, and source.dsn right? try: pg_isready"
_FREE = "free a connection, or raise max_connections"
_NAMES = "mend role or database in source.dsn; psql -l lists the databases"
_CONNECT = "GRANT CONNECT ON DATABASE ... TO ...;"
_WALSENDERS = "free a walsender, or raise max_wal_senders"

_CODES = {  # of what is done about it
    _PASSWORD: Code.LOGIN_REFUSED,
    _HBA: Code.LOGIN_REFUSED,
    _CONNECT: Code.LOGIN_REFUSED,
    _ROLE: Code.ROLE_UNFIT,
    _TLS: Code.TLS_REFUSED,
    _NAME: Code.TLS_REFUSED,
    _AUTHORITY: Code.TLS_REFUSED,
    _CERTIFICATE: Code.TLS_REFUSED,
    _METHOD: Code.LOGIN_REFUSED,
    _NO_PASSWORD: Code.LOGIN_REFUSED,
    _PLAIN: Code.LOGIN_REFUSED,
    _NAMES: Code.DATABASE_UNKNOWN,
    _FREE: Code.CONNECTIONS_EXHAUSTED,
    _WALSENDERS: Code.CONNECTIONS_EXHAUSTED,
}

_CONNECTING: tuple[tuple[str, str, bool], ...] = (
    # part of the sentence (libpq gives no SQLSTATE here), what to do, whether trying again is useless
    ("certificate authentication failed", _CERTIFICATE, True),
    ("requires a valid client certificate", _CERTIFICATE, True),
    ("private key file", _CERTIFICATE, True),
    ("root certificate file", _AUTHORITY, True),  # before "does not exist"
    ("certificate file", _CERTIFICATE, True),
    ("does not match host name", _NAME, True),
    ("authentication method requirement", _METHOD, True),
    ("channel binding", _METHOD, True),
    ("authentication failed", _PASSWORD, True),
    ("no password supplied", _NO_PASSWORD, True),
    ("no encryption", _PLAIN, True),
    ("pg_hba.conf", _HBA, True),
    ("is not permitted to log in", _ROLE, True),
    ("replication role", _ROLE, True),
    ("start WAL sender", _ROLE, True),
    ("permission denied for database", _CONNECT, True),
    ("certificate verify failed", _TLS, True),
    ("server does not support SSL", _TLS, True),
    ("does not exist", _NAMES, True),
    ("too many", _FREE, False),
    ("remaining connection slots", _FREE, False),
    ("number of requested standby connections", _WALSENDERS, False),
)


def connect_error(error: psycopg.Error) -> CdcError:
    """Why there is no connection: StreamLost when it may come, ServerUnfit when an operator must act."""
    text = " ".join(str(error).split())[:500]
    for part, fix, permanent in _CONNECTING:
        if part in text and permanent:
            return ServerUnfit(f"cannot connect: {text}", hint=fix, code=_CODES.get(fix, ""))
    fix = remedy(error)
    return StreamLost(f"cannot connect: {text}", reason="connect", hint=fix, code=_CODES.get(fix, ""))


def remedy(error: psycopg.Error) -> str:
    """What to do when the server cannot be reached or refuses us."""
    if error.sqlstate is not None:
        return "see the server's log"  # it was reached, and has said why
    text = str(error)
    return next((fix for part, fix, _ in _CONNECTING if part in text), _NO_SERVER)


_CHECK = "cdc check"
_ANEW = "cdc slot show; events are missing: cdc run --accept-gap makes it anew and puts the range on record"
_REFUSALS: tuple[tuple[str, str, type[CdcError], str, str], ...] = (
    # SQLSTATE, part of the message, what it means here, its code where that is finer, what the operator does
    ("55006", "", SlotBusy, "", "another consumer, or our own last connection, holds the slot"),
    ("42704", "", SlotMissing, "", "cdc slot create"),
    (
        "55000",
        "wal_level",
        ServerUnfit,
        Code.WAL_LEVEL_WRONG,
        "ALTER SYSTEM SET wal_level = logical; then restart the server",
    ),
    ("55000", "can no longer", SlotInvalidated, "", _ANEW),  # 14 and newer
    ("55000", "cannot read from logical", SlotInvalidated, "", _ANEW),
    (
        "55000",
        "cannot use replication slot",
        ServerUnfit,
        Code.STANDBY_SERVER,
        "it is the standby's copy: use the primary, or promote",
    ),
    (
        "42501",
        "output plugin",
        ServerUnfit,
        Code.PLUGIN_NOT_ALLOWED,
        "ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding, wal2json; SELECT pg_reload_conf();",
    ),
    ("42501", "", ServerUnfit, Code.ROLE_UNFIT, "ALTER ROLE <role> REPLICATION;"),
    (
        "58P01",
        "",
        ServerUnfit,
        Code.PLUGIN_MISSING,
        "install wal2json for this server, e.g. apt-get install postgresql-NN-wal2json",
    ),
    ("53400", "", ServerUnfit, Code.SLOTS_EXHAUSTED, "raise max_replication_slots, or drop a slot that nobody uses"),
    (
        "22023",
        "",
        ServerUnfit,
        Code.PLUGIN_TOO_OLD,
        "the plugin does not know an option: wal2json 2.5 or newer is needed",
    ),
    ("0A000", "", ServerUnfit, "", _CHECK),
    ("42601", "", ServerUnfit, "", _CHECK),
    ("42710", "", ServerUnfit, "", _CHECK),
)
"""What the server refuses for good, first match; everything else is worth another attempt.

An invalidated slot is also told by what `pg_replication_slots` says at the next attempt, in whatever language
the server speaks.
"""


def command_error(error: psycopg.Error) -> CdcError:
    """What a command on the connection was refused for."""
    text = (error.diag.message_primary or str(error)).replace("\n", " ")[:500]
    for state, part, kind, code, hint in _REFUSALS:
        if error.sqlstate == state and part in text:
            return kind(text, hint=hint, code=code)
    return StreamLost(text, reason=error.sqlstate or "connection_lost")
