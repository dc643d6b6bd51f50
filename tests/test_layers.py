"""The floors of the house: a module of `cdc` imports only from floors below its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# One line per floor; a package counts as one noun. To add a module, write its name where it belongs.
# `cdc/__init__.py` only re-exports and has no floor. Tests and bench may import anything, also cdc.demo.
FLOORS = (
    {"codes"},
    {"errors", "lsn", "consumer", "encodings", "hangups", "traces", "histogram", "side_tasks", "wording"},
    {"values", "patterns", "logs", "tagging", "exposition", "status", "invocation", "outage"},
    {"events", "options", "rendering"},
    {"messages", "protocol", "config", "failures", "codec", "dedupe", "columns", "terms"},
    {"transactions", "wal2json", "exact", "unchanged", "families", "recent", "callbacks", "error_handler"},
    {"progress", "slots", "refusals", "registry", "stats", "endpoint"},
    {"replication", "catalog", "state", "workers", "loading", "guard"},
    {"signals", "resume", "lookout", "fence"},
    {"pump", "monitor", "session", "preflight", "letters", "enrolment", "watchman", "testing", "orders"},
    {"checkpoints", "redelivery", "tail", "heartbeat", "exchange"},
    {"reload"},
    {"service"},
    {"pulse", "lag", "health"},
    {"snapshot"},
    {"metrics"},
    {"http"},
    {"runner"},
    {"cli", "demo"},
)
FLOOR_OF = {noun: floor for floor, nouns in enumerate(FLOORS) for noun in nouns}
NOT_MODULES = {"__init__", "__main__"}


def module_name(file: Path, root: Path = ROOT) -> str:
    """cdc/state/sqlite.py -> cdc.state.sqlite ; cdc/state/__init__.py -> cdc.state."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, name: str, *, package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, also inside functions; `from a import b` is a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")
                kept = len(parents) - node.level + (1 if package else 0)
                base = ".".join([*parents[:kept], *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def noun_of(dotted: str) -> str | None:
    """The noun that an import reaches: cdc.state.sqlite.X -> state; None outside cdc."""
    first, _, rest = dotted.partition(".")
    return rest.partition(".")[0] if first == "cdc" else None


def violations(name: str, source: str, *, package: bool = False) -> list[str]:
    """What a module of cdc imports from its own floor or above, readable."""
    own = noun_of(name)
    assert own is not None
    found = []
    for line, dotted in imports_of(source, name, package=package):
        noun = noun_of(dotted)
        if noun is None or noun == own:
            continue
        if noun not in FLOOR_OF:
            found.append(f"{name}:{line} imports {dotted}: through the package's front door, or without a floor")
        elif FLOOR_OF[noun] >= FLOOR_OF[own]:
            found.append(f"{name}:{line} on floor {FLOOR_OF[own]} imports {noun} of floor {FLOOR_OF[noun]}")
    return found


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """The nodes that cannot be put in an order in which each comes after all it imports."""
    left = dict(graph)
    while ready := [node for node, needs in left.items() if not needs & left.keys()]:
        for node in ready:
            del left[node]
    return sorted(left)


CDC_FILES = sorted((ROOT / "cdc").rglob("*.py"))
FLOORED_FILES = [file for file in CDC_FILES if file.parent.name != "cdc" or file.stem not in NOT_MODULES]
HANDLER_FILES = sorted((ROOT / "handlers").rglob("*.py"))


def test_every_module_has_a_floor() -> None:
    """A new module of cdc/ is written into the table above, where somebody sees it."""
    nouns = {noun_of(module_name(file)) for file in FLOORED_FILES}

    assert nouns - FLOOR_OF.keys() == set()


@pytest.mark.parametrize("file", FLOORED_FILES, ids=module_name)
def test_module_imports_only_from_floors_below(file: Path) -> None:
    """Data flows one way, and so do imports; not even inside a function one looks upwards."""
    found = violations(module_name(file), file.read_text(), package=file.stem == "__init__")

    assert found == []


def test_submodules_of_a_package_import_each_other_without_cycles() -> None:
    """Inside cdc/state or cdc/demo imports are free, but never circular."""
    modules = {module_name(file): file for file in FLOORED_FILES}
    graph: dict[str, set[str]] = {}
    for name, file in modules.items():
        imported = {
            target
            for _, dotted in imports_of(file.read_text(), name, package=file.stem == "__init__")
            for target in (dotted, dotted.rpartition(".")[0])  # cdc.state.sqlite, or a name in it
            if target in modules and target != name
        }
        # `from cdc.demo import cluster` is the module, not the package around it.
        graph[name] = {one for one in imported if not any(other.startswith(f"{one}.") for other in imported)}

    assert cycles(graph) == []


def public_names() -> set[str]:
    """`__all__` of cdc/__init__.py, read without importing it."""
    for node in ast.parse((ROOT / "cdc" / "__init__.py").read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert node.value is not None
            return set(ast.literal_eval(node.value))
    return set()


def private_imports(name: str, source: str, public: set[str], *, package: bool = False) -> list[str]:
    """What a handler imports from cdc beside its public names and `cdc.testing`."""
    found = []
    for line, dotted in imports_of(source, name, package=package):
        noun = noun_of(dotted)
        allowed = noun in ({"", "testing"} | public) and dotted.count(".") <= (2 if noun == "testing" else 1)
        if noun is not None and not allowed:
            found.append(f"{name}:{line} imports {dotted}")
    return found


def test_handlers_import_only_public_names() -> None:
    """A handler of ours can do no more than a handler of yours."""
    public = public_names() if HANDLER_FILES else set()
    found = [
        line
        for file in HANDLER_FILES
        for line in private_imports(module_name(file), file.read_text(), public, package=file.stem == "__init__")
    ]

    assert found == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import json\nfrom cdc.errors import CdcError", 0),
        ("from cdc import errors", 0),
        ("from .errors import CdcError", 0),
        ("from cdc.signals import SignalManager", 1),
        ("from cdc.callbacks import Callback", 0),
        ("from cdc.catalog import Catalog", 1),
        ("import cdc.service", 1),
        ("from . import cli", 1),
        ("from cdc import DatabaseEvent", 1),
        ("def late():\n    from cdc.http import serve", 1),
    ],
)
def test_upward_imports_are_found(source: str, count: int) -> None:
    """The check itself: a module of floor 4 may import from 3 and below, however the import is written."""
    assert len(violations("cdc.workers", source)) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("from cdc import DatabaseEvent", 0),
        ("import cdc", 0),
        ("from cdc.testing import make_event", 0),
        ("from cdc import Hidden", 1),
        ("from cdc.events import DatabaseEvent", 1),
        ("import cdc.workers", 1),
        ("from . import other", 0),
    ],
)
def test_private_imports_of_handlers_are_found(source: str, count: int) -> None:
    """The check itself: only `from cdc import <public>` and `cdc.testing` pass."""
    assert len(private_imports("handlers.mine", source, {"DatabaseEvent"})) == count


def test_cycles_are_found() -> None:
    """The check itself: a ring of two is a cycle, a chain is none."""
    assert cycles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == ["a", "b", "c"]
    assert cycles({"a": {"b"}, "b": set()}) == []
