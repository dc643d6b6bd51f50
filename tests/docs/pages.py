"""What in docs/ is written from the code: the tables of options of the handlers, and configuration.md.

``python -m tests.docs.pages`` (``make docs``) writes it anew. Which handlers there are is asked of the entry points.
"""

from __future__ import annotations

import inspect
import sys
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from cdc.loading import ENTRY_POINTS
from cdc.options import HandlerOptions, options_model
from tests.docs import configuration
from tests.docs.tables import filled, options_table

__all__ = ["PAGES", "entries", "model_of", "page_of"]

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "handlers"


def entries() -> list[EntryPoint]:
    """The built-in handlers, by name."""
    return sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)


def page_of(entry: EntryPoint) -> Path:
    """Where its page lies."""
    return PAGES / f"{entry.name}.md"


def model_of(entry: EntryPoint) -> type[HandlerOptions] | None:
    """The model of its options; None for one whose options are its constructor's keyword arguments."""
    return options_model(inspect.signature(entry.load(), eval_str=True))


def main() -> None:
    """Write the tables of all pages that there are."""
    configuration.PAGE.write_text(configuration.page())
    missing = []
    for entry in entries():
        page = page_of(entry)
        if find_spec(entry.module) is None:
            continue
        if not page.exists():
            missing.append(entry.name)
        elif (model := model_of(entry)) is not None:
            page.write_text(filled(page.read_text(), options_table(model)))
    if missing:
        sys.exit(f"without a page in docs/handlers: {', '.join(missing)}")


if __name__ == "__main__":
    main()
