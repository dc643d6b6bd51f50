"""The SQLite file of the state: made whole or not at all, held by one owner, checked when opened.

Owns the file, its side files (``-wal``, ``-shm``, ``.lock``), its layout and what is said about its
faults; must not know the records. No descriptor of our own is ever opened on a database that may be in
use: closing it would drop the locks that SQLite holds on it in this process
(https://sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic, sleep

from cdc.codes import Code
from cdc.errors import StateBusy, StateError

__all__ = ["DAMAGED_HINT", "DatabaseFile", "explained"]

_APPLICATION_ID = 0x63646353  # "cdcS": tells our files from those of other programs
_VERSION = 1  # of the layout below
_PAGE = 4096
_LAYOUT = f"""
PRAGMA synchronous = FULL;
PRAGMA page_size = {_PAGE};
BEGIN;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
-- LSNs and positions are text: an LSN has 64 bits, an INTEGER of SQLite 63. Those of letters sort as text.
CREATE TABLE checkpoint (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    system_identifier TEXT NOT NULL, timeline INTEGER NOT NULL, "database" TEXT NOT NULL,
    slot TEXT NOT NULL, plugin TEXT NOT NULL, selection TEXT NOT NULL,
    flushed_lsn TEXT NOT NULL, last_event_id INTEGER NOT NULL
);
-- named: by the last checkpoint
CREATE TABLE settled (callback TEXT PRIMARY KEY, position TEXT NOT NULL, named INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE removed (
    callback TEXT PRIMARY KEY, state TEXT NOT NULL, position TEXT NOT NULL, "time" TEXT NOT NULL, reason TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE gap (
    callback TEXT, "first" TEXT, reason TEXT, "last" TEXT NOT NULL, events INTEGER NOT NULL,
    first_time TEXT NOT NULL, last_time TEXT NOT NULL,
    PRIMARY KEY (callback, "first", reason)
) WITHOUT ROWID;
-- AUTOINCREMENT: an id that somebody has seen never means another letter.
CREATE TABLE letter (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    callback TEXT NOT NULL, position TEXT NOT NULL, state TEXT NOT NULL,
    table_name TEXT NOT NULL, event_type TEXT NOT NULL, first_time TEXT NOT NULL, last_time TEXT NOT NULL,
    error TEXT NOT NULL, attempts INTEGER NOT NULL, retry INTEGER NOT NULL, size INTEGER NOT NULL,
    UNIQUE (callback, position)
);
CREATE INDEX letter_sums ON letter (callback, state, retry, size, first_time);  -- all that the totals read
CREATE TABLE letter_body (id INTEGER PRIMARY KEY REFERENCES letter, error_text TEXT NOT NULL, event BLOB NOT NULL);
COMMIT;
PRAGMA journal_mode = WAL;
"""
_SMALLEST_PAGE = 512  # SQLite's; what is shorter, it may take for a new database
_BUSY_SECONDS = 5.0  # another command's write takes milliseconds; a disk may need seconds for its fsync
_POLL_SECONDS = 0.01  # a file is made within some milliseconds
_WAL_PAGES = 256  # 1 MiB, some minutes of checkpoints: then the WAL goes into the file and starts anew
_WAL_BYTES = 4 * 1024 * 1024  # what a WAL that a slow reader let grow is cut back to

DAMAGED_HINT = (
    "restore it from a backup, or move it away with its -wal and -shm files: cdc run then goes on from "
    "the slot's own position, the latest events come again, records of removals and gaps are lost"
)
_PROBLEMS = {  # SQLite's primary result code -> what it means here, its code, what to do
    sqlite3.SQLITE_NOTADB: (
        "is not an SQLite database",
        Code.STATE_FOREIGN,
        f"see what it is and whether state.url is right; {DAMAGED_HINT}",
    ),
    sqlite3.SQLITE_CORRUPT: ("is damaged", Code.STATE_DAMAGED, DAMAGED_HINT),
    sqlite3.SQLITE_FULL: ("cannot be written, the disk is full", Code.STATE_DISK, "make room on its file system"),
    sqlite3.SQLITE_READONLY: (
        "cannot be written",
        Code.STATE_NOT_PERMITTED,
        "give cdc write permission on the file and its folder",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened",
        Code.STATE_NOT_PERMITTED,
        "give cdc permission on the file and write permission on its folder",
    ),
    sqlite3.SQLITE_PERM: (
        "cannot be opened",
        Code.STATE_NOT_PERMITTED,
        "give cdc permission on the file and its folder",
    ),
    sqlite3.SQLITE_BUSY: ("is locked by another program", Code.STATE_LOCKED, "end the program that holds it open"),
    sqlite3.SQLITE_IOERR: (
        "cannot be read or written",
        Code.STATE_DISK,
        "look for errors of its disk in the system log, and for a full one",
    ),
}
_ERRNO = {errno.ENOSPC: Code.STATE_DISK, errno.EACCES: Code.STATE_NOT_PERMITTED, errno.EROFS: Code.STATE_NOT_PERMITTED}


class DatabaseFile:
    """An open database of our layout, and the owner's lock if it is held."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self.path = path
        self.connection = connection
        self._lock = lock
        self._inodes = _inodes(path)

    @classmethod
    def open(cls, path: Path, *, read_only: bool, owner: bool) -> DatabaseFile:
        """Open it, or make it unless `read_only`; StateError says why not and what to do."""
        with explained(path):
            path = path.resolve()
            lock = _lock(path) if owner else None
            try:
                _require_file(path, read_only=read_only, locked=owner)
                return cls(path, _connect(path, read_only=read_only), lock)
            except BaseException:
                _unlock(lock)
                raise

    def require_in_place(self) -> None:
        """StateError when what was opened is not there any more: a write to it is gone with this process.

        SQLite looks for that as well (SQLITE_READONLY_DBMOVED), but not in WAL mode.
        """
        if _inodes(self.path) != self._inodes:
            raise StateError(
                f"{self.path} or its -wal was removed or replaced while it is in use",
                hint="put back what was there if it was moved; else restart cdc run: it goes on from the state that "
                "is there, or makes a new one and goes on from the slot's own position",
                code=Code.STATE_MISSING,
            )

    def close(self) -> None:
        """Close the database, then let the lock go; a second call does nothing."""
        self.connection.close()
        _unlock(self._lock)
        self._lock = None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system say about the file into what the operator does about it."""
    try:
        yield
    except sqlite3.Error as error:
        # Errors of Python's own module (a closed store) have no code; extended codes keep the primary
        # one in their low byte.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        what, name, hint = _PROBLEMS.get(code, ("cannot be used", Code.STATE_UNUSABLE, ""))
        raise StateError(f"{path} {what}: {error}", hint=hint, code=name) from error
    except OSError as error:
        raise StateError(
            f"{path} cannot be used: {error.strerror or error}",
            hint="give cdc a folder that it may write to, with room on its file system",
            code=_ERRNO.get(error.errno or 0, Code.STATE_UNUSABLE),
        ) from error


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _inodes(path: Path) -> list[tuple[int, int] | None]:
    """Which files are at the places of the database and of its -wal."""
    found: list[tuple[int, int] | None] = []
    for file in (path, _beside(path, "-wal")):
        try:
            status = file.stat()
        except FileNotFoundError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino))
    return found


def _lock(path: Path) -> int:
    """Take the owner's lock, on a file of its own (see the module's docstring); it goes with the process."""
    if not path.parent.is_dir():
        raise _no_folder(path)
    descriptor = os.open(_beside(path, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        holder = f"process {os.pread(descriptor, 20, 0).decode(errors='replace').strip() or 'unknown'}"
        os.close(descriptor)
        raise StateBusy(
            f"{path} is in use by another cdc run, {holder}",
            holder=holder,
            hint="stop that one first, or give this one a state.url and a slot of its own",
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _no_folder(path: Path) -> StateError:
    return StateError(
        f"{path}: its folder does not exist",
        hint=f"mount it or make it: mkdir -p '{path.parent}'",
        code=Code.STATE_MISSING,
    )


def _require_file(path: Path, *, read_only: bool, locked: bool) -> None:
    """See to it that there is a file to open. Whatever is there already is never replaced."""
    if path.exists():
        if not path.is_file():
            raise StateError(f"{path} is not a file", hint="name a file in state.url", code=Code.STATE_FOREIGN)
        size = path.stat().st_size
        if size < _SMALLEST_PAGE:
            raise StateError(
                f"{path} is not whole: {size} bytes are left of it", hint=DAMAGED_HINT, code=Code.STATE_DAMAGED
            )
        return
    if not path.parent.is_dir():
        raise _no_folder(path)
    if _has_wal(path):  # the newest checkpoints of a file that is gone; SQLite would delete them
        raise StateError(f"{path} is gone, but {path.name}-wal is there", hint=DAMAGED_HINT, code=Code.STATE_DAMAGED)
    if read_only:
        raise StateError(
            f"{path} does not exist", hint="cdc run makes it at its start; is state.url right?", code=Code.STATE_MISSING
        )
    if locked:
        _create(path)
        return
    lock = _lock_or_wait(path)
    try:
        if not path.exists():
            _create(path)
    finally:
        _unlock(lock)


def _lock_or_wait(path: Path) -> int | None:
    """The lock, or None once whoever has it has made the file."""
    deadline = monotonic() + _BUSY_SECONDS
    while True:
        try:
            return _lock(path)
        except StateBusy:
            if path.exists():
                return None
            if monotonic() >= deadline:
                raise
            sleep(_POLL_SECONDS)


def _has_wal(path: Path) -> bool:
    """Whether there are pages in the -wal; a reader that may not remove it leaves an empty one."""
    wal = _beside(path, "-wal")
    return wal.exists() and wal.stat().st_size > 0


def _create(path: Path) -> None:
    """Make the file under another name, and give it its own when it is whole and on the disk."""
    new = path.with_name(f".{path.name}.new")
    _remove(new)  # of a process killed right here; the owner's lock keeps everybody else away
    try:
        # SQLite gives its -journal, -wal and -shm files the mode of the database.
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.executescript(_LAYOUT)
        _fsync(new)
        new.rename(path)
        _fsync(path.parent)
    except BaseException:
        _remove(new)
        raise


def _remove(path: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        _beside(path, suffix).unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open the file as it is, and refuse one that is not wholly ours."""
    # With its newest pages in a -wal, the file may be whole all the same.
    half_page = path.stat().st_size % _PAGE != 0 and not _has_wal(path)
    db = sqlite3.connect(
        f"{path.as_uri()}?mode={'ro' if read_only else 'rw'}",  # neither makes a file
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,  # transactions begin where it says BEGIN
        check_same_thread=False,  # opened by one thread, used by another, never by two at once
    )
    try:
        _refuse_foreign(path, db)
        _refuse_damaged(path, db, half_page=half_page)
        if not read_only:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # in WAL mode: an fsync at every commit
            db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
            db.execute("PRAGMA secure_delete = FAST")  # else dropping a gigabyte of letters writes one of zeros
            db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
            db.executescript("BEGIN IMMEDIATE; ROLLBACK;")  # a file for reading only shows now, not at a save
    except BaseException:
        db.close()
        raise
    return db


def _refuse_foreign(path: Path, db: sqlite3.Connection) -> None:
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    if application_id != _APPLICATION_ID:
        raise StateError(
            f"{path} is a database of another program", hint="name another file in state.url", code=Code.STATE_FOREIGN
        )
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version != _VERSION:
        age = "a newer" if version > _VERSION else "an unknown"
        raise StateError(
            f"{path} was written by {age} version of cdc (layout {version}, this one knows {_VERSION})",
            hint="start the version of cdc that wrote it",
            code=Code.STATE_NEWER,
        )


def _refuse_damaged(path: Path, db: sqlite3.Connection, *, half_page: bool) -> None:
    if half_page:  # SQLite reads zeros for what is missing of it
        raise StateError(f"{path} is not whole: its last page is torn", hint=DAMAGED_HINT, code=Code.STATE_DAMAGED)
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StateError(f"{path} is damaged: {verdict}", hint=DAMAGED_HINT, code=Code.STATE_DAMAGED)
