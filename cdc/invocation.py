"""How a callback is called: what of an object is its function, and whether that is a coroutine and takes batches.

Looks at what was registered, and calls nothing itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from cdc.codes import Code
from cdc.errors import CallbackError

__all__ = ["Invocation", "refuse_awaitable"]

_GENERATORS = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)


class Invocation:
    """How a callback is called: its name, its functions, and whether they are coroutines and take batches."""

    __slots__ = ("close", "function", "is_async", "is_batch", "name", "open")

    def __init__(self, callback: object) -> None:
        self.name: str = getattr(callback, "__name__", type(callback).__name__)
        self.open: Callable[[], Any] | None = getattr(callback, "open", None)
        self.close: Callable[[], Any] | None = getattr(callback, "close", None)
        batch = getattr(callback, "handle_batch", None)
        function = batch or getattr(callback, "handle", None)
        if function is None:
            function = callback
            self.open = self.close = None  # a plain function; what it may carry is not ours
        if isinstance(callback, type) or not callable(function):
            what = "is a class, not an object of it" if isinstance(callback, type) else "cannot be called"
            raise CallbackError(
                f"{self.name} {what}",  # not its repr, which may hold options
                hint="a callback is a function, or an object with `handle` or `handle_batch`",
                code=Code.CALLBACK_WRONG,
            )
        self.function: Callable[[Any], Any] = function
        self.is_batch = batch is not None
        called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
        if any(is_generator(what) for is_generator in _GENERATORS for what in (function, called)):
            raise CallbackError(
                f"{self.name} is a generator: calling it does nothing",
                hint="leave out the `yield`",
                code=Code.CALLBACK_WRONG,
            )


def refuse_awaitable(result: object) -> None:
    """CallbackError when a plain function has returned something that must be awaited: nothing was done."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # it will never run; this keeps Python from complaining about that, too
        raise CallbackError(
            "the callback is a plain function but returns an awaitable",
            hint="make it `async def`",
            code=Code.CALLBACK_WRONG,
        )
