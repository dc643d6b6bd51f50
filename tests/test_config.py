"""The configuration file: what it may say, what it becomes, and how its mistakes are told."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cdc.config import AfterRemoval, Config, OnFailure, SignalConfig, find, load
from cdc.errors import ConfigError
from cdc.events import EventType

DSN = "postgresql://cdc:s3cret@db/shop"
MINIMAL = f'[source]\ndsn = "{DSN}"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for cdc.toml, and no settings in the environment."""
    for name in ("CDC_CONFIG", "CDC_DSN", "CDC_TEST"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    """cdc.toml with this text."""
    path = folder / "cdc.toml"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def problems(folder: Path, text: str) -> tuple[str, ...]:
    """The problems of a file that must have some."""
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text))
    return caught.value.problems


def test_minimal_file_gets_every_default(folder: Path) -> None:
    """Only source.dsn has to be said."""
    config = load(write(folder, MINIMAL))

    assert config.source.dsn == DSN
    assert (config.source.slot, config.source.create_slot, config.source.plugin) == ("cdc", True, "wal2json")
    assert config.source.tables == ("*.*",)
    assert config.source.exclude_tables == ()
    assert config.source.tag_message_prefix == "cdc.tags"
    assert config.source.tags_column == "__tags__"
    assert config.source.soft_delete_columns == ("__is_active__",)
    assert config.state.url == f"sqlite:///{folder}/cdc-state.db"
    assert config.state.checkpoint_interval_seconds == 1.0
    assert (config.http.enabled, config.http.host, config.http.port) == (True, "127.0.0.1", 9464)
    assert (config.log.level, config.log.format) == ("info", "auto")
    assert (config.handlers, config.tag_rules, config.python_path) == ((), (), ())
    assert config.warnings == ()
    assert config.file == folder / "cdc.toml"


def test_signal_config_has_the_defaults_of_the_specification() -> None:
    """It is made by code as well as by the file."""
    assert SignalConfig().model_dump() == {
        "callback_timeout_seconds": 30,
        "max_callbacks": 100,
        "remove_failing_callbacks": True,
        "max_consecutive_failures": 3,
        "cleanup_interval_seconds": 60,
        "auto_remove_inactive_callbacks": True,
        "inactive_callback_threshold_seconds": 300,
        "max_queued_events": 10_000,
        "max_queued_bytes": 64 * 1024**2,
        "max_parked_events": 100_000,
        "max_parked_bytes": 1024**3,
        "drain_timeout_seconds": 30,
    }
    assert SignalConfig(max_callbacks=2).max_callbacks == 2
    with pytest.raises(ValidationError):
        SignalConfig(max_callbacks=0)


def test_settings_cannot_be_changed(folder: Path) -> None:
    """What was checked stays as it was checked."""
    config = load(write(folder, MINIMAL))

    with pytest.raises(ValidationError):
        config.source.slot = "other"


def test_handler_says_all_that_the_design_shows(folder: Path) -> None:
    """Every key of [[handlers]] and [[tag_rules]] arrives."""
    config = load(
        write(
            folder,
            MINIMAL
            + """
[[tag_rules]]
tables = ["public.users"]
event_types = ["create"]
tags = ["notify:email"]

[[handlers]]
name = "audit"
callback = "handlers.audit_log:AuditLog"
tables = ["public.users"]
event_types = ["create", "truncate"]
tags = ["audit:*"]
columns = { exclude = ["password_hash"], mask = ["email"] }
concurrency = 4
timeout_seconds = 5
max_attempts = 7
on_failure = "block"
after_removal = "drop"
[handlers.options]
dsn = "x"
count = 3
""",
        )
    )

    (rule,) = config.tag_rules
    assert (rule.tables, rule.event_types, rule.tags) == (
        ("public.users",),
        frozenset({EventType.CREATE}),
        ("notify:email",),
    )
    (audit,) = config.handlers
    assert (audit.name, audit.callback) == ("audit", "handlers.audit_log:AuditLog")
    assert audit.event_types == {EventType.CREATE, EventType.TRUNCATE}
    assert (audit.tables, audit.tags) == (("public.users",), ("audit:*",))
    assert (audit.columns.exclude, audit.columns.mask) == (("password_hash",), ("email",))
    assert (audit.concurrency, audit.timeout_seconds, audit.max_attempts) == (4, 5.0, 7)
    assert (audit.on_failure, audit.after_removal) == (OnFailure.BLOCK, AfterRemoval.DROP)
    assert audit.options == {"dsn": "x", "count": 3}
    assert config.timeout_of(audit) == 5.0


