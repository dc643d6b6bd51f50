"""The real service with secrets from every source, through failures: none of them is in anything it says or keeps."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cdc.demo.processes import children, free_port
from tests.conftest import Database
from tests.running import ROOT, Child, child, wait_until, walsender
from tests.toml import toml

WAYS = ("keywords", "environment", "file", "passfile", "PGPASSWORD")
ODD = "p@s/:%'\"\\ "  # in front of each password: whoever only thinks of plain letters shows the rest

HANDLER = '''
import os


class Leaky:
    """Fails with its own secret in the text, as libraries do."""

    def __init__(self, *, dsn: str, path: str = ""):
        self.dsn = dsn

    def handle(self, event):
        raise OSError(f"cannot connect to {self.dsn}")
'''


class Vault:
    """Makes secrets, and finds them again: as they are, and as URIs, JSON and base64 write them."""

    def __init__(self) -> None:
        self._tokens: list[str] = []

    def password(self) -> str:
        """One with characters that have to be quoted."""
        return f"{ODD}{self.token()}"

    def token(self) -> str:
        """One of plain letters. All that is looked for is such a token, or its base64."""
        self._tokens.append(f"hush{secrets.token_hex(12)}")
        return self._tokens[-1]

    def found_in(self, text: bytes) -> list[str]:
        """The tokens in `text`."""
        return [
            token
            for token in self._tokens
            if token.encode() in text or base64.b64encode(token.encode()).rstrip(b"=") in text
        ]


@pytest.fixture
def vault() -> Vault:
    """Of one test."""
    return Vault()


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """A role of the test's own that may replicate; the server asks for its password over TCP."""
    name = f"reader_{secrets.token_hex(4)}"
    database.execute(f"CREATE ROLE {name} LOGIN REPLICATION; GRANT CREATE ON DATABASE {database.name} TO {name}")
    yield name
    database.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def set_password(database: Database, role: str, password: str) -> None:
    """Not in clear text: the server's log would keep it, and that is looked through."""
    with database.connect() as connection:
        scrambled = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(scrambled)))


def source(way: str, database: Database, role: str, password: str, folder: Path) -> tuple[str, dict[str, str]]:
    """What stands in the file as source.dsn, and the environment that goes with it."""
    host, port = "127.0.0.1", database.cluster.port
    keywords = make_conninfo("", host=host, port=str(port), user=role, dbname=database.name)
    uri = f"postgresql://{role}:{urllib.parse.quote(password, safe='')}@{host}:{port}/{database.name}"
    if way == "keywords":
        return make_conninfo(keywords, password=password), {}
    if way == "environment":
        return "${SOURCE_DSN}", {"SOURCE_DSN": uri}
    if way == "PGPASSWORD":
        return keywords, {"PGPASSWORD": password}
    file = folder / "secret"
    file.touch(mode=0o600)
    if way == "file":
        file.write_text(f"{uri}\n")
        return f"${{file:{file}}}", {}
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    file.write_text(f"{host}:{port}:{database.name}:{role}:{escaped}\n")
    return make_conninfo(keywords, passfile=str(file)), {}


def handlers(vault: Vault) -> dict[str, dict[str, Any]]:
    """Handlers with secrets of several kinds, each of which will fail with every event."""
    port = free_port()
    signing = base64.b64encode(vault.token().encode()).decode()
    channel = f"mailto://someone:{vault.token()}@127.0.0.1:{port}/?from=a@example.com&to=b@example.com"
    return {
        "hook": {
            "callback": "webhook",
            "options": {
                "url": f"http://127.0.0.1:{port}/{vault.token()}?key={vault.token()}",
                "secrets": [f"whsec_{signing}"],
                "headers": {"authorization": f"Bearer {vault.token()}"},
                "allow_http": True,
                "allow_internal": True,
            },
        },
        "people": {
            "callback": "notify",
            "options": {"channels": {"ops": channel}, "rules": [{"name": "all", "channels": ["ops"]}]},
        },
        "leaky": {
            "callback": "leaky:Leaky",
            "options": {"dsn": make_conninfo("", host="db", password=vault.password())},
        },
    }


def unopened(vault: Vault) -> dict[str, dict[str, Any]]:
    """Handlers that look for their server as they open, where none is."""
    port = free_port()
    user_info = f"someone:{urllib.parse.quote(vault.password(), safe='')}@127.0.0.1:{port}"
    return {
        "cache": {"url": f"redis://{user_info}/0", "rules": [{"key": "a:{record_id}", "action": "delete"}]},
        "redis_stream": {"url": f"redis://{user_info}/0"},
        "rabbitmq": {"servers": [f"127.0.0.1:{port}"], "user": "someone", "password": vault.password()},
        "nats": {"servers": [f"nats://127.0.0.1:{port}"], "user": "someone", "password": vault.password()},
    }


def write(service: Child, dsn: str, described: dict[str, dict[str, Any]]) -> None:
    """cdc.toml, closed to others as it holds passwords; the service chooses its port."""
    lines = ['python_path = ["."]', "[source]", f"dsn = {json.dumps(dsn)}", f'slot = "{service.slot}"']
    lines += ["[state]", f'url = "sqlite:///{service.state_path}"', "checkpoint_interval_seconds = 0.1"]
    lines += ["[http]", "port = 0", "[log]", 'level = "debug"', 'format = "json"']
    lines += ["[signal]", "drain_timeout_seconds = 2"]
    for name, handler in described.items():
        lines += ["[[handlers]]", f'name = "{name}"', f'callback = "{handler["callback"]}"', "max_attempts = 1"]
        lines += [f"options = {toml(handler['options'])}"]
    file = service.folder / "cdc.toml"
    file.touch(mode=0o600)
    file.write_text("\n".join(lines) + "\n")


