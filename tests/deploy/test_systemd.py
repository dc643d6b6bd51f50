"""deploy/systemd: what systemd itself says of the unit, and that it fits the service."""

from __future__ import annotations

import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from cdc.config import load
from cdc.errors import ConfigError, SlotInvalidated
from tests.deploy.files import DEPLOY, least_grace, seconds

UNIT = DEPLOY / "systemd" / "walsignal.service"
EXPOSURE = 15  # tenths; systemd calls up to 2.0 "OK", an unhardened service has 9.6


def settings() -> dict[str, str]:
    """[Service]; of a name that stands twice, the last."""
    unit = ConfigParser(strict=False, interpolation=None, delimiters=["="])
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    return dict(unit["Service"])


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with the program of this environment in place of the installed one."""
    program = Path(sys.executable).parent / "cdc"
    file = tmp_path / UNIT.name
    file.write_text(UNIT.read_text().replace("/opt/walsignal/bin/cdc", str(program)))
    return file


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """systemd-analyze, which needs no systemd to run."""
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], check=False, capture_output=True, text=True, timeout=60
    )


def test_systemd_understands_the_unit(unit: Path) -> None:
    """Every setting is known and well-formed, every program is there."""
    result = analyze("verify", unit)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_a_setting_that_systemd_does_not_know_is_told(unit: Path) -> None:
    """The check above can fail."""
    unit.write_text(unit.read_text().replace("TimeoutStopSec=60", "TimeoutStopSec=soon"))
    assert "Failed to parse time value" in analyze("verify", unit).stderr


def test_the_unit_is_hardened(unit: Path) -> None:
    """The exposure that systemd computes stays below what a service with a network can reach."""
    result = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", unit)
    assert result.returncode == 0, result.stdout[-300:]
    for line in ("ProtectSystem=strict", "PrivateDevices=yes"):
        unit.write_text(unit.read_text().replace(line, ""))
    assert analyze("security", "--offline=true", f"--threshold={EXPOSURE}", unit).returncode != 0


def test_a_stop_has_time_to_drain_and_what_cannot_be_mended_stays_down(tmp_path: Path) -> None:
    """TimeoutStopSec outlasts the default drain; the exit codes that no restart mends are excepted."""
    file = tmp_path / "cdc.toml"
    file.write_text('[source]\ndsn = "host=x"\n')
    unit = settings()
    assert seconds(unit["TimeoutStopSec"]) > least_grace(load(file))
    assert unit["Restart"] == "on-failure"
    codes = {int(code) for code in unit["RestartPreventExitStatus"].split()}
    assert codes == {ConfigError.exit_code, SlotInvalidated.exit_code}
    assert shlex.split(unit["ExecReload"]) == ["/bin/sh", "-c", 'kill -HUP "$MAINPID"']


def test_the_credential_is_what_the_example_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd hands the DSN over in $CREDENTIALS_DIRECTORY; the state lies in the StateDirectory."""
    name, _, origin = settings()["LoadCredential"].partition(":")
    (tmp_path / name).write_text("host=db.example.org user=cdc password=s3cret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    config = load(DEPLOY / "example" / "cdc.toml")
    assert config.source.dsn == "host=db.example.org user=cdc password=s3cret"
    assert origin == "/etc/walsignal/secrets/dsn"
    assert config.state.url.startswith(f"sqlite:////var/lib/{settings()['StateDirectory']}/")
    assert config.http.host == "127.0.0.1"


def test_sysusers_makes_the_account_of_the_unit(tmp_path: Path) -> None:
    """In a root of its own, so that this machine keeps its accounts."""
    for folder in ("etc", "usr/lib/sysusers.d"):
        (tmp_path / folder).mkdir(parents=True)
    text = (DEPLOY / "systemd/walsignal.sysusers.conf").read_text()
    (tmp_path / "usr/lib/sysusers.d/walsignal.conf").write_text(text)
    result = subprocess.run(["systemd-sysusers", f"--root={tmp_path}"], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    account = (tmp_path / "etc/passwd").read_text()
    assert f"{settings()['User']}:x:" in account
    assert "/nologin" in account
