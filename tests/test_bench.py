"""The bench: that it measures what it says, in the shape that it promises. Not how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import backlog
from bench.contenders import CONTENDERS, plugin_options
from bench.results import Run, Spread, summed_up
from bench.server import SETTINGS, Server
from cdc.demo.cluster import Cluster

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server as the bench makes it."""
    with Cluster(settings=SETTINGS) as cluster, Server(cluster) as running:
        yield running


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m bench` to its end."""
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPOSITORY, timeout=100)


def run_of(number: int, changes_per_second: float) -> Run:
    """A run that differs from others in its pace only."""
    return Run(number, 1.0, 0.1, changes_per_second, 1, 1.0, None)


def actions(server: Server, slot: str) -> list[str]:
    """The actions in a slot, in order, with those of the transaction that marks the end."""
    rows = server.execute(
        "SELECT data::json->>'action' FROM pg_logical_slot_peek_changes(%s, NULL, NULL, 'format-version', '2')", slot
    )
    return [str(action) for (action,) in rows]


def test_bench_writes_what_each_contender_did_as_json(tmp_path: Path) -> None:
    """A tiny bench exits with 0, prints a table and writes every figure of every contender."""
    file = tmp_path / "figures" / "bench.json"
    result = bench("--changes", "2000", "--rounds", "1", "--memory-rows", "2000", "--json", str(file))
    assert result.returncode == 0, result.stderr
    assert "pg_recvlogical" in result.stdout
    report: dict[str, Any] = json.loads(file.read_text())
    assert report["plugin_options"]["include-pk"] == "on"
    [table] = report["throughput"]
    assert (table["changes"], table["transaction_rows"], table["rounds"]) == (2000, 1000, 1)
    present = [contender["name"] for contender in table["contenders"]]
    assert len(present) + len(table["missing"]) == len(CONTENDERS)
    assert present[:4] == ["recvlogical", "noop", "values", "noop10"]
    for contender in table["contenders"]:
        [run] = contender["runs"]
        assert run["seconds"] > 0
        assert run["start_up_seconds"] > 0
        assert contender["changes_per_second"]["median"] == run["changes_per_second"] > 0
        assert contender["ratio"]["min"] <= contender["ratio"]["median"] <= contender["ratio"]["max"]
    assert report["memory"]["transaction_rows"] == 2000
    assert report["memory"]["peak_bytes"] > 0


def test_bench_measures_only_the_chosen_contenders(tmp_path: Path) -> None:
    """With one contender chosen nothing else runs, and without the reference there is no ratio."""
    file = tmp_path / "bench.json"
    result = bench("--changes", "1000", "--rounds", "1", "--only", "noop", "--json", str(file))
    assert result.returncode == 0, result.stderr
    report = json.loads(file.read_text())
    [contender] = report["throughput"][0]["contenders"]
    assert (contender["name"], contender["ratio"]) == ("noop", None)
    assert report["memory"] is None


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
        seen = actions(server, made.slot)[:-3]  # the last transaction marks the end
    assert made.changes == 200
    assert {action: seen.count(action) for action in "IUD"} == {"I": 120, "U": 60, "D": 20}
    assert seen.count("B") == 200 // transaction_rows


def test_plugin_options_are_those_of_cdc_run(server: Server) -> None:
    """The tags' messages are asked for too, and an option that this wal2json refuses is not."""
    options = plugin_options(server)
    assert options["add-msg-prefixes"] == "cdc.tags"
    with server.slot("check") as slot:
        assert all(server.understands(slot, name, value) for name, value in options.items())
        assert not server.understands(slot, "no-such-option", "on")
