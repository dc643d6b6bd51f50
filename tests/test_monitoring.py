"""Rules and dashboard against what the service really shows: promtool's verdict, and a real Prometheus."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from cdc.demo.cluster import Cluster
from tests.conftest import OwnCluster
from tests.metric_reference import PAGE, filled
from tests.scraping import samples
from tests.waiting import Running, eventually, make_config, running

ROOT = Path(__file__).resolve().parent.parent
PROMETHEUS, GRAFANA = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
RULE_TESTS = PROMETHEUS / "tests" / "alerts.test.yml"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
METRIC = re.compile(r"\b(?:cdc_|process_)[a-z_]+\b")
RECORDED = re.compile(r"\bcdc:[a-z0-9_:]+")
SOMETIMES = {"cdc_slot_seconds_to_invalidation"}
"""Shown only while the slot's budget shrinks."""
LISTENING = re.compile(r'msg="Listening on" address=(\S+)')
INTERVAL = "500ms"
# What Grafana fills in; the services of a test are scraped twice a second.
VARIABLES = {"$__rate_interval": "30s", "$job": ".*", "$instance": ".*"}
CALLBACKS = """
seen = []

async def receive(event):
    seen.append(event)

def fail(event):
    raise ValueError("secret-value")
"""


def rules() -> Iterator[dict[str, Any]]:
    """All of them, as written."""
    for file in RULES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            yield from group["rules"]


ALERTS = [rule for rule in rules() if "alert" in rule]


def panels() -> Iterator[dict[str, Any]]:
    """Those of all dashboards that show something."""
    for file in DASHBOARDS:
        yield from (panel for panel in json.loads(file.read_text())["panels"] if panel["type"] != "row")


def expressions(panel: dict[str, Any]) -> list[str]:
    """Of a panel, as Prometheus gets them."""
    found = []
    for target in panel["targets"]:
        text = str(target["expr"])
        for variable, value in VARIABLES.items():
            text = text.replace(variable, value)
        assert "$" not in text, "a variable that nobody fills in"
        found.append(text)
    return found


