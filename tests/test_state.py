"""The state in a file: who may open it, what it refuses, what is left of it when process or disk goes."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cdc.errors import StateError
from cdc.state import Checkpoint, StateStore, open_state
from cdc.state.sqlite import SqliteState
from tests.stored import SAVER, at, checkpoint, gap

KILLED_MAKER = """
import os, signal, sys
from itertools import count
from pathlib import Path
from cdc.state import open_state

folder = Path(sys.argv[1])

def make_until(step):
    "Open a new state and be killed at the step-th thing that Python tells its auditors of."
    steps = count(1)
    def kill_at_step(event, arguments):
        if event.split(".")[0] in {"open", "os", "sqlite3", "fcntl"} and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(kill_at_step)
    open_state(f"sqlite:///{folder / str(step) / 'state.db'}", owner=True)
    os._exit(0)

for step in count(1):
    (folder / str(step)).mkdir()
    child = os.fork() or make_until(step)
    if os.waitpid(child, 0)[1] == 0:
        break
print(step)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a state may be; there is none yet."""
    return tmp_path / "state.db"


@pytest.fixture
def url(path: Path) -> str:
    """The URL of `path`."""
    return f"sqlite:///{path}"


@pytest.fixture
def saved(url: str) -> Checkpoint:
    """A closed state that holds this checkpoint, large enough to be torn in many places."""
    saved = checkpoint(100, audit=at(120, 3))
    with closing(open_state(url)) as store:
        store.save(saved, [gap("audit", number, number) for number in range(200)])
    return saved


class Disk:
    """A folder whose disk can be full: a small tmpfs, or where one may not mount, no file may grow."""

    def __init__(self, folder: Path, *, mounted: bool) -> None:
        self.folder = folder
        self._mounted = mounted
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Nothing more can be written as long as this lasts."""
        ballast = self.folder / "ballast"
        if self._mounted:
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
            ballast.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    made = shutil.which("mount") and subprocess.run(command, capture_output=True, check=False).returncode == 0
    mounted = bool(made)
    try:
        yield Disk(folder, mounted=mounted)
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user whom permissions bind; root is asked by none."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def save_until_it_fails(store: StateStore, last: Checkpoint) -> tuple[Checkpoint, StateError]:
    """The last checkpoint that went in, and the error of the next; SQLite may have taken some room before."""
    for number in range(last.last_event_id + 1, 10_000):
        following = checkpoint(number)
        try:
            store.save(following)
        except StateError as error:
            return last, error
        last = following
    pytest.fail("the disk never became full")


def run(program: str, *arguments: str) -> subprocess.Popen[str]:
    """Start Python on `program`."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_wal_stays_small(url: str, path: Path) -> None:
    """Its contents go into the file every 256 pages, however long the service runs."""
    with closing(open_state(url)) as store:
        for number in range(1000):
            store.save(checkpoint(number, a=at(number)))

        assert path.with_name("state.db-wal").stat().st_size < 2 * 1024 * 1024
    assert not path.with_name("state.db-wal").exists()


# --- who may open it


def test_files_are_for_the_owner_only(url: str, path: Path) -> None:
    """The database and all its side files, whatever the umask."""
    before = os.umask(0)
    try:
        store = open_state(url, owner=True)
        store.save(checkpoint())
    finally:
        os.umask(before)
    with closing(store):
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}

    assert modes == dict.fromkeys(["state.db", "state.db-wal", "state.db-shm", "state.db.lock"], 0o600)


def test_second_owner_is_refused(url: str) -> None:
    """Two services on one state would each acknowledge what the other has not settled."""
    with (
        closing(open_state(url, owner=True)),
        pytest.raises(StateError, match=f"in use by another cdc run, process {os.getpid()}"),
    ):
        open_state(url, owner=True)

    open_state(url, owner=True).close()


def test_failed_open_lets_the_lock_go(url: str, path: Path) -> None:
    """After the file is mended the next owner may come."""
    path.write_bytes(b"")
    with pytest.raises(StateError, match="not whole"):
        open_state(url, owner=True)
    path.unlink()

    open_state(url, owner=True).close()


def test_read_only_store_writes_nothing(saved: Checkpoint, url: str) -> None:
    """Whoever only looks cannot change what he looks at."""
    with closing(open_state(url, read_only=True)) as store:
        assert store.load() == saved

        with pytest.raises(StateError, match="cannot be written"):
            store.mark_removed("audit", at(1), "")


def test_read_only_open_makes_no_file(url: str, path: Path) -> None:
    """Looking for a state does not leave one behind."""
    with pytest.raises(StateError, match=r"state\.db does not exist \| cdc run makes it"):
        open_state(url, read_only=True)

    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("url", ["mysql://db", "state.db", "", "sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_bad_url_names_the_key(url: str) -> None:
    """Another scheme, no scheme, no path, or a state that would not outlive the process."""
    with pytest.raises(StateError, match=r"state\.url: .* \| .*sqlite:///cdc-state\.db"):
        open_state(url)


def test_relative_path_and_odd_letters_are_taken_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in a path is an escape: not ?, #, % or a space."""
    monkeypatch.chdir(tmp_path)
    open_state("sqlite:///a b?mode=ro#%41.db").close()

    assert {file.name for file in tmp_path.iterdir()} == {"a b?mode=ro#%41.db", "a b?mode=ro#%41.db.lock"}


