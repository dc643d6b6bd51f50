"""What others may write, and the service would run: told, and refused where there is a list of what may run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc.config import load
from cdc.config.trust import writable_by_others
from cdc.errors import ConfigError

FILE = """
python_path = ["lib"]
{}
[source]
dsn = "postgresql:///none"
[[handlers]]
callback = "company.own:function"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration and the package that it names, writable by their owner alone."""
    monkeypatch.delenv("CDC_ALLOWED_CALLBACKS", raising=False)
    package = tmp_path / "lib" / "company"
    package.mkdir(parents=True)
    (tmp_path / "cdc.toml").write_text(FILE.format(""))
    for name in ("__init__.py", "own.py"):
        (package / name).write_text("")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tmp_path


def test_what_only_its_owner_writes_is_not_told(folder: Path) -> None:
    """The usual case is quiet."""
    assert load(folder / "cdc.toml").warnings == ()


@pytest.mark.parametrize(
    "name", ["cdc.toml", ".", "lib", "lib/company", "lib/company/__init__.py", "lib/company/own.py"]
)
@pytest.mark.parametrize(("bits", "who"), [(0o020, "its group"), (0o002, "everybody")])
def test_whatever_others_can_write_is_told_with_the_remedy(folder: Path, name: str, bits: int, who: str) -> None:
    """The file, its folder, the folders of callbacks and each file that an import reads."""
    path = folder / name
    path.chmod(path.stat().st_mode | bits)

    (warning,) = load(folder / "cdc.toml").warnings

    assert warning == f"{path} can be written by {who}, who can so run code as this service; chmod go-w {path}"


@pytest.mark.parametrize("by", ["file", "environment"])
def test_with_an_allow_list_it_is_refused(folder: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of names is worth nothing where others change what stands behind them."""
    (folder / "lib" / "company" / "own.py").chmod(0o664)
    assert len(load(folder / "cdc.toml").warnings) == 1
    if by == "file":
        (folder / "cdc.toml").write_text(FILE.format('allowed_callbacks = ["company.*"]'))
    else:
        monkeypatch.setenv("CDC_ALLOWED_CALLBACKS", "company.*")

    with pytest.raises(ConfigError, match="1 problem") as caught:
        load(folder / "cdc.toml")

    assert "own.py can be written by its group" in caught.value.problems[0]


def test_sticky_folder_of_the_file_is_safe_and_one_of_callbacks_is_not(folder: Path) -> None:
    """In a folder like /tmp others cannot replace the file, but they can add a module."""
    folder.chmod(0o1777)
    (folder / "lib").chmod(0o1777)

    (warning,) = load(folder / "cdc.toml").warnings

    assert warning.startswith(f"{folder / 'lib'} can be written by everybody")


def test_what_nobody_can_write_is_not_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ConfigMap is a folder of mode 0777, on a file system that is mounted to be read."""
    folder.chmod(0o777)
    monkeypatch.setattr("cdc.config.trust.is_read_only", lambda _: True)

    assert writable_by_others(folder / "cdc.toml", (), ()) == ()
