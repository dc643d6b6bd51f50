"""`make check-image`: the steps of deploy/Dockerfile run in a Debian tree, and the service runs in what they made.

There is no container engine in it. What an engine would add is done with the kernel's own means: layers (overlay), a
root that cannot be written, an account without capabilities, volumes. The database is a real one.
Run by scripts/check-image.sh, which gives it a mount and process namespace.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

from cdc.demo.cluster import Cluster
from cdc.demo.processes import free_port
from tests.deploy.dockerfile import Stage, read
from tests.deploy.files import ROOT, compose, seconds
from tests.deploy.tree import Container, Tree, build
from tests.deploy.unit import try_unit
from tests.running import wait_until

WORK = ROOT / "build" / "image"
FORBIDDEN = ("cc", "gcc", "g++", "c++", "clang", "make", "ld", "pip", "pip3", "curl", "wget", "git")


class Runtime:
    """The image's last stage as a container: what it says of itself, in a root that cannot be written."""

    def __init__(self, stage: Stage, tree: Tree, volumes: dict[str, Path]) -> None:
        self.stage = stage
        self.user = stage.last("USER").text
        self.folder = stage.last("WORKDIR").text
        self.environment = stage.pairs("ENV") | {"CDC_HTTP_PORT": str(free_port())}
        self.container = Container(tree, tree.root.parent / "container", volumes)

    def command(self, *words: str) -> list[str]:
        """A command as the image's user."""
        return self.container.command(words, folder=self.folder, user=self.user)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """It runs to its end."""
        return subprocess.run(
            self.command(*words), check=False, env=self.environment, capture_output=True, text=True, timeout=60
        )

    def assert_read_only(self, *folders: str) -> None:
        """Not even root could write there."""
        for folder in folders:
            words = self.container.command(["touch", f"{folder}/probe"], folder="/")
            result = subprocess.run(words, check=False, env=self.environment, capture_output=True, text=True)
            assert "Read-only file system" in result.stderr, f"{folder} can be written"

    def is_healthy(self) -> bool:
        """What HEALTHCHECK says."""
        return self.run(*self.stage.health_command).returncode == 0

    @contextmanager
    def running(self, output: Path) -> Iterator[subprocess.Popen[bytes]]:
        """ENTRYPOINT and CMD, both outputs into the file; killed at the end, if it still runs."""
        with output.open("wb") as file:
            process = subprocess.Popen(
                self.command(*self.stage.command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self.environment,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """STOPSIGNAL, and the exit code."""
        process.send_signal(signal.Signals[self.stage.last("STOPSIGNAL").text])
        return process.wait(seconds(compose()["services"]["walsignal"]["stop_grace_period"]))


def main(extras: list[str]) -> None:
    """Build without extras and try all of it; then with each choice of extras, whether its handlers load."""
    base = WORK / "base"
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], check=False, capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    for choice in extras:
        print(f"=== EXTRAS={choice!r}", flush=True)
        stages = read(ROOT / "deploy" / "Dockerfile")
        began = time.monotonic()
        tree = build(stages, ROOT, base, WORK / (choice or "none"), {"EXTRAS": choice, "REVISION": commit})
        print(f"built in {time.monotonic() - began:.0f} s", flush=True)
        look(stages[-1], tree)
        try_it(stages[-1], tree, choice)
        if not choice:
            try_unit(tree, WORK / "unit", "lin")
    print("check-image: all well")


def look(stage: Stage, tree: Tree) -> None:
    """What must and must not be in it."""
    folders = [*stage.pairs("ENV")["PATH"].split(":"), "/usr/sbin", "/sbin"]
    present = [name for name in FORBIDDEN for folder in folders if os.path.lexists(tree.path(f"{folder}/{name}"))]
    assert not present, f"the last stage holds {present}"
    package = next(tree.path("/opt/walsignal/lib").glob("python3.*/site-packages/cdc"))
    sources, compiled = list(package.rglob("*.py")), list(package.rglob("*.pyc"))
    assert len(compiled) >= len(sources) > 0, "the modules are not compiled"
    size = subprocess.run(["du", "-sm", tree.path("/opt/walsignal")], check=True, capture_output=True, text=True)
    print(f"no compiler, no pip; /opt/walsignal has {size.stdout.split()[0]} MB", flush=True)


def try_it(stage: Stage, tree: Tree, extras: str) -> None:
    """Run it beside a real database: events flow, it is healthy, stops in time, goes on where it was."""
    volume, settings, secrets = (WORK / name for name in ("volume", "settings", "secrets"))
    for folder in (volume, settings, secrets):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    uid, gid = map(int, stage.last("USER").text.split(":"))
    os.chown(volume, uid, gid)
    volume.chmod(0o700)
    with Cluster() as cluster:
        secret = secrets / "dsn"
        secret.write_text(cluster.dsn(tcp=True))
        os.chown(secret, 0, gid)
        secret.chmod(0o440)
        shutil.copy(ROOT / "deploy" / "example" / "cdc.toml", settings)
        runtime = Runtime(
            stage,
            tree,
            {"/var/lib/walsignal": volume, "/etc/walsignal:ro": settings, "/run/secrets:ro": secrets},
        )
        runtime.assert_read_only("/", "/etc/walsignal", "/opt/walsignal", "/tmp", "/run/secrets")
        assert not runtime.is_healthy(), "healthy although nothing runs"
        with cluster.connect() as connection:
            connection.execute((ROOT / "deploy" / "example" / "sql" / "20-example.sql").read_bytes())
        load_handlers(runtime, extras)
        session(runtime, cluster, "ada", WORK / "output-first")
        session(runtime, cluster, "grace", WORK / "output-second")
        assert "ada" not in (WORK / "output-second").read_text(), "the state did not outlive the container"
        assert not runtime.is_healthy(), "healthy although it has ended"


def session(runtime: Runtime, cluster: Cluster, name: str, output: Path) -> None:
    """One container's life: healthy, streaming, a row's event on its standard output, stopped in time."""
    with runtime.running(output) as process:
        wait_until(runtime.is_healthy, 60, "it is not healthy")
        wait_until(lambda: '"streaming"' in output.read_text(), 60, "it does not stream")
        with cluster.connect() as connection:
            connection.execute("INSERT INTO public.users (name, email) VALUES (%s, 'x@example.org')", [name])
        wait_until(lambda: name in output.read_text(), 60, "the event does not arrive")
        began = time.monotonic()
        code = runtime.stop(process)
    assert code == 0, f"exit {code}:\n{output.read_text()[-2000:]}"
    print(f"healthy, streamed, stopped with exit 0 after {time.monotonic() - began:.1f} s", flush=True)


def load_handlers(runtime: Runtime, extras: str) -> None:
    """Every handler whose extra was chosen can be imported."""
    names = ["console", "file_wal", "metrics"]
    if extras == "all":
        names = [point.name for point in entry_points(group="walsignal.handlers")]
    code = (
        "import sys; from importlib.metadata import entry_points\n"
        "found = {one.name: one for one in entry_points(group='walsignal.handlers')}\n"
        "for name in sys.argv[1:]: found[name].load()\n"
    )
    result = runtime.run("python", "-c", code, *names)
    assert result.returncode == 0, result.stderr
    print(f"handlers load: {' '.join(names)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["", "all"])
