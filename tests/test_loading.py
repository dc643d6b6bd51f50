"""From a handler's line in the file to its callback: found, made, and with its options checked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from importlib.metadata import entry_points, packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from cdc.config import HandlerConfig
from cdc.errors import ConfigError
from cdc.loading import ENTRY_POINTS, load_callback

MODULE = """
from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from somewhere import Unknown


def function(event): ...


class Handler:
    def __init__(
        self,
        *,
        table: str,
        limit: int = 5,
        price: Decimal | None = None,
        mode: Literal["a", "b"] = "a",
        path: Path = Path("default.log"),
        more: list[Path] | None = None,
    ):
        self.given = {name: value for name, value in locals().items() if name != "self"}

    def handle(self, event): ...


@dataclass
class Data:
    url: str
    schema: list[str] = field(default_factory=list)

    def handle_batch(self, events): ...


class Greedy:
    def __init__(self, known: int, **rest):
        self.given = {"known": known, **rest}

    async def handle(self, event): ...


class Lazy:
    def __init__(self, unknown: Unknown = None, anything=None):
        self.given = (unknown, anything)

    def __call__(self, event): ...


class Failing:
    def __init__(self):
        raise OSError("cannot reach postgres://u:s3cret@h")

    def handle(self, event): ...


class Useless: ...


class Outer:
    class Inner:
        def handle(self, event): ...


instance = Handler(table="made by the module")
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with the user's module `mine`; its traces in this process go after the test."""
    (tmp_path / "mine.py").write_text(MODULE)
    path, modules = sys.path[:], set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


Load = Callable[..., Any]


@pytest.fixture
def load(folder: Path) -> Load:
    """Load a callback from the folder, with options."""

    def loaded(callback: str, python_path: tuple[str, ...] = (".",), **options: Any) -> Any:
        handler = HandlerConfig(callback=callback, name="audit", options=options)
        return load_callback(handler, folder, [Path(one) for one in python_path])

    return loaded


def problems(load: Load, callback: str, **options: Any) -> tuple[str, ...]:
    """What is wrong with a handler that must have something wrong."""
    with pytest.raises(ConfigError) as caught:
        load(callback, **options)
    return caught.value.problems


def test_function_is_taken_as_it_is(load: Load) -> None:
    """package.module:name of a function."""
    assert load("mine:function") is sys.modules["mine"].function


def test_object_of_the_module_is_taken_as_it_is(load: Load) -> None:
    """What is made already and has `handle` needs no options."""
    assert load("mine:instance") is sys.modules["mine"].instance


def test_class_is_made_with_its_options_converted(load: Load, folder: Path) -> None:
    """Options become what the annotations say; what is not given is the constructor's default."""
    made = load("mine:Handler", table="users", limit="7", price="1.10", mode="b")

    assert made.given == {
        "table": "users",
        "limit": 7,
        "price": Decimal("1.10"),
        "mode": "b",
        "path": folder / "default.log",
        "more": None,
    }


def test_paths_of_options_start_at_the_configurations_folder(load: Load, folder: Path) -> None:
    """Relative ones, in lists, too; absolute ones stay."""
    made = load("mine:Handler", table="x", path="out/a.log", more=["b", "/c"])

    assert made.given["path"] == folder / "out/a.log"
    assert made.given["more"] == [folder / "b", Path("/c")]


def test_dataclass_with_any_field_names_is_made(load: Load) -> None:
    """An option may be called what a pydantic model has for itself."""
    made = load("mine:Data", url="x", schema=["a"])

    assert (made.url, made.schema) == ("x", ["a"])
    assert load("mine:Data", url="x").schema == []


def test_keyword_arguments_take_every_option(load: Load) -> None:
    """A constructor with **kwargs has no unknown options; those it names are still checked."""
    assert load("mine:Greedy", known="1", other=[2]).given == {"known": 1, "other": [2]}
    assert "options.known" in problems(load, "mine:Greedy", other=1)[0]


