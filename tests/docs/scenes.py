"""Where the blocks of a page run: a folder, a database, and what has happened there before.

Owns the servers' objects that pages speak of (`public.users`, `public.orders`, role `cdc`) and the situations that a
block can ask for. It must not know any page.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from cdc.demo.cluster import Cluster
from cdc.demo.processes import free_port
from cdc.demo.programs import find_bindir
from tests.running import wait_until

__all__ = ["SCENES", "Scene"]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 60
ROLE = "DO $$ BEGIN CREATE ROLE cdc LOGIN REPLICATION; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
TABLES = """
CREATE TABLE public.users (id bigint PRIMARY KEY, name text, email text, status text);
CREATE TABLE public.orders (id bigint PRIMARY KEY, user_id bigint, total numeric(12,2), status text);
"""
HANDLER = '''
def welcome(event):
    """Fails as long as there is a file `broken`."""
    import pathlib
    if pathlib.Path("broken").exists():
        raise ValueError("the mail server is away")
'''
CONFIG = """
python_path = ["."]
[source]
dsn = "${CDC_DSN}"
slot = "SLOT"
[state]
checkpoint_interval_seconds = 0.1
[signal]
max_consecutive_failures = 2
drain_timeout_seconds = 5
[http]
port = 9464
[[handlers]]
name = "welcome"
callback = "welcome:welcome"
max_attempts = 1
"""
_PORT = re.compile(r'^(?:# )?port = (?:9464\b|"\$\{CDC_HTTP_PORT:-9464\}").*$', re.MULTILINE)


class Scene:
    """A folder with a database of its own; commands run there, and at most one service."""

    def __init__(self, folder: Path, cluster: Cluster, name: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.slot = f"docs_{name}"
        self.words: dict[str, str] = {}  # what placeholders of commands stand for
        self._cluster, self._database = cluster, f"docs_{name}"
        self._service: subprocess.Popen[bytes] | None = None
        self._numbers = count(1_000_000)
        self.port = _own_port()
        cluster.create_database(self._database)
        with cluster.connect(self._database) as connection:
            connection.execute(ROLE)
            for statement in filter(str.strip, TABLES.split(";")):
                connection.execute(statement.encode())
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CDC_", "PG"))},
            "CDC_DSN": cluster.dsn(self._database),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{find_bindir()}:{os.environ['PATH']}",
            "PGHOST": str(cluster.socket_dir),
            "PGPORT": str(cluster.port),
            "PGUSER": "postgres",
            "PGDATABASE": self._database,
        }

    @property
    def dsn(self) -> str:
        """Of its database."""
        return self.environment["CDC_DSN"]

    @property
    def log(self) -> Path:
        """Standard error of its services."""
        return self.folder / "service.log"

    def write(self, name: str, text: str, *, append: bool = False) -> None:
        """Put a file there; a configuration listens on a port of this scene's own."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((path.read_text() if append and path.exists() else "") + text)

    def command(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run lines of shell; the first that fails ends them."""
        self._settle_port()
        return self._run(["bash", "-euo", "pipefail", "-c", script])

    def sql(self, script: str) -> None:
        """Run it as psql does; AssertionError with what the server says."""
        done = self._run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"], script)
        assert done.returncode == 0, done.stderr

    def _run(self, arguments: Sequence[str], words: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments,
            cwd=self.folder,
            env=self.environment,
            input=words,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def start(self, *arguments: str) -> None:
        """`cdc run`, until it streams."""
        self._settle_port()
        self.stop()
        streams = self._count("streaming")
        with self.log.open("ab") as log, (self.folder / "service.out").open("ab") as out:
            self._service = subprocess.Popen(
                [sys.executable, "-m", "cdc.cli", "run", *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )
        self.wait_for("streaming", streams + 1)

    def watch(self, *command: str) -> None:
        """A command that shows what happens until Ctrl-C: rows are written until it has shown something."""
        self._settle_port()
        shown = self.folder / "watched.out"
        with shown.open("wb") as out:
            watching = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

        def has_shown() -> bool:
            assert watching.poll() is None, shown.read_text()
            self.sql(f"INSERT INTO users (id) VALUES ({next(self._numbers)})")
            return shown.stat().st_size > 0

        try:
            wait_until(has_shown, PATIENCE_SECONDS, f"a word of {command}")
            watching.send_signal(signal.SIGINT)
            assert watching.wait(PATIENCE_SECONDS) in (0, 130), shown.read_text()
        finally:
            watching.kill()
            watching.wait()

    def wait_for(self, event: str, count: int = 1) -> None:
        """Until the log has that event so often."""

        def has_it() -> bool:
            if self._count(event) >= count:
                return True
            assert self._service is not None
            assert self._service.poll() is None, self.log.read_text()[-2000:]
            return False

        wait_until(has_it, PATIENCE_SECONDS, f"{event} in {self.log}")

    def _count(self, event: str) -> int:
        """How often the log has it."""
        text = self.log.read_text() if self.log.exists() else ""
        return text.count(f'"event":"{event}"') + text.count(f'"event": "{event}"')

    def stop(self) -> None:
        """A clean end, if one runs."""
        service, self._service = self._service, None
        if service is not None:
            service.terminate()
            code = service.wait(PATIENCE_SECONDS)
            assert code == 0, self.log.read_text()[-2000:]

    def slot_is_free(self) -> bool:
        """Whether nobody streams from it."""
        with self._cluster.connect(self._database) as connection:
            query = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
            return connection.execute(query, [self.slot]).fetchone() == (False,)

    def close(self) -> None:
        """Kill what still runs."""
        if self._service is not None:
            self._service.kill()
            self._service.wait()

    def _settle_port(self) -> None:
        """Nobody's real service, and no other test's, has the port of this one."""
        path = self.folder / "cdc.toml"
        if not path.exists():
            return
        text = path.read_text()
        if f"port = {self.port}" not in text:
            text, changed = _PORT.subn(f"port = {self.port}", text)
            path.write_text(text if changed else f"{text}\n[http]\nport = {self.port}\n")


_PORTS: set[int] = set()


def _own_port() -> int:
    """One that no other scene has been given: it is bound by and by, and until then looks free."""
    while (port := free_port()) in _PORTS:
        pass
    _PORTS.add(port)
    return port


def _fresh(scene: Scene) -> None:
    """A configuration, and nothing has run yet."""
    scene.write("welcome.py", HANDLER)
    scene.write("cdc.toml", CONFIG.replace("SLOT", scene.slot))
    scene.words.update(NAME="welcome", ID="1")


def _broken(scene: Scene, users: str, event: str) -> None:
    """The handler fails with these users until the log has the event; then the cause is mended."""
    _fresh(scene)
    scene.write("broken", "")
    scene.start()
    scene.sql(f"INSERT INTO users (id, name) VALUES {users}")
    scene.wait_for(event)
    scene.stop()
    (scene.folder / "broken").unlink()


def _letters(scene: Scene) -> None:
    """A handler `welcome` has failed once; the service is stopped, the cause mended."""
    _broken(scene, "(1, 'Ada')", "callback_failed")


def _removed(scene: Scene) -> None:
    """It has failed so often that it is removed, and one event is parked."""
    _broken(scene, "(1, 'Ada'), (2, 'Bob'), (3, 'Eve')", "callback_removed")


def _gone(scene: Scene) -> None:
    """The slot of a service that has run is dropped by somebody."""
    _letters(scene)
    wait_until(scene.slot_is_free, PATIENCE_SECONDS, "the slot is let go")  # the server notices after us
    scene.sql(f"SELECT pg_drop_replication_slot('{scene.slot}')")


def _running(scene: Scene) -> None:
    """A service runs."""
    _letters(scene)
    scene.start()


SCENES: dict[str, Callable[[Scene], None]] = {
    "fresh": _fresh,
    "letters": _letters,
    "removed": _removed,
    "gone": _gone,
    "running": _running,
}
