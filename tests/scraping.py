"""What `/metrics` says, as the tests read it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families as parse_text

from cdc.metrics import ServiceCollector
from cdc.rendering import Families, render
from cdc.service import Service
from tests.waiting import Running

__all__ = ["Samples", "counters", "of", "samples", "scrape"]

Samples = dict[tuple[str, ...], float]


def samples(text: str) -> Samples:
    """(name, label values in order of their names) → value; a series that occurs twice fails."""
    found: Samples = {}
    for family in parse_text(text):
        for sample in family.samples:
            key = (sample.name, *(value for _, value in sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def counters(text: str) -> Samples:
    """Those that may only rise: counters, and the parts of histograms."""
    kinds = {"counter", "histogram"}
    names = {sample.name for family in parse_text(text) if family.type in kinds for sample in family.samples}
    return {key: value for key, value in samples(text).items() if key[0] in names}


async def scrape(run: Running) -> Samples:
    """The metrics of a running service."""
    status, text = await run.get("/metrics")
    assert status == 200
    return samples(text)


def of(service: Service) -> Samples:
    """The metrics of a service that does not run."""
    body, _ = render(Families(ServiceCollector(service).collect()), "")
    return samples(body.decode())
