"""`python -m bench`: arguments, one cluster, the parts that were asked for, the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import memory, profile, report, throughput
from bench.contenders import CONTENDERS, CdcRun, plugin_options
from bench.report import Report
from bench.server import SETTINGS, BenchError, Server
from cdc.demo.cluster import Cluster
from cdc.errors import CdcError

RESULTS = Path(__file__).resolve().parent / "results"  # kept out of git
PARTS = ("throughput", "memory")


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line."""

    what: str
    changes: int
    transaction_rows: Sequence[int]
    rounds: int
    only: Sequence[str]
    memory_rows: int
    json: Path

    @classmethod
    def parse(cls, arguments: Sequence[str] | None = None) -> Arguments:
        """From `arguments`, or those of the process."""
        names = [contender.name for contender in CONTENDERS]
        parser = argparse.ArgumentParser(prog="python -m bench", description=throughput.__doc__)
        parser.add_argument("what", nargs="?", default="measure", choices=("measure", "profile"))
        parser.add_argument("--changes", type=int, default=500_000, help="in the backlog (%(default)s)")
        parser.add_argument(
            "--transaction-rows", type=int, nargs="+", default=[1000], help="1, or multiples of 10; a table for each"
        )
        parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
        parser.add_argument("--only", nargs="+", default=[], choices=[*PARTS, *names], help="parts or contenders")
        parser.add_argument("--memory-rows", type=int, default=1_000_000, help="in one transaction (%(default)s)")
        parser.add_argument("--json", type=Path, default=RESULTS / "latest.json", help="file for the figures")
        return cls(**vars(parser.parse_args(arguments)))

    def wants(self, part: str) -> bool:
        """Whether the part was asked for; a contender's name asks for the throughput."""
        if not self.only or part in self.only:
            return True
        return part == "throughput" and any(name not in PARTS for name in self.only)


def main(arguments: Arguments) -> None:
    """Measure, print, write."""
    progress = report.console(sys.stderr)

    def say(text: str) -> None:
        progress.print(text, style="dim", highlight=False)

    with Cluster(settings=SETTINGS) as cluster, Server(cluster) as server:
        options = plugin_options(server)
        chosen = [one for one in CONTENDERS if one.name in arguments.only] or list(CONTENDERS)
        if arguments.what == "profile":
            flame_graph = arguments.json.parent / "profile.svg"
            flame_graph.parent.mkdir(parents=True, exist_ok=True)
            contender = next(one for one in [*chosen, *CONTENDERS] if isinstance(one, CdcRun))
            profile.record(server, contender, options, arguments.changes, flame_graph)
            say(f"written: {flame_graph}")
            return
        tables = [
            throughput.measure(
                server,
                chosen,
                options,
                changes=arguments.changes,
                transaction_rows=rows,
                rounds=arguments.rounds,
                say=say,
            )
            for rows in (arguments.transaction_rows if arguments.wants("throughput") else ())
        ]
        if arguments.wants("memory"):
            say(f"one transaction of {arguments.memory_rows:,} rows")
        large = memory.measure(server, options, arguments.memory_rows) if arguments.wants("memory") else None
        result = Report.on(server, options, throughput=tables, memory=large)
    report.show(report.console(), result)
    report.write(result, arguments.json)
    say(f"written: {arguments.json}")


if __name__ == "__main__":
    try:
        main(Arguments.parse())
    except (BenchError, CdcError) as error:
        sys.exit(f"bench: {error}")
