"""The durable state: checkpoint, removed callbacks, gaps, behind one URL.

Picks the implementation by the URL's scheme; must not know what the records mean to the service.
"""

from __future__ import annotations

from pathlib import Path

from cdc.codes import Code
from cdc.errors import StateError
from cdc.state.postgres import PostgresState
from cdc.state.records import (
    CallbackRecord,
    CallbackState,
    Checkpoint,
    DeadLetter,
    Gap,
    LetterFilter,
    LetterState,
    LetterTotal,
    Source,
    StateStore,
)
from cdc.state.sqlite import SqliteState
from cdc.state.thread import StateThread

__all__ = [
    "CallbackRecord",
    "CallbackState",
    "Checkpoint",
    "DeadLetter",
    "Gap",
    "LetterFilter",
    "LetterState",
    "LetterTotal",
    "Source",
    "StateStore",
    "StateThread",
    "open_state",
]

_EXAMPLE = "write a path, such as sqlite:///cdc-state.db or sqlite:////var/lib/cdc/state.db, or postgresql://..."


def open_state(url: str, *, read_only: bool = False, owner: bool = False) -> StateStore:
    """Open the state at `url`, ``sqlite:///path`` or ``postgresql://...?schema=NAME``.

    It is made when there is none yet, unless `read_only`.

    `owner` holds it against other owners until `close`: the service's way, so that no two consume one
    slot with one state. Without it one may read, and write records of callbacks, while the service runs.
    StateError when it cannot be trusted or is not there (`read_only`), StateBusy when it has another owner.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "sqlite":
        path = rest.removeprefix("/")
        if not rest.startswith("/") or path in {"", ":memory:"}:
            raise StateError(
                "state.url: sqlite:// without the path of a file", hint=_EXAMPLE, code=Code.STATE_URL_WRONG
            )
        return SqliteState.open(Path(path), read_only=read_only, owner=owner)
    if separator and scheme in {"postgresql", "postgres"}:
        return PostgresState.open(url, read_only=read_only, owner=owner)
    # The rest of the URL is not repeated: it may hold a password.
    known = f"{scheme}:// is not a kind of state" if separator else "this is not a URL"
    raise StateError(f"state.url: {known}", hint=_EXAMPLE, code=Code.STATE_URL_WRONG)
