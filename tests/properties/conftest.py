"""The properties run under the profile `ci`, unless pytest is told of another: ``--hypothesis-profile random``."""

from __future__ import annotations

from hypothesis import settings

from tests.properties import profiles  # noqa: F401 - registers them

if settings.get_current_profile_name() in ("default", "ci"):  # hypothesis has a `ci` of its own
    settings.load_profile("ci")
