"""Whether the server may and can load the plugin: its list of allowed ones, and a trial."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import psycopg

from cdc.logs import clean
from cdc.preflight.connections import Trial, first_line
from cdc.preflight.findings import Finding, error, ok, quoted, warning
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


def judge_answer(plugin: str, trial: Trial, server: Server, *, slot_exists: bool = False) -> Iterator[Finding]:
    """What the server's answers to loading the plugin mean. Where the slot exists, none has to be made."""
    if trial.objection is not None:
        yield _objected(plugin, trial.objection, server)
    elif trial.refused_option:
        yield error(
            "plugin",
            f"{plugin} is too old, it refuses what the service asks for: {trial.refused_option}",
            f"install {plugin} 2.5 or newer on the server: apt-get install postgresql-{server.major}-{plugin}",
        )
    else:
        yield ok("plugin", f"the server loads {plugin}")
        if trial.blocked_by is not None:
            if not slot_exists:
                yield _blocked(trial.blocked_by)
        elif trial.is_recent:
            yield ok("plugin_version", f"{plugin} is 2.6 or newer")
        else:
            yield ok("plugin_version", f"{plugin} is 2.5: NaN and infinity arrive as None; 2.6 sends them")


def _blocked(pids: Sequence[int]) -> Finding:
    who = f"of process {', '.join(map(str, pids))}" if pids else "that is prepared, or ends in this moment"
    return warning(
        "slot_creation",
        f"making a slot waits for the end of a transaction {who}",
        f"SELECT pg_terminate_backend({pids[0]});  -- where it is an idle session"
        if pids
        else "SELECT gid, prepared FROM pg_prepared_xacts;  -- then: COMMIT PREPARED or ROLLBACK PREPARED",
    )


def _objected(plugin: str, objection: psycopg.Error, server: Server) -> Finding:
    text = f"the server does not load {plugin}: {first_line(objection)}"
    fix = ""
    if objection.sqlstate == "42501" and "output plugin" in str(objection):
        fix = _allow_plugin(server.settings.get("output_plugin_libraries", "pgoutput, test_decoding"))
    elif objection.sqlstate in ("58P01", "42704"):  # no such file · no such object
        fix = f"apt-get install postgresql-{server.major}-wal2json  # on the server; or its system's package"
    elif objection.sqlstate == "42501":
        fix = f"ALTER ROLE {quoted(server.role)} WITH LOGIN REPLICATION;"
    return error("plugin", text, fix)