def test_handler_defaults(folder: Path) -> None:
    """A handler is its callback; all the rest has a default, the name, too."""
    config = load(write(folder, MINIMAL + '[[handlers]]\ncallback = "mine.module:function"\n'))

    (handler,) = config.handlers
    assert handler.name == "mine.module.function"
    assert handler.event_types == {EventType.CREATE, EventType.UPDATE, EventType.DELETE}
    assert (handler.tables, handler.tags, handler.options) == (("*.*",), (), {})
    assert (handler.concurrency, handler.max_attempts) == (1, 3)
    assert (handler.on_failure, handler.after_removal) == (OnFailure.DEAD_LETTER, AfterRemoval.PARK)
    assert config.timeout_of(handler) == 30.0


def test_references_read_environment_and_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each form of reference, in any string, several in one."""
    monkeypatch.setenv("CDC_TEST", "from-environment")
    monkeypatch.setenv("CDC_FOLDER", str(folder))
    (folder / "secret").write_text("from-file\r\n\n")

    config = load(
        write(
            folder,
            MINIMAL
            + """
[[handlers]]
callback = "console"
[handlers.options]
plain = "a $ and $b"
escaped = "$${CDC_TEST}"
variable = "<${CDC_TEST}>"
default = "${CDC_NOT_SET:-some: default}"
empty = "${CDC_NOT_SET:-}"
relative = "${file:secret}"
both = "${CDC_TEST}+${file:secret}"
folder = "${file:${CDC_FOLDER}/secret}"
fallback = "<${file:${CDC_NOT_SET:-.}/secret}>"
nested = { list = ["${CDC_TEST}"] }
""",
        )
    )

    options = config.handlers[0].options
    assert options == {
        "plain": "a $ and $b",
        "escaped": "${CDC_TEST}",
        "variable": "<from-environment>",
        "default": "some: default",
        "empty": "",
        "relative": "from-file",
        "both": "from-environment+from-file",
        "folder": "from-file",
        "fallback": "<from-file>",
        "nested": {"list": ["from-environment"]},
    }
    assert {type(value) for value in options.values()} == {str, dict}


def test_what_a_reference_brings_is_not_looked_at_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret can neither read another variable nor add a line to the file."""
    monkeypatch.setenv("CDC_TEST", '${HOME}"\nslot = "injected')

    config = load(write(folder, MINIMAL + '[[handlers]]\ncallback = "console"\noptions = { x = "${CDC_TEST}" }\n'))

    assert config.source.slot == "cdc"
    assert config.handlers[0].options["x"] == '${HOME}"\nslot = "injected'


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("http.port", "9999", 9999),
        ("signal.max_queued_bytes", "2KiB", 2048),
        ("signal.callback_timeout_seconds", "1.5", 1.5),
        ("signal.remove_failing_callbacks", "false", False),
        ("source.create_slot", "0", False),
        ("log.level", "debug", "debug"),
    ],
)
def test_environment_may_give_numbers_and_flags(
    folder: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: str, expected: object
) -> None:
    """The environment knows only text; a reference in quotes becomes what the setting is."""
    monkeypatch.setenv("CDC_TEST", value)
    section, key = setting.split(".")
    text = MINIMAL + f'{key} = "${{CDC_TEST}}"\n' if section == "source" else ""
    config = load(write(folder, text or MINIMAL + f'[{section}]\n{key} = "${{CDC_TEST}}"\n'))

    assert getattr(getattr(config, section), key) == expected


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1024", 1024),
        ('"1024"', 1024),
        ('"64MiB"', 64 * 1024**2),
        ('"1.5 GiB"', 3 * 512 * 1024**2),
        ('"10kB"', 10_000),
        ('"2MB"', 2_000_000),
    ],
)
def test_size_has_a_unit_or_is_bytes(folder: Path, written: str, size: int) -> None:
    """Both families of units, as they are defined."""
    config = load(write(folder, MINIMAL + f"[signal]\nmax_queued_bytes = {written}\n"))

    assert config.signal.max_queued_bytes == size


