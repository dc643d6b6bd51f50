"""The Dockerfiles and compose.yaml: what a linter says of them, and that the files agree with each other.

What is built and run of them: `make check-image`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.dockerfile import Stage, context_files, is_ignored, read
from tests.deploy.files import DEPLOY, ROOT, compose, from_text, least_grace, seconds

DOCKERFILES = [DEPLOY / "Dockerfile", DEPLOY / "postgres" / "Dockerfile"]
IGNORE = (ROOT / ".dockerignore").read_text().splitlines()
LOCKED = re.compile(r"^([\w.-]+)==([^ ;\\]+)", re.MULTILINE)


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    """Of the service's image."""
    return read(DOCKERFILES[0])


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.parent.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    """The linter that also looks into the shell of RUN has no remark, the ignored one aside."""
    result = subprocess.run(
        [Path(sys.executable).parent / "hadolint", file], check=False, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.parent.name)
def test_the_base_can_be_pinned_by_its_digest(file: Path) -> None:
    """BASE as a build argument is what every stage starts from."""
    pinned = "base@sha256:" + "0" * 64
    assert {stage.base for stage in read(file, {"BASE": pinned})} == {pinned}


def test_the_last_stage_is_an_ordinary_account_that_ends_on_sigterm(stages: list[Stage]) -> None:
    """Not root, by number; `cdc run`, which drains on SIGTERM; Python that writes nothing and imports from no cwd."""
    last = stages[-1]
    uid, gid = last.last("USER").text.split(":")
    assert (int(uid), int(gid)) == (10001, 10001)
    assert last.last("STOPSIGNAL").text == "SIGTERM"
    assert last.command == ["cdc", "run"]
    environment = last.pairs("ENV")
    assert environment["PYTHONDONTWRITEBYTECODE"] == environment["PYTHONSAFEPATH"] == "1"
    assert environment["CDC_HTTP_PORT"] == last.last("EXPOSE").text == "9464"
    assert "CDC_HTTP_PORT" in last.health_command[-1]
    assert not [one for one in last.instructions if one.word == "RUN" and "pip" in one.text]


def test_every_file_from_the_network_is_checked_against_its_hash(stages: list[Stage]) -> None:
    """pip fetches by the lock, wheels only; whatever installs takes from what was fetched."""
    runs = [one.text for one in stages[0].instructions if one.word == "RUN" and "/pip " in one.text]
    fetching = [text for text in runs if "--no-index" not in text]
    assert len(runs) == 3
    assert len(fetching) == 1
    assert all(flag in fetching[0] for flag in ("--require-hashes", "--no-deps", "--only-binary :all:", "image.txt"))


def test_the_images_lock_has_what_the_service_needs_in_the_tested_versions() -> None:
    """requirements/image.txt holds all of runtime.txt, and no version that dev.txt does not have."""
    names = ("image", "runtime", "dev")
    locks = {name: dict(LOCKED.findall((ROOT / f"requirements/{name}.txt").read_text())) for name in names}
    assert locks["runtime"].items() <= locks["image"].items() <= locks["dev"].items()
    assert {"hatchling", "confluent-kafka", "aio-pika", "tantivy"} <= locks["image"].keys()


def test_the_context_holds_the_sources_and_no_secret(stages: list[Stage]) -> None:
    """.dockerignore lets through what is copied, and nothing else."""
    copied = [source for one in stages[0].instructions if one.word == "COPY" for source in one.words[:-1]]
    files = {file.as_posix() for file in context_files(ROOT, IGNORE, copied)}
    sources = [path for name in ("cdc", "handlers") for path in (ROOT / name).rglob("*.py")]
    modules = {path.relative_to(ROOT).as_posix() for path in sources}
    assert modules < files
    assert {"pyproject.toml", "README.md", "LICENSE", "requirements/image.txt", "cdc/py.typed"} < files
    build = ("cdc/__pycache__/x.pyc", "requirements/dev.txt", ".venv/pyvenv.cfg")
    for secret in ("deploy/secrets/dsn", ".git/config", "cdc.toml", *build):
        assert is_ignored(Path(secret), IGNORE), secret


def test_an_instruction_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    """The reader that builds the image here must not step over a line."""
    file = tmp_path / "Dockerfile"
    file.write_text("FROM x\nADD https://example.org/x /x\n")
    with pytest.raises(ValueError, match="unknown instruction ADD"):
        read(file)


