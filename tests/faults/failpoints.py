"""`cdc` with faults at named points: the tests start `python -m tests.faults.failpoints run` in its place.

`$CDC_FAILPOINT` is `name` or `name:n`. At the n-th hit of a point of :data:`POINTS` the process kills itself,
as `kill -9` does. The faults of :data:`FAULTS` stay: status updates are dropped all the time, a commit of
the state fails as long as there is a file `eio` in the working directory. The service knows nothing of it.
"""

from __future__ import annotations

import functools
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cdc.service
from cdc.checkpoints import Checkpointer
from cdc.cli import main
from cdc.progress import Batch
from cdc.reload import Reloads
from cdc.replication import ReplicationStream
from cdc.signals import SignalManager
from cdc.workers import Pool
from cdc.workers.held import Held
from tests.faults.recorder import Record

POINTS = (
    "after_receive",
    "before_dispatch",
    "after_dispatch",
    "before_handler",
    "after_handler_ok",
    "after_settled",
    "before_checkpoint_write",
    "inside_checkpoint_write",
    "after_checkpoint_write",
    "before_status_send",
    "after_status_send",
)
RELOAD_POINTS = (
    "reload_before_rest",
    "reload_at_rest",
    "reload_before_release",
    "reload_between_releases",
    "reload_before_parting",
    "reload_parted",
    "reload_over",
)
"""Of a reload that changes two handlers and takes one out."""
FAULTS = ("drop_status_updates", "checkpoint_eio")
EIO_FILE = Path("eio")

Function = Callable[..., Any]

_in_save = threading.local()


def wrap(owner: type, name: str, *, before: Function | None = None, after: Function | None = None) -> None:
    """Call `before`, and `after` with what was returned, around a method of all its objects."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before()
        result = method(*args, **kwargs)
        if after is not None:
            after(result)
        return result

    setattr(owner, name, wrapped)


class Killer:
    """Ends the process at the n-th call."""

    def __init__(self, hits: int) -> None:
        self._left = hits

    def __call__(self, *_: object) -> None:
        """One hit."""
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def if_any(self, result: object) -> None:
        """One hit if there is something in `result`."""
        if result:
            self()


class Connection(sqlite3.Connection):
    """Of the state: `on_commit` is called where a save is about to become durable."""

    on_commit: Function | None = None

    def execute(self, statement: str, *args: Any) -> sqlite3.Cursor:
        on_commit = type(self).on_commit
        if statement == "COMMIT" and on_commit is not None and getattr(_in_save, "yes", False):
            on_commit()
        return super().execute(statement, *args)


def around_save(
    *, before: Function | None = None, inside: Function | None = None, after: Function | None = None
) -> None:
    """Wrap `save` of whatever store the service opens."""
    open_state = vars(cdc.service)["open_state"]
    wrapped: set[type] = set()

    def open_wrapped(*args: Any, **kwargs: Any) -> Any:
        store = open_state(*args, **kwargs)
        if type(store) not in wrapped:
            wrapped.add(type(store))
            wrap(type(store), "save", before=before, after=after)
            _mark_save(type(store))
        return store

    vars(cdc.service)["open_state"] = open_wrapped
    if inside is not None:
        Connection.on_commit = staticmethod(inside)
        vars(sqlite3)["connect"] = functools.partial(sqlite3.connect, factory=Connection)


def _mark_save(store: Any) -> None:
    """Let a connection know whether a COMMIT is that of a save."""
    save = store.save

    @functools.wraps(save)
    def marked(*args: Any, **kwargs: Any) -> Any:
        _in_save.yes = True
        try:
            return save(*args, **kwargs)
        finally:
            _in_save.yes = False

    store.save = marked


def fail_while_told() -> None:
    """What SQLite raises when the disk gives an error."""
    if EIO_FILE.exists():
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error


def install(name: str, hits: int) -> None:
    """Put the fault in its place; KeyError for a name that is none."""
    kill = Killer(hits)
    places: dict[str, Function] = {
        "after_receive": lambda: wrap(ReplicationStream, "read", after=kill.if_any),
        "before_dispatch": lambda: wrap(SignalManager, "submit", before=kill),
        "after_dispatch": lambda: wrap(SignalManager, "submit", after=kill),
        "before_handler": lambda: wrap(Record, "write", before=kill),
        "after_handler_ok": lambda: wrap(Record, "write", after=kill),
        "after_settled": lambda: wrap(Batch, "settle", after=kill),
        "before_checkpoint_write": lambda: around_save(before=kill),
        "inside_checkpoint_write": lambda: around_save(inside=kill),
        "after_checkpoint_write": lambda: around_save(after=kill),
        "before_status_send": lambda: wrap(ReplicationStream, "report", before=kill),
        "after_status_send": lambda: wrap(ReplicationStream, "report", after=kill),
        "reload_before_rest": lambda: wrap(Pool, "hold", before=kill),
        "reload_at_rest": lambda: wrap(Held, "put_back", after=kill),
        "reload_before_release": lambda: wrap(Pool, "release", before=kill),
        "reload_between_releases": lambda: wrap(Pool, "release", before=Killer(2)),
        "reload_before_parting": lambda: wrap(Pool, "part", before=kill),
        "reload_parted": lambda: wrap(Checkpointer, "note_left", before=kill),
        "reload_over": lambda: wrap(Reloads, "_report", before=kill),
        "drop_status_updates": lambda: setattr(ReplicationStream, "send_status", lambda *_, **__: None),
        "checkpoint_eio": lambda: around_save(inside=fail_while_told),
    }
    places[name]()


if __name__ == "__main__":
    point, _, count = os.environ.get("CDC_FAILPOINT", "").partition(":")
    if point:
        install(point, int(count or 1))
    main()
