"""Who else may write what the service runs: the configuration, and the folders and files of its callbacks.

Owns the look at their permissions. It must not read or import them, and decides nothing: it returns sentences.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["writable_by_others"]


def writable_by_others(file: Path, python_path: Sequence[Path], callbacks: Sequence[str]) -> tuple[str, ...]:
    """A sentence with its remedy for each file and folder that group or others can write.

    `file` is the configuration; of `callbacks` (``package.module:name``) only those in `python_path` are looked for:
    what is installed is in the care of whoever installed it.
    """
    seen: dict[Path, None] = {}  # a set that keeps its order
    told = []
    for path in _paths(file, python_path, callbacks):
        if path in seen:
            continue
        seen[path] = None
        who = _others(path, is_safe_when_sticky=path == file.parent)
        if who:
            told.append(f"{path} can be written by {who}, who can so run code as this service; chmod go-w {path}")
    return tuple(told)


def _paths(file: Path, python_path: Sequence[Path], callbacks: Sequence[str]) -> Iterator[Path]:
    yield file
    yield file.parent  # whoever may write it may put another file in the place of this one
    for folder in python_path:
        yield folder
        for callback in callbacks:
            if ":" in callback:
                yield from _module(folder, callback.partition(":")[0].split("."))


def _module(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What Python would read of the module: its packages' folders and files, and its own."""
    for part in parts:
        if (module := folder / f"{part}.py").is_file():
            yield module
        folder = folder / part
        if not folder.is_dir():
            return
        yield folder
        if (module := folder / "__init__.py").is_file():
            yield module


def _others(path: Path, *, is_safe_when_sticky: bool) -> str:
    """Who besides the owner can write it, in words; empty when nobody can."""
    try:
        mode = path.stat().st_mode
        if is_read_only(path):
            return ""
    except OSError:
        return ""  # what is not there is told by whoever needs it
    if is_safe_when_sticky and mode & stat.S_ISVTX:
        return ""  # as in /tmp: others may add files, but not replace ours
    if mode & stat.S_IWOTH:
        return "everybody"
    return "its group" if mode & stat.S_IWGRP else ""


def is_read_only(path: Path) -> bool:
    """Whether its file system is; Kubernetes shows a ConfigMap as a folder of mode 0777 on such a one."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