def test_relative_paths_start_at_the_files_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the process was started; absolute paths stay what they are."""
    monkeypatch.chdir("/")
    text = f'python_path = [".", "lib/x", "/abs"]\n{MINIMAL}[state]\nurl = "sqlite:///data/../s.db"\n'

    config = load(write(folder, text))

    assert config.python_path == (folder, folder / "lib/x", Path("/abs"))
    assert config.state.url == f"sqlite:///{folder}/s.db"
    absolute = load(write(folder, MINIMAL + '[state]\nurl = "sqlite:////var/lib/cdc.db"\n'))
    assert absolute.state.url == "sqlite:////var/lib/cdc.db"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "source: is missing"),
        ("[source]", "source.dsn: is missing"),
        (
            '[source]\ndsn = "${CDC_NOT_SET}"',
            'source.dsn = "${CDC_NOT_SET}": environment variable CDC_NOT_SET is not set; set it, or',
        ),
        (
            '[source]\ndsn = "${file:gone}"',
            'source.dsn = "${file:gone}": cannot read the file gone: No such file or directory',
        ),
        (
            '[source]\ndsn = "${file:${CDC_NOT_SET:-nowhere}/dsn}"',
            "cannot read the file ${CDC_NOT_SET:-nowhere}/dsn: No such file or directory",
        ),
        ('[source]\ndsn = "${file:${CDC_NOT_SET}/dsn}"', "environment variable CDC_NOT_SET is not set"),
        ('[source]\ndsn = "${file:${CDC_NOT_SET"', "holds a ${ without its }"),
        ('[source]\ndsn = "${broken"', "holds a ${ without its }"),
        ('[source]\ndsn = "${not a name}"', "is no reference"),
        ('[source]\ndsn = "host=h s3cret"', "source.dsn: is neither a libpq URI nor key=value"),
        ('[source]\ndsn = "host=h password=my s3cret=x"', "source.dsn: is neither a libpq URI nor key=value"),
        ('[source]\ndsn = "host=h dbnam=s3cret"', "source.dsn: libpq has no parameter dbnam; did you mean dbname?"),
        ('[source]\ndsn = "postgresql://h/d?sslmod=s3cret"', "libpq has no parameter sslmod; did you mean sslmode?"),
        ('[source]\ndsn = ""', "source.dsn: must not be empty"),
        (MINIMAL + 'slot = "Upper-Case"', 'source.slot = "Upper-Case": must be 1 to 63 lower-case letters'),
        (MINIMAL + f'slot = "{"x" * 64}"', "must be 1 to 63 lower-case letters"),
        (MINIMAL + 'plugin = "pgoutput"', "source.plugin = \"pgoutput\": must be 'wal2json'"),
        (MINIMAL + 'create_slot = "yes"', 'create_slot = "yes": must be true or false, without quotes'),
        (MINIMAL + "create_slot = 1", "source.create_slot = 1: must be true or false"),
        (MINIMAL + 'tables = ["users"]', "tables[1] = \"users\": table pattern 'users' names no schema"),
        (MINIMAL + "tables = []", "source.tables: must name at least one"),
        (MINIMAL + 'tables = "public.*"', 'source.tables = "public.*": must be a list: ["..."]'),
        (MINIMAL + 'exclude_tables = ["x.y.z"]', "source.exclude_tables[1]"),
        (MINIMAL + 'tabels = ["*.*"]', "source.tabels: unknown key; did you mean tables?"),
        (MINIMAL + "[qqq]", "qqq: unknown key; known are allowed_callbacks, handlers, http,"),
        ('slot = "x"\n' + MINIMAL, "slot: unknown key; it belongs in [source]"),
        (MINIMAL + "[state]\nurl = 'mysql://u:s3cret@h/x'", "state.url: must start with sqlite:/// or postgresql://"),
        (MINIMAL + "[state]\nurl = 'sqlite:///:memory:'", "state.url: must name a file"),
        (MINIMAL + "[state]\ncheckpoint_interval_seconds = 0", "must be more than 0"),
        (MINIMAL + "[signal]\ncleanup_interval_seconds = inf", "must be a finite number"),
        (MINIMAL + "[signal]\nmax_callbacks = 0", "signal.max_callbacks = 0: must be at least 1"),
        (MINIMAL + "[signal]\nmax_callbacks = 1.5", "signal.max_callbacks = 1.5: must be a whole number"),
        (MINIMAL + "[signal]\nmax_callbacks = true", "signal.max_callbacks = true: must be a whole number"),
        (MINIMAL + '[signal]\nmax_callbacks = "7"', 'signal.max_callbacks = "7": must be a whole number'),
        (MINIMAL + '[signal]\nmax_queued_bytes = "64 MiBi"', 'must be a size such as "64MiB"'),
        (MINIMAL + "[http]\nport = 65536", "http.port = 65536: must be at most 65535"),
        (MINIMAL + '[log]\nlevel = "loud"', "level = \"loud\": must be 'debug', 'info', 'warning' or"),
        (MINIMAL + "[handlers]\nname = 'x'", "handlers: must be a list of tables; write [[handlers]]"),
        (MINIMAL + "[source.tables]", 'source.tables: must be a list: ["..."]'),
        (MINIMAL + "[[tag_rules]]", "tag_rules[1].tags: is missing"),
        (MINIMAL + "[[handlers]]\nname = 'x'", "handlers[1] (x).callback: is missing"),
    ],
)  # fmt: skip
def test_mistake_is_told_with_key_value_and_fix(folder: Path, text: str, problem: str) -> None:
    """Each kind of mistake, in the words of the file."""
    (found,) = problems(folder, text)

    assert problem in found
    assert "s3cret" not in found


HANDLER = MINIMAL + '[[handlers]]\nname = "audit"\ncallback = "m:f"\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("concurrency = 0", "handlers[1] (audit).concurrency = 0: must be at least 1"),
        ("concurrency = 65", "handlers[1] (audit).concurrency = 65: must be at most 64"),
        ("timeout_seconds = -1", "handlers[1] (audit).timeout_seconds = -1: must be more than 0"),
        ("max_attempts = 0", "handlers[1] (audit).max_attempts = 0: must be at least 1"),
        ('event_types = ["insert"]', "(audit).event_types[1] = \"insert\": must be 'create', 'update'"),
        ("event_types = []", "handlers[1] (audit).event_types: must name at least one"),
        ('on_failure = "ignore"', "must be 'dead_letter' or 'block'"),
        ('after_removal = "x"', "must be 'park' or 'drop'"),
        ("columns = { excluded = [] }", "(audit).columns.excluded: unknown key; did you mean exclude?"),
        ("columns = { mask = 'x' }", 'handlers[1] (audit).columns.mask = "x": must be a list'),
        ("options = 3", "handlers[1] (audit).options: must be a table"),
        ("timout = 3", "handlers[1] (audit).timout: unknown key; did you mean timeout_seconds?"),
        ('[[handlers]]\nname="audit"\ncallback="n:g"', "handlers[2] (audit): the name 'audit' is taken"),
        ('[[handlers]]\nname="a b"\ncallback="n:g"', "(a b).name = \"a b\": must be 1 to 64 letters"),
        ('[[handlers]]\ncallback="not a name"', "must be \"package.module:name\""),
    ],
)  # fmt: skip
def test_mistake_in_a_handler_names_the_handler(folder: Path, text: str, problem: str) -> None:
    """Handlers are counted from 1, as in the file, and called by name."""
    found = problems(folder, HANDLER + text)

    assert any(problem in one for one in found)


def test_all_problems_are_told_at_once(folder: Path) -> None:
    """Nobody mends a file one mistake at a time; those of two kinds stand side by side, too."""
    found = problems(
        folder,
        """
