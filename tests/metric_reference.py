"""The table of metrics in docs/monitoring.md, and that of the alerts, written from the code and the rules.

``python -m tests.metric_reference`` (``make docs``) writes them anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from cdc.families import FAMILIES

__all__ = ["PAGE", "alerts_table", "filled", "metrics_table"]

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "monitoring.md"
ALERTS = ROOT / "deploy" / "prometheus" / "rules" / "alerts.yml"


def metrics_table() -> str:
    """Name, type, labels and meaning of each."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family in FAMILIES:
        labels = " ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.sample_name}` | {family.kind.value} | {labels} | {family.text} |")
    return "\n".join(lines)


def alerts_table() -> str:
    """Name, severity and condition of each."""
    lines = ["| alert | severity | when | for |", "|---|---|---|---|"]
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            condition = " ".join(str(rule["expr"]).split()).replace("|", r"\|")
            name = f"[{rule['alert']}](runbook.md#{rule['alert']})"
            lines.append(f"| {name} | {rule['labels']['severity']} | `{condition}` | {rule.get('for', '')} |")
    return "\n".join(lines)


def filled(page: str) -> str:
    """The page with both tables between their markers; ValueError without them."""
    for name, table in (("metrics", metrics_table()), ("alerts", alerts_table())):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
        found = pattern.findall(page)
        if len(found) != 1:
            raise ValueError(f"the page needs {begin} and {end}, once")
        page = page.replace(found[0], f"{begin}\n{table}\n{end}")
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
