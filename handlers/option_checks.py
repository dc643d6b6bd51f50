"""Checks that options of several handlers have in common, as annotations of their types.

An option keeps its text; what is wrong with it is told before there is a connection.
"""

from __future__ import annotations

import re

from pydantic import AfterValidator

from handlers.messages import Alphabet, Template

__all__ = ["matching", "template"]


def matching(pattern: re.Pattern[str], wanted: str) -> AfterValidator:
    """All of the text matches `pattern`; `wanted` says what that is."""

    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(wanted)
        return value

    return AfterValidator(check)


def template(alphabet: Alphabet) -> AfterValidator:
    """The text is a template of names of this alphabet."""

    def check(value: str) -> str:
        Template(value, alphabet)
        return value

    return AfterValidator(check)
