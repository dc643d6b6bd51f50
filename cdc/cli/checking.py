"""`cdc init` writes a configuration; `cdc check` tells what would keep the service from working."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cdc.cli import differing
from cdc.cli.output import ConfigOption, JsonOption, console, print_json
from cdc.codes import Code
from cdc.config import find, load
from cdc.errors import ConfigError
from cdc.logs import clean
from cdc.preflight import Finding, Severity, is_running
from cdc.preflight import check as look

app = typer.Typer()

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.OK: "green"}


@app.command()
def init(
    config: ConfigOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented cdc.toml with every setting and its default."""
    path = config or Path(os.environ.get("CDC_CONFIG") or "cdc.toml")
    template = files("cdc.cli").joinpath("template.toml").read_text(encoding="utf-8")
    # Whoever can write this file runs code as the service, and it may come to hold a password.
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    try:
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)  # also of a file that --force replaces
            file.write(template)
    except FileExistsError:
        raise ConfigError(
            f"{path} is there already",
            hint="name another with --config FILE, or replace it with --force",
            code=Code.CONFIG_EXISTS,
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}",
            hint="name another with --config FILE",
            code=Code.CONFIG_UNREADABLE,
        ) from None
    option = "" if path == Path("cdc.toml") else f" --config {path}"
    out = console()
    out.print(Text(f"wrote {path}"))
    out.print(Text("next: export CDC_DSN='postgresql://user@host/database'"))
    out.print(Text(f"then: cdc check{option} && cdc run{option}"))


@app.command()
def check(
    diff: Annotated[
        bool,
        typer.Option("--diff", help="Only: what a reload (SIGHUP) would change; exit 1 if some of it needs a restart."),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at configuration, server, slot, tables and this machine; tell each lack with what mends it."""
    settings = load(find(config))
    if diff:
        differing.show(settings, as_json=as_json)
    with contextlib.redirect_stdout(sys.stderr):  # modules of handlers may print while they are imported
        findings = asyncio.run(look(settings))
    failed = any(finding.severity is Severity.ERROR for finding in findings)
    if as_json:
        print_json({"ok": not failed, "findings": [finding.to_dict() for finding in findings]})
    else:
        _print(findings)
    raise typer.Exit(1 if failed else 0)


def _print(findings: Sequence[Finding]) -> None:
    """One line each and its fix below, unbroken, so that it can be copied."""
    out = console()
    for finding in findings:
        style = _STYLES[finding.severity]
        out.print(Text.assemble((f"{finding.severity.value:<8}", style), clean(finding.message)))
        if finding.fix:
            out.print(Text.assemble("        ", ("fix: ", "bold"), clean(finding.fix)))
    counts = {severity: sum(one.severity is severity for one in findings) for severity in Severity}
    out.print()
    if counts[Severity.ERROR]:
        out.print(Text(f"{_count(counts)}; mend the errors, then: cdc check", style="bold"))
    else:
        after = "the service is running: cdc status" if is_running(findings) else "next: cdc run"
        out.print(Text(f"{_count(counts)}; {after}", style="bold"))


def _count(counts: dict[Severity, int]) -> str:
    def count(number: int, word: str) -> str:
        return f"{number} {word}{'' if number == 1 else 's'}"

    return f"{count(counts[Severity.ERROR], 'error')}, {count(counts[Severity.WARNING], 'warning')}"
