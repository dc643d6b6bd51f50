"""Options of a handler as a model: made from the file's, or every mistake told by its key."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator

from cdc import ConfigError, DatabaseEvent, HandlerOptions
from cdc.config import HandlerConfig
from cdc.loading import load_callback
from cdc.options import options_model

SECRET = "s3cret-value"


class Rule(BaseModel, frozen=True, extra="forbid"):
    """One of several tables in the options."""

    to: str
    template: Path | None = None
    retries: int = Field(default=0, validate_default=True)

    @field_validator("retries")
    @classmethod
    def _enough(cls, value: int, info: ValidationInfo) -> int:
        if value == 0 and info.data.get("to") == "far":
            raise ValueError("must be 1 or more for what is far")
        return value


class Options(HandlerOptions):
    """A bit of everything."""

    directory: Path
    password: SecretStr = SecretStr("")
    mode: Literal["a", "b"] = "a"
    limit: int = Field(default=5, ge=1, description="How many at most.")
    size: int | bool = 1
    nearby: bool | int = Field(default=True, validate_default=True)
    spool: Path = Path("spool")
    more: tuple[Path, ...] = ()
    servers: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(1,), min_length=1)
    rules: list[Rule] = Field(default_factory=list)
    named: dict[str, Rule] = Field(default_factory=dict)

    @field_validator("password")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < 4:
            raise ValueError("must have 4 characters or more")
        return value

    @field_validator("nearby")
    @classmethod
    def _not_far(cls, value: bool | int, info: ValidationInfo) -> bool | int:
        if value and info.data.get("directory") == Path("/far"):
            raise ValueError("must be false for that directory")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Options:
        if self.mode == "b" and self.limit > 10:
            raise ValueError("mode b needs a limit of at most 10")
        if self.mode == "b" and self.size == 0:
            raise self.wrong_option("size", "must not be {0} with mode b")
        return self


class Handler:
    """Takes the options as one object."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def handle_batch(self, events: Sequence[DatabaseEvent]) -> None: ...


class Optional(Handler):
    """Can be made by hand without options."""

    def __init__(self, options: Options = Options(directory=Path("x"))) -> None:  # noqa: B008 - it is frozen
        super().__init__(options)


def load(base: Path, callback: str = "Handler", **options: Any) -> Any:
    """The handler of this module, as a configuration in `base` makes it."""
    handler = HandlerConfig(callback=f"{__name__}:{callback}", name="audit", options=options)
    return load_callback(handler, base)


def problems(base: Path, **options: Any) -> dict[str, str]:
    """Key → what is wrong with it, of options that must have something wrong."""
    with pytest.raises(ConfigError) as caught:
        load(base, **options)
    assert SECRET not in str(caught.value) + " ".join(caught.value.problems)
    return dict(problem.split(": ", 1) for problem in caught.value.problems)


@pytest.mark.parametrize("callback", ["Handler", "Optional"])
def test_constructor_that_takes_a_model_gets_the_options_as_one(tmp_path: Path, callback: str) -> None:
    """Converted, with defaults, and frozen."""
    options = load(tmp_path, callback, directory="d", limit="7", password=SECRET).options

    assert (options.limit, options.mode, options.password.get_secret_value()) == (7, "a", SECRET)
    with pytest.raises(ValidationError):
        options.limit = 8


def test_relative_paths_start_at_the_configurations_folder_at_any_depth(tmp_path: Path) -> None:
    """In fields, defaults, lists, tables and nested models; absolute ones stay."""
    options = load(
        tmp_path,
        directory="d",
        more=["one", "/two"],
        rules=[{"to": "x", "template": "t"}, {"to": "y"}],
        named={"n": {"to": "z", "template": "/t"}},
    ).options

    assert (options.directory, options.spool) == (tmp_path / "d", tmp_path / "spool")
    assert options.more == (tmp_path / "one", Path("/two"))
    assert [rule.template for rule in options.rules] == [tmp_path / "t", None]
    assert options.named["n"].template == Path("/t")


def test_every_wrong_option_is_told_at_once_without_its_value(tmp_path: Path) -> None:
    """Each by its key; lists are counted from 1; of an unknown one, what there is."""
    found = problems(
        tmp_path,
        mode=SECRET,
        limit=0,
        password="abc",
        size=SECRET,
        rules=[{"to": "x"}, {"too": SECRET}],
        named={"n": {"to": 5}},
        directry=SECRET,
    )

    assert found == {
        "handlers[audit].options.directory": f"is missing: {__name__}:Handler needs it",
        "handlers[audit].options.mode": "must be 'a' or 'b'",
        "handlers[audit].options.limit": "must be at least 1",
        "handlers[audit].options.password": "must have 4 characters or more",
        "handlers[audit].options.size": "must be a whole number; or: must be true or false",
        "handlers[audit].options.rules[2].to": f"is missing: {__name__}:Handler needs it",
        "handlers[audit].options.rules[2].too": "there is no such key; known are to, template, retries",
        "handlers[audit].options.named.n.to": "must be text in quotes",
        "handlers[audit].options.directry": f"{__name__}:Handler has no such option; it takes directory, password,"
        " mode, limit, size, nearby, spool, more, servers, rules, named",
    }


def test_list_is_not_called_short_because_its_only_item_was_refused(tmp_path: Path) -> None:
    """Only an empty one is."""
    assert problems(tmp_path, directory="d", servers=[0]) == {
        "handlers[audit].options.servers[1]": "must be more than 0"
    }
    assert problems(tmp_path, directory="d", servers=[]) == {
        "handlers[audit].options.servers": "has too few: at least 1"
    }


def test_value_that_is_no_list_is_told_what_the_list_is_written_like(tmp_path: Path) -> None:
    """A table in single brackets wants double ones, if tables it shall be."""
    assert problems(tmp_path, directory="d", rules={"to": "x"}, servers=5, more={"one": "x"}) == {
        "handlers[audit].options.rules": "must be a list of tables; write [[handlers.options.rules]]",
        "handlers[audit].options.servers": "must be a list",
        "handlers[audit].options.more": "must be a list",
    }


def test_options_that_do_not_go_together_are_told_as_a_whole(tmp_path: Path) -> None:
    """What a validator of the whole model refuses has no key of its own."""
    found = problems(tmp_path, directory="d", mode="b", limit=11)

    assert found == {"handlers[audit].options": "mode b needs a limit of at most 10"}


def test_default_that_a_validator_refuses_is_told_by_its_key(tmp_path: Path) -> None:
    """Though it does not stand in the file; in a nested table, too."""
    assert problems(tmp_path, directory="/far", rules=[{"to": "far"}]) == {
        "handlers[audit].options.nearby": "must be false for that directory",
        "handlers[audit].options.rules[1].retries": "must be 1 or more for what is far",
    }


def test_options_that_do_not_go_together_are_told_by_the_key_that_the_validator_names(tmp_path: Path) -> None:
    """`HandlerOptions.wrong_option`; its text is taken as it is."""
    assert problems(tmp_path, directory="d", mode="b", size=0) == {
        "handlers[audit].options.size": "must not be {0} with mode b"
    }


def test_only_a_single_options_parameter_is_the_model() -> None:
    """Another parameter beside it, or another type, and the signature is the model as for any class."""

    def two(options: Options, more: int = 0) -> None: ...
    def plain(options: int) -> None: ...
    def rest(*options: Options) -> None: ...
    def none() -> None: ...
    def one(*, settings: Options) -> None: ...

    found = [options_model(inspect.signature(function, eval_str=True)) for function in (two, plain, rest, none, one)]

    assert found == [None, None, None, None, None]
