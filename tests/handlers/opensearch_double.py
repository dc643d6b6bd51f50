"""The double of an OpenSearch server: its bulk interface with external versions, documents durable in SQLite.

``python opensearch_double.py PORT DATABASE``. No OpenSearch runs where these tests run; this is what its
documentation says of the requests that the handler sends, and no more: versions (also those of deleted documents,
for ever, where the original forgets them after `index.gc_deletes`), dynamic mapping of numbers, refresh, delete by
query over a range. ``POST /_double/answers`` makes the next requests fail with a status, as a busy server does.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from typing import Any

from aiohttp import web

DATABASE: web.AppKey[sqlite3.Connection] = web.AppKey("database", sqlite3.Connection)
FAILING: web.AppKey[list[int]] = web.AppKey("failing", list)
LAYOUT = """
    CREATE TABLE IF NOT EXISTS documents (name TEXT, id TEXT, version INTEGER, source TEXT, PRIMARY KEY (name, id));
    CREATE TABLE IF NOT EXISTS mapping (name TEXT, field TEXT, type TEXT, PRIMARY KEY (name, field));
"""


async def bulk(request: web.Request) -> web.Response:
    """Each operation by itself; one commit, on the disk, before the answer."""
    failing = request.app[FAILING]
    if failing:
        return web.json_response({"error": {"type": "for_the_test"}}, status=failing.pop())
    database = request.app[DATABASE]
    lines = iter((await request.read()).splitlines())
    items = []
    with database:
        for line in lines:
            ((operation, head),) = json.loads(line).items()
            source = json.loads(next(lines)) if operation == "index" else None
            items.append({operation: _apply(database, head, source)})
    errors = any("error" in result for item in items for result in item.values())
    return web.json_response({"took": 1, "errors": errors, "items": items})


def _apply(database: sqlite3.Connection, head: dict[str, Any], source: dict[str, Any] | None) -> dict[str, Any]:
    name, key, version = head["_index"], head["_id"], head["version"]
    assert head["version_type"] == "external_gte"
    assert 0 <= version < 1 << 63
    if name != name.lower():
        return _refusal(head, 400, "invalid_index_name_exception")
    if len(key.encode()) > 512:
        return _refusal(head, 400, "illegal_argument_exception")
    there = database.execute("SELECT version, source FROM documents WHERE name = ? AND id = ?", (name, key)).fetchone()
    if there is not None and there[0] > version:
        return _refusal(head, 409, "version_conflict_engine_exception")
    for field, value in (source or {}).items():
        if not _fits(database, name, field, value):
            return _refusal(head, 400, "mapper_parsing_exception")
    text = None if source is None else json.dumps(source)
    database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)", (name, key, version, text))
    is_missing = source is None and (there is None or there[1] is None)
    return {"_index": name, "_id": key, "_version": version, "status": 404 if is_missing else 200}


def _fits(database: sqlite3.Connection, name: str, field: str, value: object) -> bool:
    """The first value of a field decides: after a number, only what is one."""
    if value is None:
        return True
    kind = "long" if isinstance(value, int | float) else "text"
    database.execute("INSERT OR IGNORE INTO mapping VALUES (?, ?, ?)", (name, field, kind))
    query = "SELECT type FROM mapping WHERE name = ? AND field = ?"
    (wanted,) = database.execute(query, (name, field)).fetchone()
    return bool(wanted == "text" or kind == "long")


def _refusal(head: dict[str, Any], status: int, kind: str) -> dict[str, Any]:
    error = {"type": kind, "reason": "the reason quotes the row"}
    return {"_index": head["_index"], "_id": head["_id"], "status": status, "error": error}


async def delete_by_query(request: web.Request) -> web.Response:
    """A deletion raises the version by one, as it does in the original."""
    failing = request.app[FAILING]
    if failing:
        return web.json_response({"error": {"type": "for_the_test"}}, status=failing.pop())
    query = json.loads(await request.read())["query"]["range"]
    ((field, bounds),) = query.items()
    database = request.app[DATABASE]
    deleted = 0
    with database:
        statement = "SELECT id, source FROM documents WHERE name = ? AND source IS NOT NULL"
        for key, source in database.execute(statement, (request.match_info["name"],)).fetchall():
            if json.loads(source)[field] < bounds["lt"]:
                change = "UPDATE documents SET source = NULL, version = version + 1 WHERE name = ? AND id = ?"
                database.execute(change, (request.match_info["name"], key))
                deleted += 1
    return web.json_response({"timed_out": False, "deleted": deleted, "failures": []})


async def document(request: web.Request) -> web.Response:
    """One document by its id."""
    statement = "SELECT version, source FROM documents WHERE name = ? AND id = ?"
    names = request.match_info["name"], request.match_info["id"]
    found = request.app[DATABASE].execute(statement, names).fetchone()
    if found is None or found[1] is None:
        return web.json_response({"found": False}, status=404)
    return web.json_response({"found": True, "_version": found[0], "_source": json.loads(found[1])})


async def everything(request: web.Request) -> web.Response:
    """All documents of an index: for the tests."""
    statement = "SELECT source FROM documents WHERE name = ? AND source IS NOT NULL"
    found = request.app[DATABASE].execute(statement, (request.match_info["name"],)).fetchall()
    return web.json_response([json.loads(source) for (source,) in found])


async def info(request: web.Request) -> web.Response:
    """Who it is."""
    return web.json_response({"version": {"distribution": "opensearch", "number": "2.0.0"}})


async def refresh(request: web.Request) -> web.Response:
    """What is here is searched at once."""
    return web.json_response({"_shards": {"failed": 0}})


async def fail(request: web.Request) -> web.Response:
    """The next request that changes something is answered with the status in the body."""
    request.app[FAILING].append(int((await request.read()).decode()))
    return web.json_response({})


def main(port: int, path: str) -> None:
    """Serve until killed."""
    app = web.Application(client_max_size=100 * 1024 * 1024)
    database = app[DATABASE] = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.executescript(LAYOUT)
    app[FAILING] = []
    app.router.add_get("/", info)
    app.router.add_post("/_bulk", bulk)
    app.router.add_post("/_double/answers", fail)
    app.router.add_post("/{name}/_refresh", refresh)
    app.router.add_post("/{name}/_delete_by_query", delete_by_query)
    app.router.add_get("/{name}/_doc/{id}", document)
    app.router.add_get("/{name}/_all", everything)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