def promtool(*arguments: str) -> str:
    """What it says; AssertionError when it is not content."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_configuration_and_rules() -> None:
    """As they are delivered; the configuration names the rules by a path of its own folder."""
    assert "SUCCESS" in promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert "SUCCESS" in promtool("check", "rules", *map(str, RULES))


def test_rules_fire_and_end_in_their_unit_tests() -> None:
    """Those of `promtool test rules`, for every alert and every recorded figure."""
    promtool("test", "rules", str(RULE_TESTS))
    text = RULE_TESTS.read_text()

    for rule in ALERTS:
        query = f'alertname="{rule["alert"]}", alertstate="firing"'
        assert f"{query}}}', exp_samples: []" in text, "it stays quiet"
        assert f"labels: 'ALERTS{{{query}" in text, "it fires"
    for rule in rules():
        assert "record" not in rule or f"labels: '{rule['record']}{{" in text


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """How bad it is, what it is, what to do, and where to read on."""
    assert re.fullmatch(r"Cdc[A-Z][A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert']}"
    assert len(rule["annotations"]["summary"]) > 15
    assert len(rule["annotations"]["description"]) > 40


@pytest.mark.parametrize("file", DASHBOARDS, ids=[file.stem for file in DASHBOARDS])
def test_dashboard_is_one_for_any_grafana(file: Path) -> None:
    """The data source is a variable, every figure has its unit, no panel lies upon another."""
    dashboard = json.loads(file.read_text())
    variables = {item["name"]: item for item in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert dashboard["schemaVersion"] >= 39
    uids = re.findall(r'"uid": "([^"]*)"', file.read_text())
    assert set(uids) == {"walsignal", "${datasource}"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["description"]


def test_provisioning_names_what_is_there() -> None:
    """A data source and a folder of dashboards; no password, no fixed uid."""
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "walsignal.yml").read_text())

    assert [item["type"] for item in source["datasources"]] == ["prometheus"]
    assert "uid" not in source["datasources"][0]
    assert provider["providers"][0]["options"]["path"].endswith("/dashboards")


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A real one, at work."""

    url: str
    client: aiohttp.ClientSession

    async def get(self, path: str, **params: str) -> Any:
        """`data` of an answer of its API."""
        async with self.client.get(f"{self.url}/api/v1/{path}", params=params) as response:
            answer = await response.json()
        assert answer["status"] == "success", (params, answer)
        return answer["data"]

    async def query(self, expression: str) -> list[Any]:
        """The series that an expression gives now."""
        return list((await self.get("query", query=expression))["result"])

    async def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        alerts = (await self.get("alerts"))["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    async def is_up(self) -> bool:
        """Whether it answers."""
        try:
            async with self.client.get(f"{self.url}/-/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False


@asynccontextmanager
async def prometheus(run: Running, folder: Path) -> AsyncIterator[Prometheus]:
    """Debian's, with the delivered configuration and rules, in a hurry: it scrapes `run` and waits for nothing."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL}
    config["rule_files"] = []
    for file in RULES:
        copy = folder / file.name
        copy.write_text(re.sub(r"for: \d+m", "for: 1s", file.read_text()))
        config["rule_files"].append(str(copy))
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{run.server.port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    arguments = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(["prometheus", *arguments], stdout=output, stderr=output)  # noqa: ASYNC220 - at once
    try:

        def address() -> str:
            """Where it listens: its own choice, which nobody can have taken meanwhile."""
            assert process.poll() is None, log.read_text()[-2000:]
            told = LISTENING.search(log.read_text())
            return told[1] if told else ""

        await eventually(address, timeout=60)
        found = Prometheus(f"http://{address()}", run.client)
        await eventually(found.is_up, timeout=60)
        yield found
    finally:
        process.kill()
        process.wait()


def everything_happens(cluster: Cluster) -> None:
    """Of each kind of event some, large values that do not change, and a table without an identity."""
    large = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 300) n)"
    with cluster.connect() as connection:
        connection.execute(f"INSERT INTO a SELECT n, 'x', {large} FROM generate_series(1, 20) n".encode())
        connection.execute("UPDATE a SET t = 'y'")
        connection.execute("DELETE FROM a")
        connection.execute("INSERT INTO keyless VALUES (1); UPDATE keyless SET n = 2; DELETE FROM keyless")


async def test_a_fault_fires_its_alert_and_the_alert_ends(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """The database is killed: CdcNotConnected fires, and ends when it is back. Another handler fails: it is told, too.

    Meanwhile every expression of the rules and of the dashboard finds series, and every name is one that is shown.
    """
    cluster = own_cluster({"max_slot_wal_keep_size": "1GB"})
    with cluster.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, t text, large text); CREATE TABLE keyless (n int)")
    handlers: dict[str, str | dict[str, Any]] = {
        "good": {"callback": "receive"},
        "bad": {"callback": "fail", "max_attempts": 2},
    }
    config = make_config(cluster.dsn(), tmp_path, handlers, CALLBACKS)
    async with running(config) as run, prometheus(run, tmp_path) as server:

        async def is_scraped() -> bool:
            return bool(await server.query('cdc_connected == 1 and on () cdc_callback_up{callback="bad"} == 1'))

        await eventually(is_scraped, timeout=30)
        assert "CdcNotConnected" not in await server.firing()
        everything_happens(cluster)

        async def shows_all() -> bool:
            everything_happens(cluster)
            return not await silent(server)

        async def fires(name: str) -> bool:
            return name in await server.firing()

        async def ends(name: str) -> bool:
            return not await fires(name)

        try:
            await eventually(shows_all, timeout=30)
        except AssertionError:
            pytest.fail(f"without a series: {await silent(server)}")
        await eventually(lambda: fires("CdcHandlerRemoved"), timeout=30)
        _, text = await run.get("/metrics")
        await asyncio.to_thread(cluster.kill)
        await eventually(lambda: fires("CdcNotConnected"), timeout=30)
        # It answers while its database is away; on a busy machine a scrape in half a second may fail, and the next not.
        await eventually(lambda: ends("CdcDown"), timeout=30)
        await asyncio.to_thread(cluster.start)
        await eventually(lambda: ends("CdcNotConnected"), timeout=30)
        await eventually(lambda: fires("CdcHandlerRemoved"), timeout=30)  # that is another's fault
        for rule in ALERTS:
            await server.query(rule["expr"])

    shown = {key[0] for key in samples(text)}
    used = [rule["expr"] for rule in rules()] + [text for panel in panels() for text in expressions(panel)]
    assert {name for expression in used for name in METRIC.findall(expression)} - shown <= SOMETIMES
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert {name for expression in used for name in RECORDED.findall(expression)} <= recorded


async def silent(server: Prometheus) -> list[str]:
    """Expressions of the dashboard that give no series."""
    return [
        f"{panel['title']}: {expression}"
        for panel in panels()
        for expression in expressions(panel)
        if not await server.query(expression)
    ]


def test_reference_is_that_of_the_code() -> None:
    """The tables of metrics and alerts in docs/monitoring.md; if not: make docs."""
    page = PAGE.read_text()

    assert page == filled(page), "make docs"


def test_reference_without_its_markers_is_told() -> None:
    """Nobody shall believe that its tables are up to date."""
    with pytest.raises(ValueError, match="the page needs"):
        filled("no markers")
