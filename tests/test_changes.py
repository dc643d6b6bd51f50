"""What differs between two configurations: by key, by digest, and what a reload leaves alone."""

from __future__ import annotations

from typing import Any

import pytest

from cdc.config import Config, Fingerprint, compare

BASE: dict[str, Any] = {
    "source": {"dsn": "postgresql://cdc:hunter2@db/shop"},
    "tag_rules": [{"tags": ["a"]}],
    "handlers": [
        {"name": "one", "callback": "console", "options": {"secret": "hunter2", "n": {"a": [1, 2]}}},
        {"name": "two", "callback": "m:f", "event_types": ["create", "delete"], "columns": {"mask": ["email"]}},
    ],
}


def changed(**values: Any) -> Config:
    """The base with other values."""
    return Config(**(BASE | values))


def test_equal_configurations_have_no_changes() -> None:
    """Also after their way through the state, and however sets are ordered."""
    known = Fingerprint.from_json(Fingerprint.of(changed()).to_json())
    handlers = [*BASE["handlers"][:1], {**BASE["handlers"][1], "event_types": ["delete", "create"]}]
    changes = compare(known, Fingerprint.of(changed(handlers=handlers), salt=known.salt))
    assert changes.is_empty
    assert changes.restart == ()


def test_a_fingerprint_holds_no_value() -> None:
    """And that of the same configuration is another each time: nobody can look values up."""
    one, other = Fingerprint.of(changed()), Fingerprint.of(changed())
    assert "hunter2" not in one.to_json()
    assert "email" not in one.to_json()
    assert set(one.settings.values()).isdisjoint(other.settings.values())


def test_handlers_are_compared_by_name_and_key() -> None:
    """Keys as the file has them; those of options one by one."""
    one, two = BASE["handlers"]
    handlers = [
        {**one, "options": {"secret": "other", "n": {"a": [1, 2]}, "new": True}},
        {**two, "name": "three", "columns": {"mask": []}},
    ]
    known = Fingerprint.of(changed())
    changes = compare(known, Fingerprint.of(changed(handlers=handlers), salt=known.salt))
    assert (changes.added, changes.removed) == (("three",), ("two",))
    assert changes.changed == {"one": ("options.secret", "options.new")}
    handlers = [one, {**two, "columns": {"exclude": ["email"], "mask": ["email"]}, "concurrency": 2}]
    changes = compare(known, Fingerprint.of(changed(handlers=handlers), salt=known.salt))
    assert changes.changed == {"two": ("columns.exclude", "concurrency")}


@pytest.mark.parametrize(
    ("values", "applied", "waiting"),
    [
        ({"log": {"level": "debug"}}, ("log.level",), ()),
        ({"log": {"format": "json"}}, (), ("log.format",)),
        ({"python_path": ["x"]}, ("python_path",), ()),
        ({"allowed_callbacks": ["console", "m"]}, ("allowed_callbacks",), ()),
        ({"signal": {"max_callbacks": 5}}, (), ("signal.max_callbacks",)),
        ({"http": {"port": 1}}, (), ("http.port",)),
        ({"state": {"url": "sqlite:///x.db"}}, (), ("state.url",)),
        ({"tag_rules": [{"tags": ["b"]}]}, (), ("tag_rules",)),
        ({"source": {"dsn": "postgresql://cdc:other@db/shop"}}, (), ("source.dsn",)),
    ],
)
def test_settings_apply_or_wait(values: dict[str, Any], applied: tuple[str, ...], waiting: tuple[str, ...]) -> None:
    """Each by its name in the file."""
    known = Fingerprint.of(changed())
    changes = compare(known, Fingerprint.of(changed(**values), salt=known.salt))
    assert (changes.settings, changes.restart) == (applied, waiting)


def test_code_that_was_imported_is_not_read_again() -> None:
    """A module whose file has changed waits; one that nobody has imported is new."""
    known = Fingerprint.of(changed(), {"m": "1"})
    changes = compare(known, Fingerprint.of(changed(), {"m": "2", "n": "3"}, salt=known.salt))
    assert changes.restart == ("module m: its file has changed",)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"salt": 1}'])
def test_what_is_no_fingerprint_is_refused(text: str) -> None:
    """As the state might hold it."""
    with pytest.raises(ValueError, match="no fingerprint"):
        Fingerprint.from_json(text)
