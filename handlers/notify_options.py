"""Options of the `notify` handler: channels, rules and conditions, all that can be wrong in them told at the start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from cdc import ConfigError, HandlerOptions, TablePatterns
from handlers.notify_channels import Channel
from handlers.notify_template import Template

__all__ = ["Condition", "NotifyOptions", "Rule"]

Op = Literal["=", "!=", "<", "<=", ">", ">=", "in", "not in", "like", "is null", "is not null", "changed"]
T = TypeVar("T")
_WITHOUT_VALUE = ("is null", "is not null", "changed")


def _template(*extra: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        Template(text, extra)
        return text

    return check


def _table(pattern: str) -> str:
    try:
        TablePatterns([pattern])
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return pattern


def _url(url: SecretStr) -> SecretStr:
    Channel("new", url.get_secret_value())
    return url


def _not_empty(items: T) -> T:
    """Not by `min_length`, which also complains when an item is wrong."""
    if not items:
        raise ValueError("needs one at least")
    return items


Text = Annotated[str, AfterValidator(_template())]


class _Table(BaseModel):
    """A table inside of the options, as strict as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Condition(_Table):
    """What a column must hold."""

    column: str = Field(min_length=1, description="Name of the column.")
    op: Op = Field(
        description="How its value is compared. `like` takes `*` and `?`; `changed` is met by creates, and by updates"
        " whose old value is known and another."
    )
    value: Any = Field(
        None,
        validate_default=True,
        description="What with: text, number, boolean, date or time; a list of those for `in` and `not in`.",
    )
    old: bool = Field(False, description="Look at the old row, as far as the replica identity gives it.")

    @field_validator("value")
    @classmethod
    def _fits(cls, value: Any, info: ValidationInfo) -> Any:
        op = info.data.get("op")
        if op is None:
            return value  # told already
        if op in _WITHOUT_VALUE:
            if value is not None:
                raise ValueError(f"{op} takes no value")
        elif value is None:
            raise ValueError(f"{op} needs a value")
        elif op == "like" and not isinstance(value, str):
            raise ValueError("like needs a text such as EU-*")
        elif isinstance(value, dict) or isinstance(value, list) is not (op in ("in", "not in")):
            raise ValueError(f"{op} needs {'a list' if op.endswith('in') else 'one value'}")
        return value


class Rule(_Table):
    """Which events are told of, how, and where."""

    name: str = Field(
        min_length=1, max_length=100, description="In logs and digests; what waits for a digest is kept by it."
    )
    channels: Annotated[tuple[str, ...], AfterValidator(_not_empty)] = Field(
        description="Names of the channels that get the message."
    )
    tables: tuple[Annotated[str, AfterValidator(_table)], ...] = Field(
        (), description="Patterns such as `public.*`; default: all that the handler gets."
    )
    event_types: Annotated[
        tuple[Literal["create", "update", "delete", "truncate"], ...], AfterValidator(_not_empty)
    ] = Field(("create", "update", "delete"), description="Types of events.")
    tags: tuple[str, ...] = Field((), description="Globs such as `notify:*`, one of which a tag must match.")
    when: tuple[Condition, ...] = Field((), description="Conditions on columns; all must be met.")
    title: Text = Field("{event_type} {table} {record_id}", description="Template of the title, a mail's subject.")
    body: Text = Field(
        "{event_type} of {table}, record {record_id}, at {timestamp}", description="Template of the message."
    )
    missing: str | None = Field(
        None, description="Text for a column that an event lacks; without it such an event fails for good."
    )
    severity: Literal["info", "success", "warning", "failure"] = Field(
        "info", description="Colour or symbol of the message, where a channel has such."
    )
    limit: int = Field(
        10, ge=0, le=1000, description="Messages per window and channel; 0: only digests. More events are digested."
    )
    window_seconds: float = Field(60.0, ge=0.1, le=86400, description="Length of the window.")
    digest_title: Annotated[str, AfterValidator(_template("rule", "count"))] = Field(
        "{rule}: {count} more events", description="Title of a digest, with `{rule}` and `{count}` alone."
    )
    samples: int = Field(5, ge=0, le=100, description="Events whose titles are shown in a digest.")

    @field_validator("digest_title")
    @classmethod
    def _has_no_event(cls, text: str) -> str:
        try:
            text.format(rule="", count=0)
        except (KeyError, IndexError, ValueError, AttributeError):
            raise ValueError("takes {rule} and {count} only: a digest is of many events") from None
        return text


class NotifyOptions(HandlerOptions):
    """Options of the `notify` handler."""

    channels: dict[str, Annotated[SecretStr, AfterValidator(_url)]] = Field(
        min_length=1, description="Name → Apprise URL, such as `mailtos://USER:PASSWORD@HOST?to=ops@example.com`."
    )
    rules: Annotated[tuple[Rule, ...], AfterValidator(_not_empty)] = Field(
        description="Tables `[[handlers.options.rules]]`, see below."
    )
    journal: Path = Field(
        Path("notify.db"), description="File of what was sent and what waits for a digest; one handler has it alone."
    )

    @field_validator("rules")
    @classmethod
    def _fit_together(cls, rules: tuple[Rule, ...], info: ValidationInfo) -> tuple[Rule, ...]:
        names = [rule.name for rule in rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two rules are called {', '.join(twice)}")
        known = info.data.get("channels")
        for rule in rules:
            unknown = [name for name in rule.channels if known is not None and name not in known]
            if unknown:
                raise ValueError(f"rule {rule.name} names channels that there are not: {', '.join(unknown)}")
        return rules