# --- what happens to its file while it is open


def test_write_to_a_file_that_is_gone_is_refused(url: str, path: Path) -> None:
    """SQLite would go on in a file without a name, and all that is written would end with the process."""
    with closing(open_state(url, owner=True)) as store:
        store.save(checkpoint(1))
        moved = path.rename(path.with_name("moved.db"))

        with pytest.raises(StateError, match=r"state\.db or its -wal was removed or replaced .* \| put back"):
            store.save(checkpoint(2))

        moved.rename(path)
        store.save(checkpoint(3))


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_write_to_a_file_that_was_replaced_is_refused(url: str, path: Path, suffix: str) -> None:
    """What others find at its place is not what was written."""
    with closing(open_state(url, owner=True)) as store:
        store.save(checkpoint(1))
        file = path.with_name(path.name + suffix)
        copy = Path(shutil.copy(file, file.with_name("copy")))
        copy.rename(file)

        with pytest.raises(StateError, match="removed or replaced"):
            store.mark_removed("audit", at(1), "")


# --- what it refuses: never a fresh start where a file is


def torn(path: Path) -> Iterator[int]:
    """Lengths to cut `path` to: inside the header, at and beside page boundaries, one byte short."""
    whole = path.stat().st_size
    yield from (1, 15, 16, 99, 100, 511, 512, 4095, 4096, 4097, whole // 2, whole - 4096, whole - 1)


@pytest.mark.parametrize("read_only", [False, True])
def test_torn_file_is_refused(saved: Checkpoint, url: str, path: Path, read_only: bool) -> None:
    """However much is missing, and it is left as it was found."""
    whole = path.read_bytes()
    for length in torn(path):
        path.write_bytes(whole[:length])

        with pytest.raises(StateError, match=r"state\.db is .* \| .*move it away"):
            open_state(url, read_only=read_only)

        assert path.read_bytes() == whole[:length]


def test_damaged_page_is_refused(saved: Checkpoint, url: str, path: Path) -> None:
    """A page of zeros, as after a bad sector, is found when the file is opened."""
    whole = bytearray(path.read_bytes())
    whole[8192:12288] = bytes(4096)
    path.write_bytes(whole)

    with pytest.raises(StateError, match="is damaged"):
        open_state(url)


def test_empty_file_is_refused(url: str, path: Path) -> None:
    """SQLite takes it for a new database; here it is one whose contents were lost."""
    path.touch()

    with pytest.raises(StateError, match="is not whole: 0 bytes are left of it"):
        open_state(url)


def test_file_of_zeros_is_refused(saved: Checkpoint, url: str, path: Path) -> None:
    """As some file systems leave it after a power cut."""
    path.write_bytes(bytes(path.stat().st_size))

    with pytest.raises(StateError, match="is not an SQLite database"):
        open_state(url)


def test_garbage_is_refused(url: str, path: Path) -> None:
    """A file of another kind is not overwritten."""
    path.write_bytes(b"[source]\ndsn = 'a configuration, not a database'\n" * 100)

    with pytest.raises(StateError, match="is not an SQLite database"):
        open_state(url)


def test_database_of_another_program_is_refused(url: str, path: Path) -> None:
    """Somebody else's tables are left alone."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE mine (a)")

    with pytest.raises(StateError, match="is a database of another program"):
        open_state(url)


def test_newer_layout_is_refused(saved: Checkpoint, url: str, path: Path) -> None:
    """After a downgrade one cannot know what the newer version meant."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")

    with pytest.raises(StateError, match=r"a newer version of cdc \(layout 2, this one knows 1\)"):
        open_state(url)


