"""How many examples, and which: the same ones in every `make test`, others in every run of `make fuzz`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadlines: the machine is busy with servers. `too_slow` is about the same.
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("random", settings.get_profile("ci"), derandomize=False, max_examples=1000, print_blob=True)


def examples(number: int) -> settings:
    """Settings of a property whose examples cost more, or find less, than others: `number` where others take 100."""
    return settings(max_examples=max(1, number * settings.default.max_examples // 100))  # type: ignore[union-attr]
