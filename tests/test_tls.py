"""TLS to the database, with a certificate authority of the test's own: who is believed, who is not, the password."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from cdc.config import Config, HandlerConfig, HttpConfig, SourceConfig, StateConfig
from cdc.demo.cluster import Cluster
from cdc.errors import ServerUnfit
from cdc.preflight import Finding, Severity, check
from cdc.replication import ReplicationConnection
from tests.conftest import FAST
from tests.running import child, wait_until, walsender

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "connecting.md").read_text()
FOLDER = "/etc/walsignal"  # of the page
ROLE = re.findall(r"^CREATE ROLE cdc .*$", PAGE, re.MULTILINE)[0]
PASSWORD = "pass word, long"
HBA = """
local    all   all       trust
hostssl  shop  cdc_cert  127.0.0.1/32  cert
hostssl  shop  cdc_old   127.0.0.1/32  password
hostnossl shop cdc_plain 127.0.0.1/32  scram-sha-256
hostssl  shop  cdc       127.0.0.1/32  scram-sha-256
"""


@dataclass(frozen=True, slots=True)
class Secured:
    """A server that wants TLS, and the folder with what its clients need."""

    cluster: Cluster
    folder: Path

    def dsn(self, **params: str) -> str:
        """Verified and with a password, by the name in the certificate; `params` say what is different."""
        good = {
            "host": "db.internal",
            "hostaddr": "127.0.0.1",
            "port": str(self.cluster.port),
            "dbname": "shop",
            "user": "cdc",
            "password": PASSWORD,
            "sslmode": "verify-full",
            "sslrootcert": str(self.folder / "ca.crt"),
        }
        return make_conninfo("", **(good | params))

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """As the superuser, through the socket."""
        with self.cluster.connect("shop") as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


def openssl(folder: Path, *arguments: str) -> None:
    """Run it there."""
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)


def make_authority(folder: Path, name: str) -> None:
    """``name.crt`` and ``name.key`` of a new authority."""
    arguments = ["-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    openssl(folder, "req", *arguments, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt")


def make_certificate(folder: Path, name: str, subject: str) -> None:
    """``name.crt`` and ``name.key``, signed by `ca`, for a host or a role."""
    arguments = ["-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={subject}"]
    openssl(folder, "req", *arguments, "-keyout", f"{name}.key", "-out", f"{name}.csr")
    (folder / f"{name}.ext").write_text(f"subjectAltName=DNS:{subject}\n")
    signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext"]
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signing)
    (folder / f"{name}.key").chmod(0o600)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One server for all tests of this file."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ca", "other"):
        make_authority(folder, name)
    make_certificate(folder, "server", "db.internal")
    make_certificate(folder, "client", "cdc_cert")
    (folder / "password").write_text(PASSWORD + "\n")
    cluster = Cluster(settings=FAST)
    try:
        cluster.create()
        for name in ("server.crt", "server.key", "ca.crt"):
            shutil.copy(folder / name, cluster.folder / name)
            cluster._hand_over(cluster.folder / name, 0o600)
        cluster.settings |= {
            "ssl": "on",
            "ssl_cert_file": str(cluster.folder / "server.crt"),
            "ssl_key_file": str(cluster.folder / "server.key"),
            "ssl_ca_file": str(cluster.folder / "ca.crt"),
        }
        (cluster.data / "pg_hba.conf").write_text(HBA)
        cluster.start()
        cluster.create_database("shop")
        with cluster.connect("shop") as connection:
            connection.execute(ROLE.replace("a long random one", PASSWORD).encode())
            for role in ("cdc_cert", "cdc_old", "cdc_plain"):
                connection.execute(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{PASSWORD}'".encode())
            connection.execute("CREATE TABLE items (id int PRIMARY KEY)")
        passfile = folder / "pgpass"
        passfile.write_text(f"db.internal:{cluster.port}:shop:cdc:{PASSWORD}\n")
        passfile.chmod(0o600)
        yield Secured(cluster, folder)
    finally:
        cluster.remove()


def settings(dsn: str, folder: Path, state: str = "") -> Config:
    """A configuration with a handler that can be loaded."""
    return Config(
        source=SourceConfig(dsn=dsn, slot="tls"),
        state=StateConfig(url=state or f"sqlite:///{folder}/state.db"),
        http=HttpConfig(enabled=False),
        handlers=(HandlerConfig(callback="builtins:print", name="printer"),),
    )


async def findings(dsn: str, folder: Path, state: str = "") -> dict[str, Finding]:
    """What `cdc check` finds, by code."""
    return {finding.code: finding for finding in await check(settings(dsn, folder, state))}


SNIPPETS = re.findall(r'^dsn = "(.*)"$', PAGE, re.MULTILINE)


def deliver(secured: Secured, folder: Path, dsn: str, role: str, **environment: str) -> None:
    """One event through the real service; all its connections are encrypted while it runs."""
    with child(folder, "", source={"dsn": dsn}) as service:
        service.environment |= environment
        service.start()
        secured.execute("INSERT INTO items SELECT coalesce(max(id), 0) + 1 FROM items")
        service.wait_for_lines(1)
        ssl: dict[str, bool] = {}

        def is_there() -> bool:
            """The stream, and the monitor beside it, which comes and goes on its own clock."""
            ssl.update(
                secured.execute(
                    "SELECT a.backend_type, bool_and(s.ssl) FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid)"
                    f" WHERE a.usename = '{role}' GROUP BY 1"
                )
            )
            return {"walsender", "client backend"} == set(ssl)

        wait_until(is_there)
        service.stop()
    wait_until(lambda: walsender(secured.cluster, service.slot) is None)
    secured.execute(f"SELECT pg_drop_replication_slot('{service.slot}')")
    assert all(ssl.values())


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_service_runs_with_each_snippet_of_the_page(secured: Secured, tmp_path: Path, number: int) -> None:
    """Verified TLS for stream and ordinary connections: password file, mounted secret, certificate."""
    dsn = SNIPPETS[number].replace(FOLDER, str(secured.folder))
    role = "cdc_cert" if "cdc_cert" in dsn else "cdc"
    # What a resolver and the usual port would do; the DSN stays as it stands on the page.
    deliver(secured, tmp_path, dsn, role, PGHOSTADDR="127.0.0.1", PGPORT=str(secured.cluster.port))
    assert len(SNIPPETS) == 3


def test_password_file_of_the_environment_is_read(secured: Secured, tmp_path: Path) -> None:
    """`PGPASSFILE`, as the page says; without it there is no password, and that is said."""
    dsn = secured.dsn(password="")
    name, _, value = re.findall(r"^export (PGPASSFILE)(=)(.*)$", PAGE, re.MULTILINE)[0]
    deliver(secured, tmp_path, dsn, "cdc", **{name: value.replace(FOLDER, str(secured.folder))})
    with child(tmp_path, "", source={"dsn": dsn}) as service:
        code, text = service.run()
    assert (code, "no password supplied" in text, "0600" in text) == (1, True, True)


REFUSED: Mapping[str, tuple[dict[str, str], str, str]] = {
    "wrong host": ({"host": "other.internal"}, "does not match host name", "name the host"),
    "wrong authority": ({"sslrootcert": "other.crt"}, "certificate verify failed", "sslrootcert"),
    "no authority": ({"sslrootcert": "absent.crt"}, "does not exist", "sslrootcert=/path"),
    "no encryption": ({"sslmode": "disable"}, "no encryption", "sslmode=verify-full"),
    "wrong password": ({"password": "s3cret"}, "authentication failed", "PGPASSFILE"),
    "password itself asked for": ({"user": "cdc_old", "require_auth": "scram-sha-256"}, "requirement", "require_auth"),
    "no channel binding": ({"user": "cdc_old", "channel_binding": "require"}, "channel binding", "channel_binding"),
    "no certificate": ({"user": "cdc_cert"}, "client certificate", "sslcert"),
    "certificate of another role": ({"user": "cdc_cert", "sslcert": "server.crt"}, "certificate", "sslcert"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_connection_is_refused_and_its_remedy_named(secured: Secured, tmp_path: Path, case: str) -> None:
    """Of the stream and of the ordinary connections alike; it is not tried again, and no secret is told."""
    params, words, fix = REFUSED[case]
    params = {key: str(secured.folder / value) if value.endswith(".crt") else value for key, value in params.items()}
    if "sslcert" in params:
        params["sslkey"] = params["sslcert"].removesuffix(".crt") + ".key"
    dsn = secured.dsn(**params)

    found = (await findings(dsn, tmp_path))["unreachable"]
    with pytest.raises(ServerUnfit) as refusal:
        await ReplicationConnection.connect(dsn)

    assert words in found.message
    assert words in refusal.value.message
    assert fix in found.fix
    assert fix in refusal.value.hint
    assert PASSWORD not in repr(found) + str(refusal.value)
    assert "s3cret" not in repr(found) + str(refusal.value)


def test_service_that_may_not_trust_the_server_ends(secured: Secured, tmp_path: Path) -> None:
    """Exit 1 with the remedy: less than what was asked for is never taken."""
    with child(tmp_path, "", source={"dsn": secured.dsn(sslrootcert=str(secured.folder / "other.crt"))}) as service:
        code, text = service.run()
    assert (code, "certificate verify failed" in text, "sslrootcert" in text) == (1, True, True)
    assert PASSWORD not in text


async def test_check_tells_how_far_a_connection_is_to_be_trusted(secured: Secured, tmp_path: Path) -> None:
    """Verified is fine; encrypted only, and in plain text, are warnings with what to add; so is the state's URL."""
    verified = (await findings(secured.dsn(), tmp_path))["tls"]
    assert verified.severity is Severity.OK

    encrypted = (await findings(secured.dsn(sslmode="require", sslrootcert=""), tmp_path))["tls"]
    assert (encrypted.severity, "sslmode=require" in encrypted.message) == (Severity.WARNING, True)
    assert "sslmode=verify-full sslrootcert=" in encrypted.fix

    plain = (await findings(secured.dsn(user="cdc_plain", sslmode="prefer", sslrootcert=""), tmp_path))["tls"]
    assert (plain.severity, "plain text" in plain.message) == (Severity.WARNING, True)

    local = (await findings(secured.cluster.dsn("shop"), tmp_path))["tls"]
    assert (local.severity, "this machine" in local.message) == (Severity.OK, True)

    state = f"postgresql://cdc@db.internal:{secured.cluster.port}/shop?schema=x&hostaddr=127.0.0.1"
    told = (await findings(secured.dsn(), tmp_path, state))["state_tls"]
    assert (told.severity, "state.url" in told.fix) == (Severity.WARNING, True)


def test_rules_of_the_page_are_those_of_the_server() -> None:
    """The lines for pg_hba.conf on the page are those that this file has tried."""
    for line in re.findall(r"hostssl +shop +[^`\n]*", PAGE):
        assert line.split() in [known.split() for known in HBA.splitlines()]