def test_annotations_of_the_type_checker_alone_check_nothing(load: Load) -> None:
    """A type that does not exist at run time cannot be validated against."""
    assert load("mine:Lazy", unknown=1, anything={"x": 1}).given == (1, {"x": 1})


def test_nested_name_is_found(load: Load) -> None:
    """module:Outer.Inner."""
    assert type(load("mine:Outer.Inner")).__name__ == "Inner"


def test_all_wrong_options_are_told_at_once(load: Load) -> None:
    """Missing, unknown and of the wrong type, each by its key, none with its value."""
    found = problems(load, "mine:Handler", limit="s3cret", mode="s3cret", tabel="s3cret")

    assert sorted(line.partition(":")[0] for line in found) == [
        "handlers[audit].options.limit",
        "handlers[audit].options.mode",
        "handlers[audit].options.tabel",
        "handlers[audit].options.table",
    ]
    assert "s3cret" not in " ".join(found)
    assert "it takes table, limit, price, mode, path, more" in " ".join(found)


@pytest.mark.parametrize(
    ("callback", "options", "says"),
    [
        (
            "mine:function",
            {"x": 1},
            "handlers[audit].options: mine:function is no class and",
        ),
        ("mine:gone", {}, "handlers[audit].callback: there is no 'gone' in"),
        ("mine:Outer.Gone", {}, "there is no 'Outer.Gone' in"),
        ("mine:number", {}, "mine:number is a int; it must be a function, or have `handle`"),
        ("mine:Useless", {}, "mine:Useless is a Useless; it must be"),
        ("mine:Failing", {}, "mine:Failing cannot be made: OSError: cannot reach postgres://u:***@h"),
        ("absent:x", {}, "no module 'absent' for absent: looked in python_path ("),
        ("mine.sub:x", {}, "no module 'mine.sub' for mine.sub"),
        ("nonsense", {}, "there is no built-in handler 'nonsense'"),
    ],
)
def test_callback_that_cannot_be_used_is_told_with_the_reason(
    load: Load, callback: str, options: dict[str, Any], says: str
) -> None:
    """What was wanted, what is there, and no secret."""
    (found,) = problems(load, callback, **options)

    assert says in found


def test_missing_module_tells_where_it_was_looked_for(load: Load, folder: Path) -> None:
    """The folders of python_path by name; and where a package of the same name hides the user's own."""
    assert str(folder) in problems(load, "absent.part:x")[0]
    assert "the package email was found in" in problems(load, "email.mine:x")[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "import not_installed",
            "broken failed: ModuleNotFoundError: No module named 'not_installed'",
        ),
        ("1 / 0", "importing broken failed: ZeroDivisionError"),
        ("x = (", "importing broken failed: SyntaxError"),
        ("raise SystemExit(3)", "importing broken failed: SystemExit"),
    ],
)
def test_module_that_fails_while_imported_is_told_with_its_error(
    load: Load, folder: Path, text: str, says: str
) -> None:
    """Another mistake than a module that is not there."""
    (folder / "broken.py").write_text(text)

    (found,) = problems(load, "broken:x")

    assert found.startswith("handlers[audit].callback: ")
    assert says in found


def test_python_path_stays_and_cannot_hide_what_is_installed(load: Load, folder: Path) -> None:
    """Modules that are imported later are found, too; a file called like one of Python's breaks nobody."""
    (folder / "colorsys.py").write_text("raise RuntimeError('shadowed')")
    (folder / "lib").mkdir()
    (folder / "lib" / "later.py").write_text("")
    (folder / "mine.py").write_text("def function(event):\n    import colorsys, later\n    return colorsys\n")
    sys.modules.pop("colorsys", None)

    callback = load("mine:function", python_path=(".", "lib"))

    assert not callback(None).__file__.startswith(str(folder))
    assert sys.path[-2:] == [str(folder), str(folder / "lib")]
    load("mine:function", python_path=(".", "lib"))
    assert sys.path.count(str(folder)) == 1


