"""Where PostgreSQL's server programs are on this machine, and how to start them.

Owns the search order, and what a child process of ours may inherit. It must not know what the programs
are used for.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from cdc.codes import Code
from cdc.errors import CdcError

__all__ = [
    "Account",
    "ClusterError",
    "clean_environment",
    "find_bindir",
    "server_version",
    "unprivileged_account",
]

PROGRAMS = ("initdb", "pg_ctl", "postgres")


class ClusterError(CdcError):
    """What is missing or went wrong, and the command that mends it."""

    default_code = Code.DEMO_FAILED


class Account(TypedDict, total=False):
    """Keyword arguments of `subprocess` that make the child an ordinary user; empty when we are one."""

    user: int
    group: int
    extra_groups: list[int]


def find_bindir(*, wal2json: bool = True) -> Path:
    """The folder of PostgreSQL's server programs: `$PG_BINDIR`, else the first found that has all we need."""
    chosen = os.environ.get("PG_BINDIR")
    candidates = [Path(chosen)] if chosen else list(_bindirs())
    servers = [bindir for bindir in candidates if all(os.access(bindir / name, os.X_OK) for name in PROGRAMS)]
    if not servers:
        where = f"in PG_BINDIR={chosen}" if chosen else "on this machine"
        raise ClusterError(
            f"no PostgreSQL server programs ({', '.join(PROGRAMS)}) {where}",
            hint="`make setup` installs them on Debian and Ubuntu; elsewhere install them or set PG_BINDIR",
        )
    if not wal2json:
        return servers[0]
    for bindir in servers:
        if any(_library_dir(bindir).glob("wal2json.*")):
            return bindir
    major = server_version(servers[0]) // 10_000
    raise ClusterError(
        f"no wal2json beside the PostgreSQL server in {servers[0]}",
        hint=f"on Debian and Ubuntu: apt-get install postgresql-{major}-wal2json",
    )


def server_version(bindir: Path) -> int:
    """As the server's `server_version_num`: 150018 for 15.18, 190000 for 19beta1."""
    text = _output_of(bindir / "postgres", "--version")
    match = re.search(r"\) (\d+)(?:\.(\d+))?", text)
    if match is None:
        raise ClusterError(f"cannot read a version from {text!r}", hint=f"is {bindir} PostgreSQL's?")
    return int(match[1]) * 10_000 + int(match[2] or 0)


def unprivileged_account() -> Account:
    """Whom the server runs as when we are root: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise ClusterError("PostgreSQL refuses to run as root", hint="useradd --system postgres")


def clean_environment() -> dict[str, str]:
    """Ours without PG*: a PGDATA or PGPORT would lead the server's programs to another cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C"}  # messages that we can read


def _bindirs() -> Iterator[Path]:
    """Best first, in the same order as scripts/system-packages.sh."""
    if pg_config := shutil.which("pg_config"):
        yield Path(_output_of(pg_config, "--bindir"))
    packaged = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    yield from sorted(packaged, key=_numbers, reverse=True)
    if initdb := shutil.which("initdb"):
        yield Path(initdb).resolve().parent


def _numbers(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", str(path))]


def _library_dir(bindir: Path) -> Path:
    pg_config = bindir / "pg_config"
    return Path(_output_of(pg_config, "--pkglibdir")) if pg_config.exists() else bindir.parent / "lib"


def _output_of(program: str | Path, argument: str) -> str:
    result = subprocess.run([program, argument], check=False, capture_output=True, text=True)
    return result.stdout.strip()
