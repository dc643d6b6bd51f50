"""Who owns the state, and could somebody come to: asked by commands.

Whether a service owns it at this moment, so that they know whether they are heard; whether a first start could make it,
and a later one write it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cdc.state import layout, lock
from cdc.state.server import Server

__all__ = ["is_owned", "require_makeable", "require_primary"]


def is_owned(url: str) -> bool:
    """Whether a process holds the state at `url` as its owner. StateError when a server cannot be asked."""
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        return _is_locked(Path(rest.removeprefix("/")))
    server = Server.parse(url)
    with server.explained(), server.connect(read_only=True, owner=False) as session:
        return lock.holder(session, server.schema) is not None


def require_makeable(url: str) -> None:
    """StateError when a first start could not make the state at `url`, a PostgreSQL that has none yet."""
    server = Server.parse(url)
    with server.explained(), server.connect(read_only=True, owner=False) as session:
        layout.require_makeable(session, server)


def require_primary(url: str) -> None:
    """StateError when the state at `url`, in a PostgreSQL, lies on a standby, where no service could write it."""
    server = Server.parse(url)
    with server.explained(), server.connect(read_only=True, owner=False) as session:
        layout.require_primary(session, server, "written")


def _is_locked(path: Path) -> bool:
    """Asking takes the lock for an instant, shared: a service that starts in that very instant waits for it."""
    try:
        descriptor = os.open(path.resolve().with_name(f"{path.name}.lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # never owned, or not for us to see
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