def test_built_in_is_found_by_its_short_name(load: Load, folder: Path) -> None:
    """Any distribution may declare handlers; the name is that of its entry point."""
    info = folder / "extra-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[walsignal.handlers]\nshort = mine:Handler\n")

    assert load("short", table="users").given["table"] == "users"
    assert "short" in problems(load, "long")[0]


def declare(folder: Path, entry: str, *extras: str) -> None:
    """A distribution in the folder that declares a handler."""
    info = folder / "extra-1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: extra", "Version: 1.0", *(f"Provides-Extra: {extra}" for extra in extras)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "entry_points.txt").write_text(f"[walsignal.handlers]\n{entry}\n")


@pytest.mark.parametrize(
    "text", ["import not_installed.part", "class X:\n    def __init__(self): import not_installed"]
)
def test_built_in_whose_library_is_missing_tells_what_installs_it(load: Load, folder: Path, text: str) -> None:
    """At import or when it is made; the extra bears the short name, however the metadata spells it."""
    (folder / "needy.py").write_text(text)
    declare(folder, "my_queue = needy:X", "my-queue")

    assert problems(load, "my_queue") == (
        "handlers[audit].callback: my_queue needs not_installed: pip install 'extra[my_queue]'",
    )


def test_built_in_without_an_extra_tells_the_missing_module(load: Load, folder: Path) -> None:
    """Nobody is sent to an extra that is not there."""
    (folder / "needy.py").write_text("import not_installed")
    declare(folder, "my_queue = needy:X", "other")

    assert "No module named 'not_installed'; install it" in problems(load, "my_queue")[0]


def libraries() -> dict[str, list[str]]:
    """Short name of a built-in → top-level modules of what its extra installs."""
    modules: dict[str, list[str]] = {}
    for module, distributions in packages_distributions().items():
        for distribution in distributions:
            modules.setdefault(distribution.lower().replace("_", "-"), []).append(module)
    found: dict[str, list[str]] = {}
    for requirement in map(Requirement, requires("walsignal") or []):
        for entry in entry_points(group=ENTRY_POINTS):
            if requirement.marker is not None and requirement.marker.evaluate({"extra": entry.name}):
                found.setdefault(entry.name, []).extend(modules[requirement.name.lower().replace("_", "-")])
    return found


LIBRARIES = libraries()
IMPORTED_LATER = {"file_wal", "search_index"}  # what they import depends on their options
IMPORTED_AT_ONCE = sorted(
    name
    for name in LIBRARIES.keys() - IMPORTED_LATER
    if find_spec(next(iter(entry_points(group=ENTRY_POINTS, name=name))).module)
)
WITHOUT = """
import sys
from pathlib import Path

name, *missing = sys.argv[1:]

class Missing:
    def find_spec(self, module, path=None, target=None):
        if module.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)

sys.meta_path.insert(0, Missing())
from cdc import ConfigError
from cdc.config import HandlerConfig
from cdc.loading import load_callback

try:
    load_callback(HandlerConfig(callback=name, name="h"), Path())
except ConfigError as error:
    print(*error.problems)
"""


@pytest.mark.parametrize("name", IMPORTED_AT_ONCE)
def test_handler_of_ours_without_its_extra_tells_how_to_install_it(name: str) -> None:
    """In a Python that does not have the extra's libraries; the name is typed as it stands in the file."""
    command = [sys.executable, "-c", WITHOUT, name, *LIBRARIES[name]]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert told.startswith(f"handlers[h].callback: {name} needs ")
    assert told.endswith(f": pip install 'walsignal[{name}]'")


def test_every_extra_belongs_to_a_handler() -> None:
    """An extra has the short name of the handler that needs it."""
    short_names = {entry.name for entry in entry_points(group=ENTRY_POINTS)}

    assert {"audit_log", "file_wal", "nats"} <= LIBRARIES.keys() <= short_names
