"""Which tables and tags a pattern means, here and in the plugin's own language."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from cdc.errors import ConfigError
from cdc.patterns import TablePatterns, TagPatterns
from tests.conftest import Database

ODD_NAMES = (
    "Foo bar", "a.b", "q,c", "st*r", "*", "bs\\x", "\\", "it's", 'dq"x', "tab\tx", "nl\nx", " lead", "trail ",
    "a\u00a0b", "ünï", "$$", "select", "x" * 63,
)  # fmt: skip


def quoted(name: str) -> str:
    """A name as a pattern holds it in quotes."""
    return '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.*", ["public.users", "Odd.Name"], []),
        ("public.users", ["public.users"], ["public.user", "public.users2", "other.users", "public.Users"]),
        ("public.*", ["public.users", "public.x"], ["other.users"]),
        ("*.users", ["public.users", "other.users"], ["public.user"]),
        ("public.user*", ["public.user", "public.users"], ["public.auser"]),
        ("public.*_log", ["public.audit_log", "public._log"], ["public.audit_logs"]),
        ("t*_?.o*r*s", ["tenant_?.orders", "t_?.ors"], ["tenant_1.orders"]),
        ("public.Users", ["public.Users"], ["public.users"]),
        ("  public.users ", ["public.users"], []),
        ("public.a|b", ["public.a|b"], ["public.a", "public.b"]),
    ],
)
def test_table_pattern_matches_by_name_and_star(pattern: str, matching: list[str], others: list[str]) -> None:
    """A star is any run of characters, everything else is itself."""
    patterns = TablePatterns([pattern])

    assert [name for name in matching if not patterns.matches(*name.split("."))] == []
    assert [name for name in others if patterns.matches(*name.split("."))] == []


@pytest.mark.parametrize("name", ODD_NAMES)
def test_quoted_name_matches_exactly_itself(name: str) -> None:
    """Inside quotes dots and stars are ordinary characters."""
    patterns = TablePatterns([f"public.{quoted(name)}"])

    assert patterns.matches("public", name)
    assert not patterns.matches("public", f"{name}x")


def test_quotes_may_stand_in_a_part_of_a_name() -> None:
    """`"My.App"_*` is a literal beginning and a star."""
    patterns = TablePatterns(['"My.App"_*.t'])

    assert patterns.matches("My.App_1", "t")
    assert not patterns.matches("MyxApp_1", "t")


def test_exclude_wins_over_include() -> None:
    """What exclude names is not wanted, however it was included."""
    patterns = TablePatterns(["public.*"], ["*.secret", "public.tmp_*"])

    assert patterns.matches("public", "users")
    assert not patterns.matches("public", "secret")
    assert not patterns.matches("public", "tmp_1")


def test_no_include_is_every_table() -> None:
    """Nothing said is no condition."""
    assert TablePatterns().matches("any", "thing")
    assert TablePatterns(exclude=["a.b"]).matches("any", "thing")


def test_schema_does_not_match_across_the_dot() -> None:
    """A star of the schema's part cannot reach into the table's name."""
    assert not TablePatterns(["a*c.d"]).matches("ab", "c.d")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("users", "public.users"),
        ("a.b.c", "more than one dot"),
        (".users", "leaves a name empty"),
        ("public.", "leaves a name empty"),
        ('public.""', "leaves a name empty"),
        ("", "names no schema"),
        ('public."users', "unclosed quote"),
    ],
)
def test_unreadable_pattern_is_an_error_that_says_what_to_write(pattern: str, says: str) -> None:
    """Nobody has to guess what a pattern should look like."""
    with pytest.raises(ConfigError, match="table pattern") as caught:
        TablePatterns([pattern])

    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("include", "exclude", "add", "skip"),
    [
        (["*.*"], [], None, None),
        ([], [], None, None),
        (["public.users", "*.*"], [], None, None),
        (["public.users", "audit.*", "*.log"], [], "public.users,audit.*,*.log", None),
        (["public.user_*", "public.order_*"], [], "public.*", None),
        (["pub*.user_*"], [], None, None),
        (["*.*"], ["public.secret", "public.tmp_*", "audit.*"], None, "public.secret,audit.*"),
        (["*.*"], ["*.*"], None, None),
        ([r'"a b"."c,d"'], [], r"a\ b.c\,d", None),
        (['public."*"'], [], r"public.\*", None),
    ],
)
def test_server_side_says_the_same_or_more(
    include: list[str], exclude: list[str], add: str | None, skip: str | None
) -> None:
    """A partial star is widened among what is added, and left out of what is filtered."""
    assert TablePatterns(include, exclude).server_side() == (add, skip)


def selected(database: Database, option: str, value: str) -> set[str]:
    """Names of the tables whose inserts the plugin lets pass."""
    rows = database.execute(
        sql.SQL("SELECT data FROM pg_logical_slot_peek_changes('s', NULL, NULL, 'format-version', '2', {}, {})")
        .format(sql.Literal(option), sql.Literal(value))
        .as_string()
    )
    changes = [json.loads(data) for (data,) in rows]
    return {change["table"] for change in changes if change["action"] == "I"}


def test_plugin_understands_every_name_of_server_side(database: Database) -> None:
    """wal2json picks, and leaves out, exactly the table of each odd name."""
    database.execute("SELECT pg_create_logical_replication_slot('s', 'wal2json')")
    for name in ODD_NAMES:
        table = sql.Identifier(name).as_string()
        database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)")

    for name in ODD_NAMES:
        pattern = f"public.{quoted(name)}"
        add, _ = TablePatterns([pattern]).server_side()
        _, skip = TablePatterns([], [pattern]).server_side()
        assert add is not None
        assert skip is not None
        assert selected(database, "add-tables", add) == {name}
        assert selected(database, "filter-tables", skip) == set(ODD_NAMES) - {name}


def test_plugin_understands_stars_and_lists(database: Database) -> None:
    """Whole-name stars and several patterns in one option, with what is excluded left out first."""
    database.execute("SELECT pg_create_logical_replication_slot('s', 'wal2json')")
    database.execute("CREATE SCHEMA other")
    for table in ("public.a", "public.b", "other.c", "other.d"):
        database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)")

    add, skip = TablePatterns(["public.*", "*.c"], ["public.b", "other.*"]).server_side()

    assert add is not None
    assert skip is not None
    assert selected(database, "add-tables", add) == {"a", "b", "c"}
    assert selected(database, "filter-tables", skip) == {"a"}


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@given(names, names)
def test_any_name_in_quotes_matches_itself(schema: str, table: str) -> None:
    """Whatever PostgreSQL lets a name be, its quoted form means that name."""
    assert TablePatterns([f"{quoted(schema)}.{quoted(table)}"]).matches(schema, table)


@pytest.mark.parametrize(
    ("globs", "tags", "matches"),
    [
        ([], [], True),
        ([], ["x"], True),
        (["audit:*"], [], False),
        (["audit:*"], ["audit:required", "user:42"], True),
        (["audit:*"], ["Audit:required"], False),
        (["audit:*"], ["my-audit:x"], False),
        (["a", "b?"], ["b1"], True),
        (["a", "b?"], ["b12", "aa"], False),
        (["user:[0-9]*"], ["user:42"], True),
        (["*"], [""], True),
        (["x"], ["x\n"], False),
    ],
)
def test_tag_globs_match_any_tag(globs: list[str], tags: list[str], matches: bool) -> None:
    """One tag that one glob matches is enough; without globs there is no condition."""
    assert TagPatterns(globs).matches(tags) is matches
