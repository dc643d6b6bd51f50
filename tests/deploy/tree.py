"""A root file system that the steps of a Dockerfile are really run in, and its command afterwards, without an engine.

Owns the layers (an overlay over a debootstrap tree), what a step finds around it (/proc, /dev, the resolver), and
what a container is given: an account, no capability, a root that cannot be written. It must not know what is built.
Root only, inside a mount namespace of its own: what is mounted here goes with the namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.deploy.dockerfile import Stage, context_files, expanded

__all__ = ["Container", "Tree", "build"]

AUTHORITIES = "/dev/authorities.crt"  # no file of the image
CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"
DEVICES = ("null", "zero", "full", "random", "urandom")


def mount(*arguments: str | Path) -> None:
    """mount(8)."""
    subprocess.run(["mount", *map(str, arguments)], check=True)


class Root:
    """A folder that commands see as /, with its /proc and /dev."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        mount("-t", "proc", "proc", self.path("/proc"))
        mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", self.path("/dev"))
        for name in DEVICES:
            self.path(f"/dev/{name}").touch()
            mount("--bind", f"/dev/{name}", self.path(f"/dev/{name}"))
        self.path("/dev/fd").symlink_to("/proc/self/fd")

    def path(self, inside: str) -> Path:
        """Where a path of the tree lies, from outside."""
        return self.root / inside.lstrip("/")

    def command(self, words: Sequence[str], *, folder: str, user: str = "") -> list[str]:
        """`words` in the tree; with `user` (UID:GID) without any capability, nor a way to one."""
        account: list[str] = []
        if user:
            uid, gid = user.split(":")
            account = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"]
            account += ["--bounding-set=-all", "--inh-caps=-all"]
        go = 'cd "$0" && exec "$@"'
        return [CHROOT, str(self.root), *account, "/bin/sh", "-c", go, folder, *words]


class Tree(Root):
    """A layer of its own over `base`, to be written to."""

    def __init__(self, folder: Path, base: Path) -> None:
        layer, work, root = folder / "layer", folder / "work", folder / "root"
        for path in (layer, work, root):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        mount("-t", "overlay", "overlay", "-o", f"lowerdir={base},upperdir={layer},workdir={work}", root)
        super().__init__(root)


class Container(Root):
    """What an engine makes of a tree: its root cannot be written, `volumes` (inside -> outside) lie in it.

    One whose name ends in ``:ro`` cannot be written either.
    """

    def __init__(self, tree: Tree, folder: Path, volumes: Mapping[str, Path]) -> None:
        for inside in volumes:
            tree.path(inside.removesuffix(":ro")).mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mount("--bind", tree.root, folder)
        mount("-o", "remount,bind,ro", folder)
        super().__init__(folder)
        for inside, outside in volumes.items():
            place = self.path(inside.removesuffix(":ro"))
            mount("--bind", outside, place)
            if inside.endswith(":ro"):
                mount("-o", "remount,bind,ro", place)


def build(stages: Sequence[Stage], context: Path, base: Path, work: Path, arguments: Mapping[str, str]) -> Tree:
    """Run the stages one after another; the tree of the last."""
    trees: dict[str, Tree] = {}
    tree: Tree | None = None
    for number, stage in enumerate(stages):
        tree = trees[stage.name] = Tree(work / f"stage-{number}", base)
        _with_network(tree)
        _Steps(tree, stage, context, trees, arguments).run()
    assert tree is not None
    return tree


def _with_network(tree: Tree) -> None:
    """The host's resolver, and the authorities that pip is told to trust here, as an engine would pass them in."""
    tree.path("/etc/resolv.conf").touch()
    mount("--bind", "/etc/resolv.conf", tree.path("/etc/resolv.conf"))
    if authorities := os.environ.get("PIP_CERT"):
        shutil.copy(authorities, tree.path(AUTHORITIES))


class _Steps:
    def __init__(
        self, tree: Tree, stage: Stage, context: Path, trees: Mapping[str, Tree], arguments: Mapping[str, str]
    ) -> None:
        self.tree, self.stage, self.context, self.trees, self.arguments = tree, stage, context, trees, arguments
        self.shell = ["/bin/sh", "-c"]
        self.folder = "/"
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.variables: dict[str, str] = {}

    def run(self) -> None:
        for one in self.stage.instructions:
            if one.word == "SHELL":
                self.shell = one.words
            elif one.word == "ENV":
                self.environment |= one.pairs
            elif one.word == "ARG":
                self.variables |= {name: self.arguments.get(name, value) for name, value in one.pairs.items()}
            elif one.word == "WORKDIR":
                self.folder = expanded(one.text, self.variables)
                self.tree.path(self.folder).mkdir(parents=True, exist_ok=True)
            elif one.word == "COPY":
                self._copy(one.words, one.flags.get("from"))
            elif one.word == "RUN":
                self._run(one.text)

    def _run(self, text: str) -> None:
        print(f"RUN {text[:110]}", flush=True)
        pip = {name: value for name, value in os.environ.items() if name in {"PIP_DEFAULT_TIMEOUT", "PIP_INDEX_URL"}}
        if self.tree.path(AUTHORITIES).exists():
            pip["PIP_CERT"] = AUTHORITIES
        subprocess.run(
            self.tree.command([*self.shell, text], folder=self.folder),
            check=True,
            stdin=subprocess.DEVNULL,
            env={**pip, "DEBIAN_FRONTEND": "noninteractive", **self.environment, **self.variables},
        )

    def _copy(self, words: Sequence[str], stage: str | None) -> None:
        *sources, target = words
        print(f"COPY {' '.join(words)}", flush=True)
        goal = self.tree.path(os.path.join("/", self.folder, target))  # noqa: PTH118 - absolute targets win
        if stage is not None:
            for source in sources:
                goal.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-a", self.trees[stage].path(source), goal], check=True)
            return
        ignore = (self.context / ".dockerignore").read_text().splitlines()
        for source in sources:
            files = context_files(self.context, ignore, [source])
            assert files, f"COPY {source}: .dockerignore leaves nothing of it"
            for file in files:
                whole = self.context / source
                place = goal / (file.relative_to(source) if whole.is_dir() else file.name)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.context / file, place)
