"""README.md and docs/: every command and configuration on a page works as written, every link leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc.demo.cluster import Cluster
from tests.conftest import FAST
from tests.docs import configuration
from tests.docs.blocks import Block, blocks
from tests.docs.running import RUNNERS, run
from tests.docs.scenes import SCENES, Scene

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FOLDER = re.compile(r"(?<![\w.}<>/~-])/[a-z][\w-]*")
# Where a path of a page may begin: folders that every system has, or that stand for one; and the service's own URLs.
ROOTS = {"/dev", "/etc", "/opt", "/path", "/proc", "/run", "/srv", "/usr", "/var"}
URLS = {"/events", "/handlers", "/healthz", "/metrics", "/readyz", "/status"}

# Whose blocks need a server of another kind; the test beside each makes one, or says what cannot be had here.
TRIED_ELSEWHERE = {
    "docs/connecting.md": "tests/test_tls.py",
    "docs/deploying.md": "tests/deploy/test_guide.py",
    "docs/reload.md": "tests/test_reload.py",
    "docs/status-page.md": "tests/test_http.py",
}

each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """One server for all pages: what they change of it is theirs."""
    with Cluster(settings=FAST) as cluster:
        yield cluster


def tried(page: Path) -> list[Block]:
    """The blocks that are run."""
    return [block for block in blocks(page.read_text()) if "skip" not in block.marks]


WITH_BLOCKS = [page for page, name in zip(PAGES, NAMES, strict=True) if tried(page) and name not in TRIED_ELSEWHERE]


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=[str(page.relative_to(ROOT)) for page in WITH_BLOCKS])
def test_every_block_of_a_page_works_as_written(page: Path, server: Cluster, tmp_path: Path) -> None:
    """In order, in one folder; those with a scene in one that is in that situation."""
    scenes: dict[str, Scene] = {}
    stem = re.sub(r"\W+", "_", str(page.relative_to(ROOT).with_suffix(""))).lower()
    try:
        for block in tried(page):
            name = block.marks.get("scene", "")
            if name not in scenes:
                scenes[name] = Scene(tmp_path / (name or "page"), server, f"{stem}_{name}" if name else stem)
                if name:
                    SCENES[name](scenes[name])
            try:
                run(block, scenes[name])
            except Exception as error:
                raise AssertionError(f"{page.relative_to(ROOT)}:{block.line} ({block.language}): {error}") from error
        for scene in scenes.values():
            scene.stop()
    finally:
        for scene in scenes.values():
            scene.close()


def test_a_page_that_is_tried_elsewhere_has_its_test() -> None:
    """The file that it is said to have."""
    assert [name for name in NAMES if not (ROOT / TRIED_ELSEWHERE.get(name, "tests")).exists()] == []


def test_blocks_that_are_not_run_say_why() -> None:
    """Each by a sentence beside it; how many there are is told with -rP."""
    skipped = {
        f"{name}:{block.line}": reason
        for page, name in zip(PAGES, NAMES, strict=True)
        for block in blocks(page.read_text())
        if (reason := block.marks.get("skip", block.marks.get("compile"))) is not None
    }
    print(f"{len(skipped)} blocks are not run:", *(f"{place}: {why}" for place, why in skipped.items()), sep="\n")

    assert {place for place, why in skipped.items() if len(why.split()) < 3} == set()


@each_page
def test_every_block_names_its_language(page: Path) -> None:
    """A block without one would be no test and no highlight; output is `text`."""
    known = {
        *RUNNERS,
        *([""] if str(page.relative_to(ROOT)) in TRIED_ELSEWHERE else []),
        "json",
        "yaml",
        "yml",
        "text",
        "ini",
        "dockerfile",
        "promql",
        "html",
    }

    assert {(block.line, block.language) for block in blocks(page.read_text()) if block.language not in known} == set()


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file of the project, and, where it names one, to a heading of it."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists() or (heading and file.suffix == ".md" and heading not in anchors(file)):
            broken.append(target)

    assert broken == []


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub makes links of them, and what it names itself."""
    text = page.read_text()
    headings = re.findall(r"^#+ (?:<a id=.*?></a>)?(.+)$", text, re.MULTILINE)
    return set(re.findall(r'<a id="(\w+)">', text)) | {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
    }


