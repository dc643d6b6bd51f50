"""docs/security.md: each control has a test that is there, or a sentence why it has none."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "security.md"
ROW = re.compile(r"^\| (?P<concern>[^|]+) \| (?P<control>[^|]+) \| (?P<proof>[^|]+) \|$", re.MULTILINE)
TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)(?:::(?P<name>test_\w+))?`")
CONCERNS = {  # what the field worries about; each is in at least one row
    "role", "publications", "row security", "TLS", "secrets", "HTTP", "cardinality", "import", "SSRF", "signature",
    "log injection", "huge", "PII", "identifiers", "supply chain", "disk of the primary", "container",
}  # fmt: skip


def rows() -> list[re.Match[str]]:
    """Of the table of controls, without its head."""
    _, _, controls = PAGE.read_text().partition("\n## Controls")
    return [row for row in ROW.finditer(controls) if row["concern"] != "concern"]


def functions(file: Path) -> set[str]:
    """Names of the tests in a file."""
    tree = ast.parse(file.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_concern_is_in_the_table() -> None:
    """A row may go only with its concern."""
    text = " ".join(row["concern"] for row in rows()).lower()

    assert {word for word in CONCERNS if word.lower() not in text} == set()


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["control"].strip()[:50])
def test_control_has_a_test_or_a_reason(row: re.Match[str]) -> None:
    """The tests it names exist under these names."""
    named = list(TEST.finditer(row["proof"]))

    assert named or re.match(r"none: \w.{20,}\.$", row["proof"].strip()), row["proof"]
    for test in named:
        file = ROOT / test["file"]
        assert file.is_file(), test["file"]
        assert test["name"] is None or test["name"] in functions(file), test[0]
