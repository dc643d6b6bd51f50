"""The server among others of its cluster: is it a standby itself, and has it standbys that lack the slot."""

from __future__ import annotations

from collections.abc import Iterator

from cdc.preflight.findings import Finding, error, ok, warning

__all__ = ["judge"]

DECODES = 16  # the first that decodes on a standby
SYNCHRONIZES = 17  # the first whose standbys can have the slot
_PRIMARY = "name the primary in source.dsn; or all of them: host=one,other target_session_attrs=read-write"


def judge(*, major: int, in_recovery: bool, standbys: int, failover: bool) -> Iterator[Finding]:
    """What it means for the slot. `failover` is the setting, `standbys` how many seem to follow the server."""
    if in_recovery and major < DECODES:
        yield error("standby", "the server is a standby: before PostgreSQL 16 only a primary decodes", _PRIMARY)
        return
    if in_recovery:
        yield warning("standby", "the server is a standby: what it decodes lags behind the primary", _PRIMARY)
    if failover and major < SYNCHRONIZES:
        yield error(
            "failover",
            f"source.failover needs PostgreSQL 17 or newer, this is {major}",
            "source.failover = false",
        )
    elif failover:
        yield ok("failover", "standbys that synchronize slots have this one, too")
    elif standbys and not in_recovery:
        newer = major >= SYNCHRONIZES
        yield warning(
            "failover",
            "something follows this server physically; where that is a standby, it does not have the slot: after a"
            " failover changes may be missing, and `cdc run` refuses to go on by itself",
            "source.failover = true" if newer else "docs/check.md: what to do after a failover before PostgreSQL 17",
        )
