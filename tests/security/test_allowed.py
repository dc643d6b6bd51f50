"""The allow-list of callbacks: what it lets through, and that nothing is run before it has been asked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc.config import AllowedCallbacks, load
from cdc.errors import ConfigError
from cdc.loading import load_callback

OWN = """
import json
import os
import pathlib
from os import system

(pathlib.Path(__file__).parent / "imported").touch()


def function(event): ...


class Handler:
    def handle(self, event): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `company` with a module that tells when it is imported; its traces go after the test."""
    monkeypatch.delenv("CDC_ALLOWED_CALLBACKS", raising=False)
    package = tmp_path / "company"
    package.mkdir(mode=0o700)
    for name, text in {"__init__.py": "", "own.py": OWN, "other.py": "from company.own import Handler\n"}.items():
        (package / name).write_text(text)
    path, modules = sys.path[:], set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def loaded(folder: Path, callback: str, allowed: str | None = None) -> object:
    """The callback of a file that names it, with `allowed_callbacks` as TOML."""
    path = folder / "cdc.toml"
    lines = [
        'python_path = ["."]',
        *([] if allowed is None else [f"allowed_callbacks = {allowed}"]),
        "[source]",
        'dsn = "postgresql:///none"',
        "[[handlers]]",
        f'callback = "{callback}"',
        'name = "one"',
    ]
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    config = load(path)
    (handler,) = config.handlers
    return load_callback(handler, config.folder, config.python_path)


def refused(folder: Path, callback: str, allowed: str | None = None) -> str:
    """What is said about a callback that must not be let through."""
    with pytest.raises(ConfigError) as caught:
        loaded(folder, callback, allowed)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("entry", "callback"),
    [
        ("*", "company.own:function"),
        ("company.*", "company.own:Handler"),
        ("company.own", "company.own:Handler"),
        ("company.own:Handler", "company.own:Handler"),
        ("company.*", "company.other:Handler"),
        ("company.other:Handler", "company.other:Handler"),
        ("handlers.*", "console"),
        ("handlers.console", "console"),
        ("console", "console"),
    ],
)
def test_listed_callback_is_loaded(folder: Path, entry: str, callback: str) -> None:
    """A package, a module, one name, or a built-in by its short name."""
    assert loaded(folder, callback, f'["nothing.here", "{entry}"]')


@pytest.mark.parametrize(
    ("entry", "callback"),
    [
        ("handlers.*", "company.own:function"),
        ("comp.*", "company.own:function"),
        ("company", "company.own:function"),
        ("company.own:Handler", "company.own:function"),
        ("company.*", "console"),
        ("audit_log", "console"),
    ],
)
def test_unlisted_callback_is_refused_before_it_is_imported(folder: Path, entry: str, callback: str) -> None:
    """To import a module is to run it: the list is asked first, and the refusal names it."""
    problem = refused(folder, callback, f'["{entry}"]')

    assert problem.startswith(f"handlers[one].callback: allowed_callbacks lets through {entry}, and not ")
    assert not (folder / "company" / "imported").exists()


@pytest.mark.parametrize(
    "callback", ["company.own:os.system", "company.own:system", "company.own:json.JSONDecoder", "company.own:os"]
)
def test_what_a_listed_module_only_imports_is_refused(folder: Path, callback: str) -> None:
    """A module that is let through brings its own names along, not all of Python."""
    assert "allowed_callbacks lets through company.*, and not " in refused(folder, callback, '["company.*"]')


def test_list_of_the_environment_cannot_be_widened_by_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever deploys the service sets it; whoever writes the file can only narrow it."""
    monkeypatch.setenv("CDC_ALLOWED_CALLBACKS", "handlers.*, company.other")

    assert loaded(folder, "console", '["*"]')
    assert "$CDC_ALLOWED_CALLBACKS lets through handlers.*, company.other" in refused(folder, "company.own:function")
    assert "allowed_callbacks lets through company.*" in refused(folder, "console", '["company.*"]')


def test_empty_list_of_the_environment_lets_nothing_through(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that somebody emptied is not one that was never set."""
    monkeypatch.setenv("CDC_ALLOWED_CALLBACKS", "")

    assert "$CDC_ALLOWED_CALLBACKS lets through nothing" in refused(folder, "console")


@pytest.mark.parametrize("entry", ["", "company*", "*.own", "company.*.own", "company.own:", "com pany", "a.*:b"])
def test_entry_that_would_not_do_what_it_seems_to_is_an_error(folder: Path, entry: str) -> None:
    """A list with a mistake in it is not a list that is open, or shut, by accident."""
    assert "allowed_callbacks" in refused(folder, "console", f'["{entry}"]')


def test_mistake_in_the_list_of_the_environment_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the variable."""
    monkeypatch.setenv("CDC_ALLOWED_CALLBACKS", "company*")

    assert refused(folder, "console").startswith("$CDC_ALLOWED_CALLBACKS: 'company*' is none of")


def test_list_of_the_environment_is_split_at_commas_and_spaces() -> None:
    """However it is wrapped in a unit or a manifest."""
    found = AllowedCallbacks.of_environment({"CDC_ALLOWED_CALLBACKS": " handlers.*,\n company.own  console, "})

    assert found is not None
    assert found.entries == ("handlers.*", "company.own", "console")
