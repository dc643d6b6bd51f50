"""What is built and how it is checked elsewhere: the same bytes twice, and workflows that only call make."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
MADE = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)
CALL = re.compile(r"make (?P<target>[a-z-]+)(?: [A-Z]+=\S+| [A-Z]+=\$\{\{ matrix\.[a-z]+ \}\})*")


def built(folder: Path, umask: int) -> dict[str, bytes]:
    """Wheel and sdist, built once more."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", folder],
        cwd=ROOT,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        umask=umask,
        capture_output=True,
        timeout=60,
        check=True,
    )
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    """Whoever builds a release anew can compare it with the one that was published."""
    first, second = built(tmp_path / "first", 0o022), built(tmp_path / "second", 0o077)

    assert {Path(name).suffix for name in first} == {".whl", ".gz"}
    assert first == second


def test_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    """No test, bench or file of a try-out comes along."""
    built(tmp_path, 0o022)
    (wheel,) = tmp_path.glob("*.whl")

    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}

    assert {re.sub(r"-[0-9.]+\.", ".", name) for name in tops} == {"cdc", "handlers", "walsignal.dist-info"}


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_every_locked_distribution_has_its_hashes(lock: Path) -> None:
    """And make installs nothing of them without."""
    entries = re.split(r"\n(?=\S)", re.sub(r"^ *#.*$", "", lock.read_text(), flags=re.MULTILINE).strip())

    assert all(re.match(r"\S+==\S+.*--hash=sha256:[0-9a-f]{64}", entry, re.DOTALL) for entry in entries)
    (install,) = re.findall(r"^INSTALL_LOCKED := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "--require-hashes" in install


def jobs(workflow: Path) -> dict[str, dict[str, Any]]:
    """By name."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(workflow.read_text())["jobs"]
    return found


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_only_calls_targets_of_make(workflow: Path) -> None:
    """What fails there can be run anywhere; every target is there."""
    targets = set(MADE.findall((ROOT / "Makefile").read_text()))
    steps = [step for job in jobs(workflow).values() for step in job["steps"]]

    calls = [CALL.fullmatch(step["run"]) for step in steps if "run" in step]

    assert calls
    assert all(calls)
    assert {call["target"] for call in calls if call} <= targets


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_may_read_and_nothing_more(workflow: Path) -> None:
    """No secret, no token that writes or stays, no branch's code with more rights than a reader's."""
    text, described = workflow.read_text(), yaml.safe_load(workflow.read_text())
    steps = [step for job in described["jobs"].values() for step in job["steps"]]
    used = {step["uses"] for step in steps if "uses" in step}

    assert described["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in described["jobs"].values())
    assert "concurrency" in described
    assert "secrets." not in text
    assert "pull_request_target" not in text
    assert all(re.fullmatch(r"actions/[a-z-]+@(v\d+|[0-9a-f]{40})", use) for use in used)
    assert all(step["with"]["persist-credentials"] is False for step in steps if "checkout" in step.get("uses", ""))


def test_matrix_covers_what_the_project_promises() -> None:
    """Every Python of the classifiers, every PostgreSQL from the oldest that `cdc check` lets pass."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = {line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)}
    (workflow,) = WORKFLOWS
    matrix = jobs(workflow)["test"]["strategy"]["matrix"]
    pairs = [*matrix["include"], *({"python": one} for one in matrix["python"])]

    assert {pair["python"] for pair in pairs} == promised
    assert set(jobs(workflow)["release"]["strategy"]["matrix"]["python"]) == promised
    assert {*matrix["postgresql"], *(pair["postgresql"] for pair in matrix["include"])} == set(map(str, range(13, 19)))
