"""The pages of docs/handlers: their tables are those of the code, and their examples load as written.

That they work, at real servers: `test_examples.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from enum import Enum
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ByteSize, Field, SecretStr

from cdc import HandlerOptions
from cdc.config import Config, load
from cdc.loading import load_callback
from tests.conftest import Database
from tests.docs.blocks import named_blocks as blocks
from tests.docs.pages import PAGES, entries, model_of, page_of
from tests.docs.tables import BEGIN, END, filled, options_table
from tests.docs.variables import values_for

WRITTEN = [entry for entry in entries() if find_spec(entry.module) is not None]
ENTRIES = [entry for entry in WRITTEN if page_of(entry).exists()]
STUB = '[source]\ndsn = "postgresql://cdc@localhost/db"\n'

each_page = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])


def example(entry: EntryPoint) -> str:
    """The section of cdc.toml on the page: its first block with [[handlers]]."""
    found = [text for _, text in blocks(page_of(entry).read_text(), "toml") if "[[handlers]]" in text]
    assert found, f"{page_of(entry).name} has no example with [[handlers]]"
    return found[0]


def config_of(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The configuration of an example, with a value for each of its variables."""
    for name, value in values_for(text).items():
        monkeypatch.setenv(name, value)
    file = folder / "cdc.toml"
    file.write_text(text if "[source]" in text else STUB + text)
    return load(file)


def test_every_handler_has_a_page() -> None:
    """Of its short name, in docs/handlers."""
    assert [entry.name for entry in entries() if entry not in ENTRIES] == []


@each_page
def test_options_table_is_that_of_the_code(entry: EntryPoint) -> None:
    """If not: make docs."""
    model = model_of(entry)
    if model is None:
        pytest.skip("its constructor takes keyword arguments, not yet a model")
    page = page_of(entry).read_text()

    assert page == filled(page, options_table(model)), "make docs"


@each_page
def test_example_makes_its_handlers(entry: EntryPoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written: the loader takes it, and one of its handlers is that of the page."""
    config = config_of(example(entry), tmp_path, monkeypatch)
    for handler in config.handlers:
        load_callback(handler, config.folder, config.python_path)

    assert entry.name in {handler.callback for handler in config.handlers}


def test_own_handler_of_the_guide_works_as_written(database: Database, tmp_path: Path) -> None:
    """Its files are written as they stand on the page, its configuration is loaded, its test is run."""
    page = (PAGES / "own.md").read_text()
    files = [block for language in ("python", "toml") for block in blocks(page, language) if block[0]]
    for name, text in files:
        (tmp_path / name).write_text(text)
    assert {name for name, _ in files} == {"totals.py", "test_totals.py", "cdc.toml"}

    environment = {**os.environ, "TOTALS_DSN": database.dsn, "CDC_DSN": database.dsn}
    plain = ["-p", "no:cacheprovider", "-p", "no:asyncio"]  # as in an environment with pytest and no plugins
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *plain, "test_totals.py"]
    tested = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "1 passed" in tested.stdout
    load = (
        "from pathlib import Path; from cdc.config import load; from cdc.loading import load_callback\n"
        "config = load(Path('cdc.toml'))\n"
        "print([type(load_callback(one, config.folder, config.python_path)).__name__ for one in config.handlers])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", load], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert loaded.stdout == "['Totals']\n", loaded.stderr


def test_overview_names_every_page() -> None:
    """A handler that has a page is found in the table."""
    overview = (PAGES / "README.md").read_text()

    for entry in entries():
        assert f"[`{entry.name}`]({entry.name}.md)" in overview, entry.name


class Color(Enum):
    """Choices."""

    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    """Inside."""

    to: str = Field(description="Whom | what.")


class Outer(HandlerOptions):
    """All kinds."""

    secret: SecretStr = Field(description="S.")
    count: int | None = Field(default=None, ge=1, le=9, description="C.")
    mode: Literal["a", "b"] = Field(default="a", description="M.")
    color: Color = Field(default=Color.RED, description="O.")
    size: ByteSize = Field(default=ByteSize(1024), description="B.")
    paths: tuple[Path, ...] = Field(default=(Path("x"),), description="P.")
    inner: list[Inner] = Field(default_factory=list, description="I.")
    headers: dict[str, str] = Field(default_factory=dict, description="H.")


def test_table_shows_types_bounds_defaults_and_what_is_inside() -> None:
    """The generator itself."""
    assert options_table(Outer).splitlines() == [
        "| option | type | default | what |",
        "|---|---|---|---|",
        "| `secret` | text, secret | required | S. |",
        "| `count` | integer ≥ 1 ≤ 9 |  | C. |",
        '| `mode` | `"a"`, `"b"` | `"a"` | M. |',
        '| `color` | `"red"`, `"blue"` | `"red"` | O. |',
        '| `size` | size, such as `"64MiB"` | `1024` | B. |',
        '| `paths` | list of path | `["x"]` | P. |',
        "| `inner` | list of table, see below | `[]` | I. |",
        "| `headers` | table of text | `{}` | H. |",
        "",
        "Each of `inner`:",
        "",
        "| option | type | default | what |",
        "|---|---|---|---|",
        r"| `to` | text | required | Whom \| what. |",
    ]


def test_page_without_markers_is_told() -> None:
    """Nobody shall believe that its table is up to date."""
    assert filled(f"a {BEGIN} old {END} b", "T") == f"a {BEGIN}\nT\n{END} b"
    with pytest.raises(ValueError, match="the page needs"):
        filled("no markers", "T")