colour = "blue"
[source]
dsn = "${CDC_NOT_SET}"
slot = "A"
[http]
port = "x"
[signal]
max_callbacks = 1
[[handlers]]
name = "same"
callback = "m:f"
concurrency = 99
[[handlers]]
name = "same"
callback = "m:f"
[handlers.options]
x = "${ALSO_NOT_SET}"
""",
    )

    keys = {line.partition(":")[0].partition(" = ")[0] for line in found}
    assert keys == {
        "colour",
        "source.dsn",
        "source.slot",
        "http.port",
        "handlers[1] (same).concurrency",
        "handlers[2] (same)",
        "handlers[2] (same).options.x",
        "handlers",
    }


def test_expanded_values_are_never_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem shows the reference as the file has it, not what it brought."""
    monkeypatch.setenv("CDC_TEST", "s3cret")

    (found,) = problems(folder, MINIMAL + '[http]\nport = "${CDC_TEST}"\n')

    assert found == 'http.port = "${CDC_TEST}": must be a whole number, without quotes'


def test_repr_shows_no_secrets(folder: Path) -> None:
    """Connection strings, the state's URL and the options of handlers stay out of logs."""
    text = (
        MINIMAL
        + '[state]\nurl = "postgresql://u:s3cret@h/d"\n'
        + '[[handlers]]\ncallback = "m:f"\noptions = { k = "s3cret" }\n'
    )
    config = load(write(folder, text))

    assert "s3cret" not in f"{config!r} {config!s} {config.source!r} {config.handlers!r}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[source\n", "is not TOML"),
        (b"[source]\ndsn = ${CDC_DSN}\n", "line 2"),
        (b"[source]\ndsn = '\xff'\n", "is not UTF-8 text"),
    ],
)
def test_file_that_cannot_be_read_is_an_error(folder: Path, text: bytes, says: str) -> None:
    """And says where it is wrong."""
    path = folder / "cdc.toml"
    path.write_bytes(text)

    with pytest.raises(ConfigError, match=says) as caught:
        load(path)
    assert caught.value.hint


