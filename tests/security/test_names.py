"""Identifiers that try to be something else: with quotes, newlines, escape codes, other scripts.

That every such name is told, selected and left out as what it is, is tested where streams are
(`tests/test_end_to_end.py`); here the whole service is, with what it writes for programs and Prometheus.
"""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cdc.config import load
from cdc.errors import ConfigError
from tests.conftest import Database
from tests.running import child, wait_until

SCHEMA = "s'; DROP TABLE x; --\r\n\x1b[31mred"
TABLE = 't"\n{"event": "callback_failed", "level": "error"}\n\u202egnp\u2028{}'
COLUMN = "e\"mail'\n\x1b]0;title\x07*,\\"
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]")


def quoted(*names: str) -> str:
    """An identifier of SQL, and a pattern of the configuration."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def test_hostile_names_are_data_everywhere(database: Database, tmp_path: Path) -> None:
    """Selected, masked, delivered, failed, logged, shown and counted: one line stays one line, one label one label."""
    name = quoted(SCHEMA, TABLE)
    database.execute(f"CREATE SCHEMA {quoted(SCHEMA)}; CREATE TABLE {name} (id int PRIMARY KEY, {quoted(COLUMN)} text)")
    database.execute("CREATE TABLE other (id int PRIMARY KEY)")
    (tmp_path / "mine.py").write_text(
        "import json, pathlib\n\n\ndef keep(event):\n"
        "    seen = [event.schema, event.table_name, dict(event.payload)]\n"
        "    pathlib.Path('seen.json').write_text(json.dumps(seen))\n\n\n"
        "def fail(event):\n    raise ValueError(f'no {event.table_name}')\n"
    )
    with child(tmp_path, database.dsn, http={"enabled": True, "port": 0}) as service:
        head = (tmp_path / "cdc.toml").read_text().split("[[handlers]]")[0]
        head = head.replace("[source]", f"[source]\ntables = [{json.dumps(name)}]")
        handlers = [
            f'[[handlers]]\nname = "{one}"\ncallback = "mine:{one}"\nmax_attempts = 1\n'
            f"tables = [{json.dumps(name)}]\ncolumns = {{ mask = [{json.dumps(COLUMN)}] }}"
            for one in ("keep", "fail")
        ]
        (tmp_path / "cdc.toml").write_text("\n".join([head, *handlers]) + "\n")
        service.start()
        port = service.log("http_listening")[-1]["port"]
        database.execute("INSERT INTO other VALUES (1)")
        database.execute(f"INSERT INTO {name} VALUES (7, 'private')")
        wait_until((tmp_path / "seen.json").exists, what="the event")
        service.wait_for_log("callback_failed")

        def text(path: str) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
                return str(answer.read().decode())

        wait_until(lambda: "events_total{" in text("/metrics"), what="the event is counted")
        metrics, status = text("/metrics"), text("/status")
        service.stop()
    schema, table, payload = json.loads((tmp_path / "seen.json").read_text())

    assert (schema, table) == (SCHEMA, TABLE)
    assert payload["id"] == 7
    assert payload[COLUMN] != "private"
    log = service.log_path.read_text()
    assert all(json.loads(line)["event"] for line in log.splitlines())
    assert [entry["callback"] for entry in service.log("callback_failed")] == ["fail"]
    labels = {
        sample.labels["table"]
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "cdc_events_total"
    }
    assert labels == {f"{SCHEMA}.{TABLE}"}  # the format escapes what it must, and is read back exactly
    assert {"callbacks", "slot"} <= json.loads(status).keys()
    assert not CONTROL.search(log)
    assert not CONTROL.search(status)
    assert not any("private" in shown for shown in (log, status, metrics))


@pytest.mark.parametrize("slot", ['a"b', "a'; DROP", "a\nb", "a\x1b[0m", "ä", "A", "a-b", "", "a" * 64])
def test_slot_is_a_plain_name_or_an_error(tmp_path: Path, slot: str) -> None:
    """It stands in commands of the replication protocol, which knows no parameters."""
    file = tmp_path / "cdc.toml"
    file.write_text(f'[source]\ndsn = "postgresql:///none"\nslot = {json.dumps(slot)}\n')

    with pytest.raises(ConfigError) as caught:
        load(file)

    assert caught.value.problems[0].startswith("source.slot")
    assert not CONTROL.search(caught.value.problems[0])
