"""Whether a connection to another host is encrypted, and whether we know who answers there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from psycopg import AsyncConnection, pq
from psycopg.conninfo import conninfo_to_dict

from cdc.logs import clean
from cdc.preflight.findings import Finding, ok, warning

__all__ = ["judge", "judge_state", "settings_of"]

VERIFIED = "verify-full"
_LOCAL = re.compile(r"localhost|127\.[0-9.]+|::1|[/@].*", re.IGNORECASE)
_SCHEMA = re.compile(r"([?&])schema=[^&]*&?")
_FIX = "add to {where}: sslmode=verify-full sslrootcert=/path/to/ca.crt  # sslrootcert=system: a public authority's"


def settings_of(connection: AsyncConnection[Any]) -> Mapping[str, str]:
    """What libpq uses for it, wherever that came from: DSN, environment, service file."""
    return {
        option.keyword.decode(): option.val.decode()
        for option in connection.pgconn.info
        if option.val is not None and option.keyword in (b"host", b"hostaddr", b"sslmode")
    }


def judge(
    settings: Mapping[str, str], *, encrypted: bool | None, where: str = "source.dsn", code: str = "tls"
) -> Finding:
    """By the host that the DSN names; `encrypted` is None where nobody has tried."""
    host = settings.get("host") or settings.get("hostaddr") or ""
    others = [name for name in host.split(",") if name and not _LOCAL.fullmatch(name)]
    mode = settings.get("sslmode") or "prefer"
    if not others:
        return ok(code, f"{where} stays on this machine: no TLS is needed")
    if mode == VERIFIED:
        return ok(code, f"{where} is encrypted, and the server's name and authority are checked")
    name = clean(", ".join(others))
    if encrypted is False:
        text = f"{where} goes to {name} in plain text: who is on the way reads every row"
    else:
        text = f"{where} goes to {name} with sslmode={mode}: nobody checks who answers there"
    return warning(code, text, _FIX.format(where=where))


def judge_state(url: str) -> Finding | None:
    """The same of a state in PostgreSQL, by its URL and the environment; None of any other."""
    if not url.startswith(("postgresql://", "postgres://")):
        return None
    given = conninfo_to_dict(_SCHEMA.sub(r"\1", url).rstrip("?&"))
    defaults = {option.keyword.decode(): option.val.decode() for option in pq.Conninfo.get_defaults() if option.val}
    settings = {key: str(given.get(key) or defaults.get(key) or "") for key in ("host", "hostaddr", "sslmode")}
    return judge(settings, encrypted=None, where="state.url", code="state_tls")