def test_byte_order_mark_is_accepted(folder: Path) -> None:
    """Some editors write one."""
    path = folder / "cdc.toml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())

    assert load(path).source.dsn == DSN


@pytest.mark.parametrize(("mode", "who"), [(0o620, "its group"), (0o602, "everybody")])
def test_file_that_others_can_write_is_warned_of(folder: Path, mode: int, who: str) -> None:
    """Whoever writes it runs code as the service; it is used all the same."""
    path = write(folder, MINIMAL)
    path.chmod(mode)

    (warning,) = load(path).warnings

    assert who in warning
    assert "chmod go-w" in warning


def test_find_prefers_option_then_variable_then_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--config, $CDC_CONFIG, ./cdc.toml."""
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=r"no configuration file cdc\.toml") as caught:
        find()
    assert "cdc init" in caught.value.hint

    here = write(folder, MINIMAL)
    other, third = folder / "other.toml", folder / "third.toml"
    other.write_text(MINIMAL)
    third.write_text(MINIMAL)
    assert find() == here
    monkeypatch.setenv("CDC_CONFIG", str(other))
    assert find() == other
    assert find(third) == third
    with pytest.raises(ConfigError, match="--config"):
        find(folder / "gone.toml")


def uncommented(text: str) -> str:
    """The template with its commented settings switched on."""
    lines = []
    for line in text.splitlines():
        bare = line.removeprefix("# ")
        is_setting = line.startswith("# ") and (" = " in bare or bare.startswith("[[tag_rules]]"))
        lines.append(bare if is_setting and not bare.startswith("key = ") else line)
    return "\n".join(lines)


def test_template_shows_every_setting_with_its_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of `cdc init` works as it is, and its comments tell the truth."""
    monkeypatch.setenv("CDC_DSN", DSN)
    template = files("cdc.cli").joinpath("template.toml").read_text(encoding="utf-8")

    plain = load(write(folder, template))
    everything = uncommented(template)
    full = load(write(folder, everything))

    for section in ("source", "state", "signal", "slot_guard", "http", "log"):
        assert getattr(full, section) == getattr(plain, section), section
        written: dict[str, Any] = tomllib.loads(everything)[section]
        assert written.keys() == type(getattr(full, section)).model_fields.keys(), section
    assert tomllib.loads(everything).keys() == Config.model_fields.keys()
    shown = tomllib.loads(everything)["handlers"][0]
    assert shown.keys() | {"options"} == type(full.handlers[0]).model_fields.keys()
    assert full.handlers[0].model_copy(update={"options": {}, "timeout_seconds": None}) == plain.handlers[0]