def test_configuration_reference_is_that_of_the_code() -> None:
    """If not: make docs."""
    assert configuration.PAGE.read_text() == configuration.page(), "make docs"


def test_every_page_is_in_the_index() -> None:
    """docs/README.md names each page of the folder."""
    index = (ROOT / "docs" / "README.md").read_text()

    assert [name for page in (ROOT / "docs").glob("*.md") if f"]({(name := page.name)})" not in index] == ["README.md"]


def test_every_test_that_a_page_names_exists() -> None:
    """The proofs of the guarantees: `tests/file.py::test_name`."""
    named = [
        (name, *found)
        for page, name in zip(PAGES, NAMES, strict=True)
        for found in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text())
    ]
    missing = [
        f"{name}: {file}::{test}"
        for name, file, test in named
        if not (ROOT / file).is_file() or (test and f"def {test}(" not in (ROOT / file).read_text())
    ]

    assert named
    assert missing == []


@pytest.mark.parametrize(
    ("text", "marks", "file"),
    [
        ("```sh\ncdc status\n```\n", {}, ""),
        ("<!-- test: exit=1 scene=gone -->\n\n```sh\ncdc status\n```\n", {"exit": "1", "scene": "gone"}, ""),
        ("<!-- test: skip=no engine here -->\n```sh\ndocker ps\n```\n", {"skip": "no engine here"}, ""),
        ("`a.toml`:\n\n<!-- test: append -->\n```toml\nx = 1\n```\n", {"append": ""}, "a.toml"),
        ("`a.toml`:\n\n```toml\nx = 1\n```\n", {}, "a.toml"),
        ("1. so:\n   ```sh\n   cdc status\n   ```\n", {}, ""),
    ],
)  # fmt: skip
def test_marks_and_names_before_a_block_are_read(text: str, marks: dict[str, str], file: str) -> None:
    """The reader itself."""
    (block,) = blocks("Some words.\n\n" + text)

    assert (dict(block.marks), block.file) == (marks, file)
    assert not block.text.startswith(" ")


@pytest.mark.parametrize(
    "text", ["<!-- test: skipp=x -->\n```sh\n```\n", "<!-- test: exit=1 -->\nwords\n\n```sh\nx\n```\n"]
)
def test_a_mark_that_marks_nothing_is_an_error(text: str) -> None:
    """A misspelt one would let a block go untried."""
    with pytest.raises(ValueError, match="mark"):
        blocks(text)


@pytest.mark.parametrize(
    "block",
    [
        Block(1, "sh", "cdc status\n"),
        Block(1, "sh", "true\n", marks={"exit": "1"}),
        Block(1, "sh", "kill -HUP 1\n"),
        Block(1, "toml", '[source]\nslots = "x"\n'),
        Block(1, "toml", '[[handlers]]\ncallback = "no_such_module:name"\n'),
        Block(1, "sql", "SELECT * FROM no_such_table;\n"),
        Block(1, "python", "import no_such_module\n"),
        Block(1, "json", "{]\n"),
        Block(1, "sh", "pip install 'walsignal[no_such_extra]'\n"),
    ],
    ids=lambda block: f"{block.language} {block.text.split()[0]}",
)
def test_a_block_that_does_not_work_is_found(block: Block, server: Cluster, tmp_path: Path) -> None:
    """The check itself: each language has a way to fail."""
    scene = Scene(tmp_path / "page", server, f"wrong_{abs(hash(block.text)) % 10**8}")

    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is, the page is red
        run(block, scene)


@each_page
def test_no_page_names_a_place_of_the_workshop(page: Path) -> None:
    """Paths of the machine it was written on help nobody."""
    text = page.read_text()
    assert set(FOLDER.findall(text)) - ROOTS - URLS == set()
    assert str(ROOT) not in text
