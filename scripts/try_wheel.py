"""Usage: try_wheel.py, with the Python of an environment that holds the wheel and its locked dependencies alone.

`cdc init`, `check` and `run` on a throw-away PostgreSQL for some events, and what each handler says whose extra is not
there. Ends with an AssertionError where something is not as it should be.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cdc.demo.cluster import Cluster

CDC = Path(sys.executable).with_name("cdc")
SECONDS = 60
EVENTS = 3
EXTRAS: dict[str, str] = {  # as little as makes each of them look for its library
    "audit_log": 'dsn = "postgresql:///none"',
    "cache": 'rules = [{ key = "a", action = "delete" }]',
    "file_wal": 'directory = "zstd"\ncompression = "zstd"',
    "kafka": 'bootstrap_servers = ["127.0.0.1:1"]',
    "nats": "",
    "notify": 'channels = { a = "json://127.0.0.1" }\nrules = [{ name = "a", channels = ["a"] }]',
    "rabbitmq": "",
    "redis_stream": "",
    "search_index": 'folder = "index"\nfields = { a = "text" }',
    "webhook": 'url = "https://example.com"\nsecrets = ["whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"]',
}


def cdc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command, at work in `folder`."""
    return subprocess.run([CDC, *arguments], cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)


def events_arrive(folder: Path, cluster: Cluster) -> None:
    """From the file of `cdc init`, with a handler added, to events on the disk and a clean end."""
    assert cdc(folder, "init").returncode == 0
    file = folder / "cdc.toml"
    text = file.read_text().replace("# port = 9464", "port = 0")
    file.write_text(
        f'{text}\n[[handlers]]\nname = "log"\ncallback = "file_wal"\noptions = {{ directory = "events" }}\n'
    )
    checked = cdc(folder, "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with (folder / "log").open("wb") as log:
        service = subprocess.Popen([CDC, "run"], cwd=folder, stdout=log, stderr=log)
    try:
        wait(lambda: slot_is_active(cluster), folder, service)
        with cluster.connect() as connection:
            connection.execute("INSERT INTO t SELECT generate_series(1, %s)", [EVENTS])
        wait(lambda: len(written(folder)) >= EVENTS, folder, service)
        service.send_signal(signal.SIGTERM)
        code = service.wait(SECONDS)
    finally:
        service.kill()
        service.wait()
    assert code == 0, (folder / "log").read_text()
    assert [json.loads(line.partition(b" ")[2] if line[:1] != b"{" else line) for line in written(folder)]


def wait(condition: Any, folder: Path, service: subprocess.Popen[bytes]) -> None:
    """Until it is true; not longer than the service lives."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        alive = service.poll() is None and time.monotonic() < deadline
        assert alive, f"not within {SECONDS} s, or the service has ended:\n{(folder / 'log').read_text()}"
        time.sleep(0.02)


def slot_is_active(cluster: Cluster) -> bool:
    """Whether the service streams."""
    with cluster.connect() as connection:
        return connection.execute("SELECT 1 FROM pg_replication_slots WHERE active").fetchone() is not None


def written(folder: Path) -> list[bytes]:
    """Lines of the file WAL."""
    return [line for path in sorted((folder / "events").glob("*.jsonl")) for line in path.read_bytes().splitlines()]


def extras_are_named(folder: Path) -> None:
    """Each handler whose library is missing says what installs it."""
    lines = ['[source]\ndsn = "postgresql://127.0.0.1:1/none"\n[http]\nenabled = false']
    lines += [
        f'[[handlers]]\nname = "{name}"\ncallback = "{name}"\n[handlers.options]\n{EXTRAS[name]}' for name in EXTRAS
    ]
    file = folder / "extras.toml"
    file.write_text("\n".join(lines) + "\n")
    answer = cdc(folder, "check", "--json", "--config", str(file))
    said = [finding["message"] for finding in json.loads(answer.stdout)["findings"] if finding["code"] == "handler"]
    silent = {name for name in EXTRAS if not any(f"pip install 'walsignal[{name}]'" in message for message in said)}
    assert not silent, (silent, said)


def main() -> None:
    """All of it."""
    with tempfile.TemporaryDirectory() as path, Cluster(settings={"fsync": "off"}) as cluster:
        os.environ["CDC_DSN"] = cluster.dsn()
        with cluster.connect() as connection:
            connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
        events_arrive(Path(path), cluster)
        extras_are_named(Path(path))
        version = cluster.server_version // 10_000
    print(f"wheel: cdc init, check and run work on Python {sys.version.split()[0]} with PostgreSQL {version}")


if __name__ == "__main__":
    main()
