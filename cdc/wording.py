"""What pydantic finds wrong with a value → what a person is told that it should have been.

Owns the words, for the configuration and for options of handlers. It must not know where the value stands, and shows
none: it may be a secret.
"""

from __future__ import annotations

from pydantic_core import ErrorDetails

__all__ = ["told"]

_LIST = 'must be a list: ["..."]'
_NUMBER = "must be a number"
_WHOLE_NUMBER = "must be a whole number"
_YES_OR_NO = "must be true or false"

# {name} is taken from the error's own data.
_WORDS = {
    "missing": "is missing",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "int_type": _WHOLE_NUMBER,
    "int_parsing": _WHOLE_NUMBER,
    "int_from_float": _WHOLE_NUMBER,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "bool_type": _YES_OR_NO,
    "bool_parsing": _YES_OR_NO,
    "string_type": "must be text in quotes",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "tuple_type": _LIST,
    "list_type": _LIST,
    "frozen_set_type": _LIST,
    "too_short": "has too few: at least {min_length}",
    "too_long": "has too many: at most {max_length}",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "path_type": "must be a path in quotes",
}


def told(error: ErrorDetails) -> str:
    """What is wrong with the value, as the end of a sentence about its key: ``must be at least 1``."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if (words := _WORDS.get(error["type"])) is None:
        return error["msg"]
    return words.format_map(error.get("ctx", {}))
