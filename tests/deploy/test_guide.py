"""docs/deploying.md names what is there."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import tomllib

from cdc.config import Config
from cdc.demo.programs import clean_environment
from tests.conftest import Database
from tests.deploy.files import ROOT, least_grace

GUIDE = (ROOT / "docs" / "deploying.md").read_text()


def test_every_file_that_the_guide_names_is_there() -> None:
    """Paths in commands, tables and links; what a command makes aside."""
    named = set(re.findall(r"(?<![\w/])(?:deploy|requirements|scripts)/[\w./-]*\w", GUIDE))
    made = {"deploy/secrets", "deploy/secrets/dsn", "deploy/secrets/grafana_password", "deploy/walsignal"}
    assert len(named - made) > 10
    assert [path for path in named - made if not (ROOT / path).exists()] == []
    assert [link for link in re.findall(r"\]\((\.\./[^)#]+)", GUIDE) if not (ROOT / "docs" / link).exists()] == []


def test_the_sql_of_the_guide_runs_as_written(database: Database) -> None:
    """The first block, line by line, but for the names of database and role; a second time, too."""
    role = f"cdc_{secrets.token_hex(6)}"
    block = GUIDE.split("```sh\n")[1].split("```")[0]
    lines = [line.partition("#")[0].split() for line in block.splitlines()]
    assert [words[0] for words in lines] == ["psql"] * 4
    cluster = database.cluster
    server = {"PGHOST": str(cluster.socket_dir), "PGPORT": str(cluster.port), "PGUSER": cluster.superuser}
    path = f"{cluster.bindir}:{os.environ['PATH']}"
    try:
        for words in lines * 2:
            changed = [{"shop": database.name, "role=cdc": f"role={role}"}.get(word, word) for word in words]
            environment = clean_environment() | server | {"PATH": path}
            result = subprocess.run(changed, check=False, capture_output=True, text=True, cwd=ROOT, env=environment)
            assert result.returncode == 0, result.stderr
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_the_guide_names_the_wheel_that_is_built() -> None:
    """Its version is the project's."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"walsignal-{version}-py3-none-any.whl" in GUIDE


def test_the_guide_says_how_long_a_stop_may_take() -> None:
    """The seconds beside drain_timeout_seconds are the program's own."""
    config = Config.model_validate({"source": {"dsn": "host=x"}})
    beside = least_grace(config) - config.signal.drain_timeout_seconds
    assert f"`drain_timeout_seconds` and {beside:.0f} s" in GUIDE