def test_impossible_value_is_refused(saved: Checkpoint, url: str, path: Path) -> None:
    """A position that is none, written by some other hand, is not read as 0/0."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE settled SET position = 'yesterday'")

    with closing(open_state(url)) as store, pytest.raises(StateError, match="'yesterday' is not a position"):
        store.load()


def test_orphaned_wal_is_refused(url: str, path: Path) -> None:
    """Who removes the file but not its -wal has removed half of it; SQLite would delete the other half."""
    path.with_name("state.db-wal").write_bytes(b"the newest checkpoints")

    with pytest.raises(StateError, match=r"is gone, but state\.db-wal is there"):
        open_state(url)

    assert path.with_name("state.db-wal").exists()


def test_folder_in_place_of_the_file_is_refused(url: str, path: Path) -> None:
    """As a volume mounted one level too deep gives it."""
    path.mkdir()

    with pytest.raises(StateError, match="is not a file"):
        open_state(url)


@pytest.mark.parametrize("owner", [False, True])
def test_missing_folder_is_refused(tmp_path: Path, owner: bool) -> None:
    """It is not made: perhaps it is a volume that is not mounted, and the state lies there."""
    with pytest.raises(StateError, match=r"its folder does not exist \| .*mkdir -p"):
        open_state(f"sqlite:///{tmp_path}/nowhere/state.db", owner=owner)


@pytest.mark.parametrize("owner", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_read_only_folder_is_refused(owner: bool, exists: bool) -> None:
    """At the start, not at the first save, whether the file is there or not."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own lie where only their owner may go
        path = Path(folder, "state.db")
        if exists:
            open_state(f"sqlite:///{path}").close()
            path.chmod(0o444)
        Path(folder).chmod(0o555)

        with nobody(), pytest.raises(StateError, match=rf"{path} .* \| give cdc"):
            open_state(f"sqlite:///{path}", owner=owner)

        Path(folder).chmod(0o755)


# --- when the disk or the process goes


def test_full_disk_keeps_the_last_checkpoint(disk: Disk) -> None:
    """The save fails, the one before it is still there, and with room again saving goes on."""
    url = f"sqlite:///{disk.folder}/state.db"
    with closing(open_state(url, owner=True)) as store:
        store.save(checkpoint(100))
        with disk.full():
            done, error = save_until_it_fails(store, checkpoint(100))
            assert re.search(rf"{disk.folder}/state\.db cannot .* \| .*(room|full)", str(error))
            assert store.load() == done
            with closing(open_state(url, read_only=True)) as status:
                assert status.load() == done

        store.save(replace(done, last_event_id=0))
    with closing(open_state(url)) as store:
        assert store.load() == replace(done, last_event_id=0)


def test_full_disk_leaves_no_half_made_state(disk: Disk) -> None:
    """A state that cannot be made leaves nothing that a later start would stumble over."""
    url = f"sqlite:///{disk.folder}/state.db"
    with disk.full(), pytest.raises(StateError, match=rf"{disk.folder}/state\.db cannot be"):
        open_state(url)

    assert {file.name for file in disk.folder.iterdir()} <= {"state.db.lock"}
    open_state(url).close()


def test_kill_at_any_step_of_making_leaves_nothing_or_all(tmp_path: Path) -> None:
    """Wherever SIGKILL strikes a first start, the next one finds no state, or a whole one."""
    with run(KILLED_MAKER, str(tmp_path)) as maker:
        assert maker.stdout is not None
        steps = int(maker.stdout.read())
    assert steps > 5  # it was killed a few times before it got through

    for step in range(1, steps + 1):
        folder = tmp_path / str(step)
        with closing(open_state(f"sqlite:///{folder}/state.db", owner=True)) as store:
            assert store.load() is None
        assert {file.name for file in folder.iterdir()} == {"state.db", "state.db.lock"}


def test_kill_while_saving_loses_no_save_reported_as_done(url: str, path: Path) -> None:
    """SIGKILL in a loop of saves, ten times over: never older than reported, never torn, never locked."""
    for round_ in range(10):
        with run(SAVER, url) as saver:
            assert saver.stdout is not None
            for _ in range(5 + 40 * round_):  # from the first saves to past the WAL's way into the file
                reported = int(saver.stdout.readline())
            saver.send_signal(signal.SIGKILL)
            reported = int((saver.stdout.read().splitlines() or [str(reported)])[-1])

        if round_ % 2:  # a copy of the folder, as a backup of a crashed machine's disk, is as good
            for file in path.parent.glob("state.db*"):
                shutil.copy(file, file.with_name(f"copy-{file.name}"))
        with closing(open_state(url, owner=True)) as store:
            found = store.load()
            (gap_found,) = store.gaps()
        assert found is not None
        assert found.flushed_lsn >= reported
        assert found.flushed_lsn == found.last_event_id == gap_found.events
        assert found.callbacks == {"a": at(found.flushed_lsn)} == {"a": gap_found.last}


def test_every_commit_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    """In WAL mode that takes synchronous = FULL: 2."""
    with closing(open_state(f"sqlite:///{tmp_path}/state.db", owner=True)) as store:
        assert isinstance(store, SqliteState)
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
