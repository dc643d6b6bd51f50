"""The bench: that it measures what it says, in the shape that it promises. Not how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import backlog, report, shapes, targets
from bench.contenders import CONTENDERS, plugin_options
from bench.latency import percentile
from bench.report import Report
from bench.results import (
    FaultsResult,
    LatencyResult,
    LatencyRun,
    MemoryResult,
    Run,
    Spread,
    ThroughputResult,
    latency_of,
    summed_up,
)
from bench.server import SETTINGS, Server
from cdc.demo.cluster import Cluster

REPOSITORY = Path(__file__).resolve().parent.parent
SECONDS = 250  # a bench takes ten to twenty; the machine may be busy
pytestmark = pytest.mark.timeout(2 * SECONDS + 20)
TINY = ("--changes", "2000", "--rounds", "1", "--memory-rows", "2000")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server as the bench makes it."""
    with Cluster(settings=SETTINGS) as cluster, Server(cluster) as running:
        yield running


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m bench` to its end."""
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPOSITORY, timeout=SECONDS)


def run_of(number: int, changes_per_second: float) -> Run:
    """A run that differs from others in its pace only."""
    return Run(number, 1.0, 0.1, 0, changes_per_second, 1, 1.0, None)


def messages(server: Server, slot: str, prefix: str = "cdc.tags") -> list[dict[str, Any]]:
    """What a slot has, in order, with the three messages of the transaction that marks the end."""
    rows = server.execute(
        "SELECT data FROM pg_logical_slot_peek_changes(%s, NULL, NULL, 'format-version', '2', 'add-msg-prefixes', %s)",
        slot,
        prefix,
    )
    return [json.loads(str(text)) for (text,) in rows]


def actions(server: Server, slot: str) -> list[str]:
    """The actions in a slot, in order."""
    return [str(message["action"]) for message in messages(server, slot)]


def spread(*values: float) -> Spread:
    """Of one value, or of several."""
    return Spread.of(values)


def measured() -> Report:
    """All that the verdicts are about: throughput, memory and start pass, and some of the latencies are too long."""
    paces = {"recvlogical": 100.0, "noop": 95.0, "values": 60.0, "noop10": 80.0, "debezium": 20.0}
    runs = {name: [run_of(1, pace)] for name, pace in paces.items()}
    contenders = [summed_up(name, name, ones, runs["recvlogical"]) for name, ones in runs.items()]
    pipe = [LatencyRun(1, 10, 1000.0, 0.0002, 0.001, 0.002, 0.002)]
    ours = [LatencyRun(1, 10, 1000.0, 0.0003, 0.004, 0.005, 0.005)]
    latencies = [latency_of("pipe", "pipe", pipe, pipe), latency_of("noop", "cdc run", ours, pipe)]
    return Report(
        machine={"cpus": 2},
        server_settings={},
        plugin_options={},
        mix="",
        measured_at={"throughput": "then", "latency": "then", "memory": "then", "faults": "then"},
        throughput=[ThroughputResult(1000, 1000, 1, contenders, ["psycopg2: not there"])],
        latency=[LatencyResult(1000, 1, 1, latencies, [])],
        memory=[MemoryResult(5_000_000, 1.0, 140_000_000, 1.0, 1, 1.0)],
        faults=FaultsResult(1, spread(0.7), spread(0.8), spread(5), spread(0.1), spread(0.2), spread(0.1)),
    )


def test_bench_writes_what_each_contender_did_as_json(tmp_path: Path) -> None:
    """A tiny bench exits with 0, prints a table and writes every figure of every contender."""
    file = tmp_path / "figures" / "bench.json"
    result = bench(*TINY, "--only", "throughput", "memory", "--json", str(file))
    assert result.returncode == 0, result.stderr
    assert "pg_recvlogical" in result.stdout
    figures: dict[str, Any] = json.loads(file.read_text())
    assert figures["plugin_options"]["include-pk"] == "on"
    [table] = figures["throughput"]
    assert (table["changes"], table["transaction_rows"], table["rounds"]) == (2000, 1000, 1)
    present = [contender["name"] for contender in table["contenders"]]
    assert len(present) + len(table["missing"]) == len(CONTENDERS)
    assert present[:7] == ["recvlogical", "noop", "values", "noop3", "noop10", "tags", "filewal"]
    for contender in table["contenders"]:
        [run] = contender["runs"]
        assert run["seconds"] > 0
        assert run["start_up_seconds"] > 0
        assert contender["changes_per_second"]["median"] == run["changes_per_second"] > 0
        assert contender["ratio"]["min"] <= contender["ratio"]["median"] <= contender["ratio"]["max"]
    [large] = figures["memory"]
    assert large["transaction_rows"] == 2000
    assert large["peak_bytes"] > 0


def test_bench_measures_only_the_chosen_contenders(tmp_path: Path) -> None:
    """With one contender chosen nothing else runs, and without the reference there is no ratio."""
    file = tmp_path / "bench.json"
    result = bench("--changes", "1000", "--rounds", "1", "--only", "noop", "--json", str(file))
    assert result.returncode == 0, result.stderr
    figures = json.loads(file.read_text())
    [contender] = figures["throughput"][0]["contenders"]
    assert (contender["name"], contender["ratio"]) == ("noop", None)
    assert figures["memory"] == []


def test_bench_measures_latency_from_commit_to_callback(tmp_path: Path) -> None:
    """Each listener has seen all that was committed after the first second, later than it was committed."""
    file = tmp_path / "bench.json"
    result = bench("--only", "latency", "--rates", "200", "--seconds", "2", "--rounds", "1", "--json", str(file))
    assert result.returncode == 0, result.stderr
    [at_rate] = json.loads(file.read_text())["latency"]
    assert at_rate["rate"] == 200
    assert len(at_rate["contenders"]) + len(at_rate["missing"]) == 3
    for contender in at_rate["contenders"]:
        [run] = contender["runs"]
        assert 0 < run["samples"] < 600  # a machine that stands still at first makes up for it within the first second
        assert 0 < run["p50"] <= run["p99"] <= run["p999"] <= run["longest"]


def test_bench_measures_growth_beside_the_reference(tmp_path: Path) -> None:
    """Each value has the pace of pg_recvlogical over the same backlog beside it."""
    file = tmp_path / "bench.json"
    arguments = ("--only", "growth", "--axes", "callbacks", "--growth-changes", "1000", "--rounds", "1")
    result = bench(*arguments, "--json", str(file))
    assert result.returncode == 0, result.stderr
    [axis] = json.loads(file.read_text())["growth"]
    assert [point["value"] for point in axis["points"]] == [1, 10, 100]
    for point in axis["points"]:
        of = point["changes_per_second"]["median"] / point["reference_changes_per_second"]["median"]
        assert point["ratio"]["median"] == pytest.approx(of)


def test_bench_measures_what_starts_faults_and_stops_cost(tmp_path: Path) -> None:
    """The stream begins before the service says so, after a start and after the server's death."""
    file = tmp_path / "bench.json"
    result = bench("--quick", "--only", "faults", "--json", str(file))
    assert result.returncode == 0, result.stderr
    faults = json.loads(file.read_text())["faults"]
    assert 0 < faults["start_to_stream"]["median"] < faults["start_to_phase"]["median"]
    assert 0 < faults["back_to_stream"]["median"] < faults["back_to_phase"]["median"]
    assert faults["away"]["median"] > 0.5
    assert faults["drain"]["median"] > 0


def test_report_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    """What is written is read again, to the last figure."""
    file = tmp_path / "bench.json"
    report.write(measured(), file)
    again = report.read(file)
    assert [one.runs for one in again.throughput[0].contenders] == [
        one.runs for one in measured().throughput[0].contenders
    ]
    assert again.faults == measured().faults


def test_report_keeps_the_parts_that_were_not_measured_anew() -> None:
    """A call for one part leaves the others, and tables of other sizes, and tells when each was taken."""
    ten = ThroughputResult(1000, 10, 1, [], [])
    new = Report({}, {}, {}, "", {"throughput": "now"}, throughput=[ten])
    both = new.over(measured())
    assert [result.transaction_rows for result in both.throughput] == [10, 1000]
    assert both.faults == measured().faults
    assert (both.measured_at["throughput"], both.measured_at["memory"]) == ("now", "then")


def test_verdicts_say_what_is_reached_and_what_is_not() -> None:
    """Each bound is compared with the median of its ratios; what was not measured has no verdict."""
    words = {verdict.case: verdict.word for verdict in targets.verdicts(measured())}
    assert words == {
        "one no-op callback / pg_recvlogical": "pass",
        "one callback reading every value / pg_recvlogical": "short",
        "10 no-op callbacks / pg_recvlogical": "pass",
        "one no-op callback / Debezium's engine, warm": "pass",
        "one no-op callback / psycopg2 loop with wait_for": "not measured",
        "p50 latency at 1,000 tx/s, s": "pass",
        "p99 latency at 1,000 tx/s, s": "short",
        "p50 at 1,000 tx/s / that of the pipe": "pass",
        "p99 at 1,000 tx/s / that of the pipe": "short",
        "peak resident, one transaction of 5,000,000 rows, MB": "pass",
        "cdc run to streaming, warm disk, s": "pass",
    }


def test_bench_prints_verdicts_of_the_figures_in_the_file(tmp_path: Path) -> None:
    """`targets` measures nothing."""
    file = tmp_path / "bench.json"
    report.write(measured(), file)
    result = bench("targets", "--json", str(file))
    assert result.returncode == 0, result.stderr
    assert "0.60 (0.60..0.60)" in result.stdout
    missing = bench("targets", "--json", str(tmp_path / "none.json"))
    assert (missing.returncode, missing.stderr) == (1, f"bench: {tmp_path}/none.json is not there: measure first\n")


def test_charts_of_the_same_figures_are_the_same_bytes(tmp_path: Path) -> None:
    """No date, no chance: a chart in git changes when its figures do."""
    pytest.importorskip("matplotlib")
    from bench import charts  # noqa: PLC0415 - not everyone has what it draws with

    first, second = (charts.draw(measured(), tmp_path / name) for name in ("a", "b"))
    assert [file.name for file in first] == ["throughput-1000.svg", "latency.svg"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert b"cdc run" in first[1].read_bytes()  # text, no outlines


def test_percentile_is_the_least_value_that_so_many_do_not_exceed() -> None:
    """Nearest rank: a value that was measured, never one between two."""
    values = [float(number) for number in range(1, 1001)]
    assert [percentile(values, percent) for percent in (50, 99, 99.9, 100)] == [500.0, 990.0, 999.0, 1000.0]
    assert percentile([3.0], 50) == 3.0


def test_ratio_compares_within_the_same_round() -> None:
    """A round in which the whole machine was slow leaves the ratio as it is."""
    runs = [run_of(1, 50.0), run_of(2, 5.0), run_of(3, 60.0)]
    reference = [run_of(1, 100.0), run_of(2, 10.0), run_of(3, 100.0)]
    assert summed_up("x", "X", runs, reference).ratio == Spread(0.5, 0.5, 0.6)


@pytest.mark.parametrize("transaction_rows", [1, 10, 100])
def test_backlog_has_the_promised_mix_whatever_the_size_of_its_transactions(
    server: Server, transaction_rows: int
) -> None:
    """60 % inserts, 30 % updates, 10 % deletes; all of them find their rows."""
    with backlog.mixed(server, 200, transaction_rows) as made:
        seen = actions(server, made.slots[backlog.WAL2JSON])[:-3]  # the last transaction marks the end
    assert made.changes == 200
    assert {action: seen.count(action) for action in "IUD"} == {"I": 120, "U": 60, "D": 20}
    assert seen.count("B") == 200 // transaction_rows


def test_backlog_has_a_tag_message_in_each_transaction_for_who_asks(server: Server) -> None:
    """The contender with tags asks for their prefix; all others are not sent them."""
    with backlog.mixed(server, 40, 10) as made:
        slot = made.slots[backlog.WAL2JSON]
        asked = [message["action"] for message in messages(server, slot, backlog.TAG_PREFIX)][:-3]
        assert "M" not in actions(server, slot)
    assert "".join(asked) == 4 * "BMIIIIIIUUUDC"


def test_many_tables_are_filled_in_turn(server: Server) -> None:
    """Row after row goes to another table, and the tables are gone afterwards."""
    with shapes.many_tables(server, 60, 7) as made:
        seen = [message["table"] for message in messages(server, made.slots[backlog.WAL2JSON]) if "table" in message]
    assert seen[:-1] == [f"shape_{number % 7}" for number in range(60)]
    assert server.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'shape_%'") == "0"


@pytest.mark.parametrize("width", [100, 10_000])
def test_wide_rows_have_the_promised_width(server: Server, width: int) -> None:
    """As many bytes of text as asked for, whether they lie in the row or outside of it."""
    with shapes.wide_rows(server, 3, width) as made:
        seen = [message["columns"] for message in messages(server, made.slots[backlog.WAL2JSON]) if "table" in message]
    assert [len(columns[1]["value"]) for columns in seen[:-1]] == [width, width, width]


def test_plugin_options_are_those_of_cdc_run(server: Server) -> None:
    """The tags' messages are asked for too, and an option that this wal2json refuses is not."""
    options = plugin_options(server)
    assert options["add-msg-prefixes"] == "cdc.tags"
    with server.slot("check") as slot:
        assert all(server.understands(slot, name, value) for name, value in options.items())
        assert not server.understands(slot, "no-such-option", "on")


def test_micro_benchmarks_fit_the_stages_that_they_time() -> None:
    """Each of them runs once, untimed: a stage whose name or arguments have changed is found here."""
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-disable", "bench/micro"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPOSITORY, timeout=SECONDS)
    assert result.returncode == 0, result.stdout
