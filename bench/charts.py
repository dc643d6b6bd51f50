"""Charts of a report, as SVG that can lie in a README: small, the same figures give the same bytes.

No background, and colours in the middle between black and white, so that they can be read on both. Text stays text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from bench.contenders import REFERENCE
from bench.report import Report
from bench.results import GrowthResult, LatencyResult, Spread, ThroughputResult

__all__ = ["draw"]

GREY, BLUE, ORANGE, GREEN = "#7d8590", "#3b82f6", "#e07b39", "#2f9e63"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "walsignal",  # element ids come from it, and not from chance
    "font.size": 10,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.titlecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "grid.color": GREY,
    "grid.alpha": 0.25,
}
DECADE = 10  # what is further apart than this needs a logarithmic scale
METADATA = {"Date": None, "Creator": None}


def draw(report: Report, folder: Path) -> list[Path]:
    """Write a file for each chart of which the report has the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for name, figure in _figures(report):
            file = folder / f"{name}.svg"
            figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata=METADATA)
            written.append(file)
    return written


def _figures(report: Report) -> Iterator[tuple[str, Figure]]:
    for throughput in report.throughput:
        yield f"throughput-{throughput.transaction_rows}", _throughput(throughput)
    if report.latency:
        yield "latency", _latency(report.latency)
    for growth in report.growth:
        yield f"growth-{growth.axis}", _growth(growth)


def _throughput(result: ThroughputResult) -> Figure:
    contenders = list(reversed(result.contenders))
    figure, axes = _figure(height=0.7 + 0.36 * len(contenders))
    paces = [contender.changes_per_second for contender in contenders]
    colours = [BLUE if one.title.startswith("cdc run") else GREY for one in contenders]
    axes.barh([one.title for one in contenders], [pace.median for pace in paces], color=colours, height=0.6)
    for place, (contender, pace) in enumerate(zip(contenders, paces, strict=True)):
        axes.plot([pace.min, pace.max], [place, place], color=GREY, linewidth=1.5, solid_capstyle="butt")
        ratio = "" if contender.ratio is None or contender.name == REFERENCE else f"  {contender.ratio.median:.2f}"
        axes.annotate(
            f"{_short(pace.median)}{ratio}", (pace.max, place), (5, 0), textcoords="offset points", va="center"
        )
    axes.set_title(
        f"changes per second and ratio to the limit, transactions of {result.transaction_rows:,}", loc="right"
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.set_xlim(0, 1.2 * max(pace.max for pace in paces))
    return figure


def _latency(results: Sequence[LatencyResult]) -> Figure:
    figure, axes = _figure(height=3.2)
    colours = {"noop": BLUE, "psycopg2": ORANGE}
    for contender in results[0].contenders:
        colour = colours.get(contender.name, GREY)
        rows = [next(one for one in result.contenders if one.name == contender.name) for result in results]
        rates = [result.rate for result in results]
        for mark, line, of in (("o", "-", [row.p50 for row in rows]), ("^", "--", [row.p99 for row in rows])):
            _line(axes, rates, of, colour, f"{contender.title}, {'p50' if mark == 'o' else 'p99'}", mark, line, 1000)
    axes.set(xscale="log", yscale="log", xlabel="transactions per second", ylabel="commit to callback, ms")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    _finish(axes, [result.rate for result in results])
    return figure


def _growth(result: GrowthResult) -> Figure:
    figure, axes = _figure(height=3.0)
    values = [point.value for point in result.points]
    limit = [point.reference_changes_per_second for point in result.points]
    _line(axes, values, limit, GREY, "pg_recvlogical to a file", "o", "-")
    _line(axes, values, [point.changes_per_second for point in result.points], BLUE, "cdc run", "o", "-")
    axes.set(xscale="log", xlabel=result.title, ylabel="events per second")
    if max(one.median for one in limit) > DECADE * min(one.median for one in limit):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    _finish(axes, values)
    return figure


def _line(
    axes: Any,
    x: Sequence[int],
    y: Sequence[Spread],
    colour: str,
    label: str,
    mark: str,
    line: str,
    factor: float = 1,
) -> None:
    medians = [factor * one.median for one in y]
    below = [median - factor * one.min for median, one in zip(medians, y, strict=True)]
    above = [factor * one.max - median for median, one in zip(medians, y, strict=True)]
    axes.errorbar(x, medians, [below, above], color=colour, label=label, marker=mark, linestyle=line, markersize=5)


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.2, height))
    return figure, figure.subplots()


def _finish(axes: Any, x: Sequence[int]) -> None:
    axes.minorticks_off()
    axes.set_xticks(x)
    axes.grid(visible=True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.legend(fontsize=9)


def _short(value: float) -> str:
    """1000000 as 1M, 135034 as 135k, 0.25 as it is."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}" if value < 1 else f"{value:.3g}"
