"""`python -m bench`: one cluster, the parts that were asked for, the report."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any

from bench import faults, growth, latency, memory, profile, report, tables, throughput
from bench.arguments import Arguments
from bench.contenders import CONTENDERS, CdcRun, plugin_options
from bench.report import Report
from bench.rounds import Say
from bench.server import SETTINGS, BenchError, Server
from bench.targets import verdicts
from cdc.demo.cluster import Cluster
from cdc.errors import CdcError


def main(arguments: Arguments) -> None:
    """Do what was asked for."""
    progress = tables.console(sys.stderr)

    def say(text: str) -> None:
        progress.print(text, style="dim", highlight=False)

    if arguments.what == "profile":
        _profile(arguments, say)
        return
    if arguments.what == "measure":
        # Read before an hour of measuring, in case that it cannot be.
        older = report.read(arguments.json) if arguments.only and arguments.json.exists() else None
        new = _measured(arguments, say)
        tables.show(tables.console(), new)
        result = new if older is None else new.over(older)
        report.write(result, arguments.json)
        say(f"written: {arguments.json}")
    else:
        result = report.read(arguments.json)
    if arguments.what != "charts":
        tables.show_verdicts(tables.console(), verdicts(result))
    if arguments.what != "targets":
        _draw(result, arguments, say)


def _measured(arguments: Arguments, say: Say) -> Report:
    with Cluster(settings=SETTINGS) as cluster, Server(cluster) as server:
        options = plugin_options(server)
        parts = {
            name: measure()
            for name, measure in _measures(server, options, arguments, say).items()
            if arguments.wants(name)
        }
        return Report.on(server, options, parts)


def _measures(
    server: Server, options: Mapping[str, str], arguments: Arguments, say: Say
) -> dict[str, Callable[[], Any]]:
    sizes = arguments.sizes
    chosen = [one for one in CONTENDERS if one.name in arguments.only] or list(CONTENDERS)
    return {
        "throughput": lambda: [
            throughput.measure(
                server, chosen, options, changes=changes, transaction_rows=rows, rounds=sizes.rounds, say=say
            )
            for rows, changes in sizes.changes.items()
        ],
        "latency": lambda: [
            latency.measure(server, options, rate=rate, seconds=sizes.seconds, rounds=sizes.rounds, say=say)
            for rate in sizes.rates
        ],
        "memory": lambda: [memory.measure(server, options, rows, say) for rows in sizes.memory_rows],
        "growth": lambda: [
            growth.measure(server, options, axis, changes=sizes.growth_changes, rounds=sizes.rounds, say=say)
            for axis in arguments.axes
        ],
        "faults": lambda: faults.measure(
            options,
            away_seconds=sizes.away_seconds,
            rounds=sizes.fault_rounds,
            say=say,
        ),
    }


def _profile(arguments: Arguments, say: Say) -> None:
    chosen = [one for one in CONTENDERS if one.name in arguments.only]
    contender = next(one for one in [*chosen, *CONTENDERS] if isinstance(one, CdcRun))
    flame_graph = arguments.charts / "profile.svg"
    flame_graph.parent.mkdir(parents=True, exist_ok=True)
    with Cluster(settings=SETTINGS) as cluster, Server(cluster) as server:
        [*_, (rows, changes)] = arguments.sizes.changes.items()
        profile.record(server, contender, plugin_options(server), changes, rows, flame_graph)
    say(f"written: {flame_graph}")


def _draw(result: Report, arguments: Arguments, say: Say) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        say("left out: charts (matplotlib is not installed)")
        return
    from bench import charts  # noqa: PLC0415 - what is drawn with is not there for everyone

    for file in charts.draw(result, arguments.charts):
        say(f"written: {file}")


if __name__ == "__main__":
    try:
        main(Arguments.parse())
    except (BenchError, CdcError) as error:
        sys.exit(f"bench: {error}")
