"""Whether the server may and can load the plugin: its list of allowed ones, and a trial."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg

from cdc.logs import clean
from cdc.preflight.connections import first_line
from cdc.preflight.findings import Finding, error, ok, quoted
from cdc.preflight.server import Server

__all__ = ["judge_answer", "judge_list", "names_in"]


def judge_list(server: Server) -> Iterator[Finding]:
    """What `output_plugin_libraries` means for us."""
    allowed = server.settings.get("output_plugin_libraries")
    if allowed is None:
        return  # an older server, which allows all
    if "wal2json" in names_in(allowed):
        yield ok("output_plugin_libraries", "output_plugin_libraries names wal2json")
    else:
        yield error(
            "output_plugin_libraries",
            f"output_plugin_libraries ({clean(allowed)}) does not name wal2json",
            _allow_plugin(allowed),
        )


def _allow_plugin(allowed: str) -> str:
    # One quoted string, as pasted from a .conf file, became one name with commas in it: take it apart.
    names = [part.strip() for name in names_in(allowed) for part in name.split(",")]
    listed = ", ".join(
        name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else quoted(name)
        for name in dict.fromkeys([*names, "wal2json"])
    )
    return f"ALTER SYSTEM SET output_plugin_libraries = {listed}; SELECT pg_reload_conf();"


def names_in(setting: str) -> list[str]:
    """The names in a list of identifiers, as the server reads it: quoted ones may hold commas."""
    found = re.findall(r'"((?:[^"]|"")*)"|([^\s,"]+)', setting)
    return [quoted_name.replace('""', '"') if quoted_name else bare for quoted_name, bare in found]


def judge_answer(plugin: str, objection: psycopg.Error | None, server: Server) -> Finding:
    """What the server's answer to loading the plugin means."""
    if objection is None:
        return ok("plugin", f"the server loads {plugin}")
    text = f"the server does not load {plugin}: {first_line(objection)}"
    fix = ""
    if objection.sqlstate == "42501" and "output plugin" in str(objection):
        fix = _allow_plugin(server.settings.get("output_plugin_libraries", "pgoutput, test_decoding"))
    elif objection.sqlstate in ("58P01", "42704"):  # no such file · no such object
        fix = f"apt-get install postgresql-{server.major}-wal2json  # on the server; or its system's package"
    elif objection.sqlstate == "42501":
        fix = f"ALTER ROLE {quoted(server.role)} WITH LOGIN REPLICATION;"
    return error("plugin", text, fix)