# compose.yaml -----------------------------------------------------------------------------------------------------


def test_every_service_of_compose_is_hardened() -> None:
    """Root that cannot be written, no capability, none to be gained, health known, a bounded log."""
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "cap_add" not in service, name
        assert "privileged" not in service, name
        assert "healthcheck" in service or name == "walsignal", name
        assert "max-size" in service["logging"]["options"], name


def test_secrets_of_compose_are_files() -> None:
    """No environment variable holds one, each that is mounted is declared, and secrets.sh writes it."""
    file = compose()
    written = set(re.findall(r"^put (\w+)", (DEPLOY / "example/secrets.sh").read_text(), re.MULTILINE))
    declared = {name: one["file"] for name, one in file["secrets"].items()}
    assert declared == {name: f"./secrets/{name}" for name in written}
    for service in file["services"].values():
        assert set(service.get("secrets", [])) <= written
        for variable, value in service.get("environment", {}).items():
            if "PASSWORD" in variable:
                assert variable.endswith("_FILE"), variable
                assert value.removeprefix("/run/secrets/") in service["secrets"], variable


def test_compose_publishes_on_the_loopback_only() -> None:
    """What is published is for this host; the database is not published at all."""
    services = compose()["services"]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))
    assert "ports" not in services["database"]
    assert compose()["networks"]["data"]["internal"] is True


def test_compose_mounts_what_is_there() -> None:
    """Each source is a declared volume, or a path of the repository; what is written lies in a volume."""
    file = compose()
    for service in file["services"].values():
        for mount in service["volumes"]:
            source, _, options = mount.split(":")[0], mount.split(":")[1], mount.split(":")[2:]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
                assert options == ["ro"], mount
            else:
                assert source in file["volumes"], mount


def test_the_example_of_compose_fits_its_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cdc.toml loads; its secret, state and port are those of compose.yaml; the grace outlasts every stop."""
    service = compose()["services"]["walsignal"]
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, value)
    config = from_text((DEPLOY / "example/cdc.toml").read_text(), tmp_path, secrets="/run/secrets")
    assert service["secrets"] == ["dsn"]
    assert config.state.url.startswith("sqlite:////var/lib/walsignal/")
    assert "state:/var/lib/walsignal" in service["volumes"]
    assert config.http.host == "0.0.0.0"
    assert service["ports"] == [f"127.0.0.1:{config.http.port}:{config.http.port}"]
    assert seconds(service["stop_grace_period"]) > least_grace(config)
    database = compose()["services"]["database"]
    assert seconds(database["stop_grace_period"]) > seconds(service["stop_grace_period"])  # its end waits for ours


def test_prometheus_and_grafana_find_what_compose_names() -> None:
    """The targets, the data source and the dashboards' folder are names and places of compose.yaml."""
    services = compose()["services"]
    places = {mount.split(":")[1] for mount in services["grafana"]["volumes"]}
    hosts = {f"{name}:{port.split(':')[-1]}" for name, service in services.items() for port in service.get("ports", [])}
    files = [file for name in ("prometheus", "grafana") for file in DEPLOY.glob(f"{name}/**/*.y*ml")]
    for file, text in ((file, file.read_text()) for file in files if "rules" not in file.parts):
        assert set(re.findall(r'targets: \["([^"]+)"\]', text)) <= hosts, file
        assert set(re.findall(r"url: http://(\S+)", text)) <= hosts, file
        assert set(re.findall(r"path: (/\S+)", text)) <= places, file


def test_the_secrets_of_the_example_are_made_once(tmp_path: Path) -> None:
    """Each password is its own, the DSN holds the role's, only we may enter the folder, a second run keeps all."""
    script = tmp_path / "example" / "secrets.sh"
    script.parent.mkdir()
    script.write_text((DEPLOY / "example/secrets.sh").read_text())
    said = [subprocess.run(["bash", script], check=True, capture_output=True, text=True).stdout for _ in range(2)]
    folder = tmp_path / "secrets"
    texts = {file.name: file.read_text().strip() for file in folder.iterdir()}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(set(texts.values())) == 4
    assert texts["dsn"] == f"host=database dbname=shop user=cdc password={texts['cdc_password']}"
    assert all(len(texts[name]) == 48 for name in texts if name != "dsn")
    assert (said[0].count("deploy/secrets/"), said[1]) == (4, "")