def served(port: int) -> Iterator[tuple[str, bytes]]:
    """Every endpoint's answer."""
    for path in ("/", "/metrics", "/healthz", "/readyz", "/status"):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
                yield path, answer.read() + str(answer.headers).encode()
        except urllib.error.HTTPError as error:
            yield path, error.read() + str(error.headers).encode()


def told(service: Child) -> Iterator[tuple[str, bytes]]:
    """What the command line prints, for people and for programs."""
    for arguments in (
        ["check", "--json"],
        ["status", "--json"],
        ["handlers", "list", "--json"],
        ["dead-letters", "list", "--json"],
        ["dead-letters", "show", "1"],
        ["dead-letters", "show", "1", "--json"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "cdc.cli", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=service.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **service.environment},
            timeout=60,
            check=False,
        )
        yield f"cdc {' '.join(arguments)}", done.stdout + done.stderr


def shown_by_ps(pid: int) -> bytes:
    """The command lines of the service and of what it has started."""
    return b"".join(Path(f"/proc/{one}/cmdline").read_bytes() for one in (pid, *children(pid)))


@pytest.mark.parametrize("way", WAYS)
def test_no_secret_is_in_anything_the_service_says_or_keeps(
    database: Database, role: str, vault: Vault, tmp_path: Path, way: str
) -> None:
    """Through failed handlers, a lost connection and a refused password; the command line at the first of the ways."""
    right = vault.password()
    set_password(database, role, right)
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    (tmp_path / "leaky.py").write_text(HANDLER)
    dsn, environment = source(way, database, role, right, tmp_path)
    written: list[tuple[str, bytes]] = []
    with child(tmp_path, database.dsn) as service:
        service.environment = environment
        write(service, dsn, handlers(vault))
        service.start()
        port = service.log("http_listening")[-1]["port"]
        database.execute("INSERT INTO t VALUES (1)")
        wait_until(lambda: _failed(service) >= {"hook", "people", "leaky"}, what="all have failed")
        written += served(port)
        written.append(("ps", shown_by_ps(service.pid)))
        written.append(("pg_stat_activity", _activity(database)))

        end_connection(database, service)
        service.wait_for_log("streaming", 2)
        written += served(port)
        set_password(database, role, vault.password())  # from now on ours is wrong
        end_connection(database, service)
        assert service.wait(60) == 1
        assert "password authentication failed" in service.log_path.read_text()
        if way == WAYS[0]:
            written += told(service)

        written += [
            (path.name, path.read_bytes()) for path in tmp_path.iterdir() if path.name not in {"cdc.toml", "secret"}
        ]
        written.append(("the server's log", database.cluster.log_file.read_bytes()))

    assert {name: found for name, text in written if (found := vault.found_in(text))} == {}
    assert {name for name, text in written if not text and name.startswith(("/", "cdc ", "ps"))} == set()


def test_handler_that_cannot_be_opened_shows_no_secret(database: Database, vault: Vault, tmp_path: Path) -> None:
    """The service ends with what its library said, but for the password."""
    with ExitStack() as stack:
        services = []
        for name, options in unopened(vault).items():
            folder = tmp_path / name
            folder.mkdir()
            service = stack.enter_context(child(folder, database.dsn))
            write(service, database.dsn, {name: {"callback": name, "options": options}})
            service.begin()
            services.append(service)
        codes = {service.folder.name: service.wait(60) for service in services}
        logs = {service.folder.name: service.log_path.read_bytes() for service in services}

    assert codes == dict.fromkeys(codes, 1), logs
    assert {name for name, log in logs.items() if b"cannot be opened" not in log} == set()
    assert {name: found for name, log in logs.items() if (found := vault.found_in(log))} == {}


def end_connection(database: Database, service: Child) -> None:
    """As an administrator does."""
    wait_until(lambda: walsender(database.cluster, service.slot), what="somebody streams")
    database.execute(
        f"SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = '{service.slot}'"
    )


def _failed(service: Child) -> set[str]:
    """Handlers with dead letters."""
    state = service.state()
    try:
        return {total.callback for total in state.letter_totals()}
    finally:
        state.close()


def _activity(database: Database) -> bytes:
    """All that a superuser sees of the connections to the server."""
    return str(database.execute("SELECT * FROM pg_stat_activity")).encode()


def test_search_finds_a_secret_however_it_is_written(vault: Vault) -> None:
    """The check itself: quoted, in JSON, in a URI, in base64."""
    password = vault.password()
    token = password.removeprefix(ODD)

    for text in (
        password,
        json.dumps(password),
        urllib.parse.quote(password),
        base64.b64encode(token.encode()).decode(),
    ):
        assert vault.found_in(f"before {text} after".encode()) == [token]
    assert vault.found_in(b"nothing") == []


def test_wrong_configuration_shows_no_secret(vault: Vault, tmp_path: Path) -> None:
    """Mistakes beside a secret, and in it: the refusal names keys, and the file's own words at most."""
    token = vault.token()
    file = tmp_path / "cdc.toml"
    (tmp_path / "secret").write_text(token)
    file.write_text(
        f'[source]\ndsn = "postgresql://u:{token}@h:port/x y"\nslot = "${{file:secret}}-A"\n'
        f'[state]\nurl = "mysql://u:{token}@h/x"\n[http]\nport = "${{TOKEN}}"\n'
        f'[[handlers]]\ncallback = "webhook"\n[handlers.options]\nurl = ["{token}"]\nsecrets = "{token}"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "cdc.cli", "run", "--config", str(file)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TOKEN": token},
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert b"source.slot" in done.stderr
    assert vault.found_in(done.stdout + done.stderr) == []
