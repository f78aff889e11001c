# SPDX-License-Identifier: Apache-2.0
"""Arguments that do not exist: the error says which one may be meant."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, ParamSpec, TypeVar

from blipstream_client._text import excerpt, quoted

P = ParamSpec("P")
R = TypeVar("R")


def no_option(name: str, options: Sequence[str], others: Iterable[str] = (), meant: Sequence[str] = ()) -> TypeError:
    """The error for an option that does not exist, given those that do, and other arguments.

    `meant` are those that are meant for sure.
    """
    near = meant or get_close_matches(excerpt(name), [*options, *others], 1)
    remedy = f": did you mean {near[0]}?" if near else f"; the options are {', '.join(options)}" if options else ""
    return TypeError(f"There is no option {quoted(name)}{remedy}")


def checks_names(method: Callable[P, R]) -> Callable[P, R]:
    """The same method, but with `no_option` as the error for an argument that it has not."""
    parameters = inspect.signature(method).parameters
    options = [name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY]

    def check(names: Iterable[str]) -> None:
        if wrong := [name for name in names if name not in parameters]:
            raise no_option(wrong[0], options, parameters.keys() - {"self"})

    @functools.wraps(method)
    def checked(*arguments: P.args, **named: P.kwargs) -> R:
        check(named)
        return method(*arguments, **named)

    @functools.wraps(method)
    async def checked_later(*arguments: P.args, **named: P.kwargs) -> Any:  # noqa: ANN401
        check(named)
        return await method(*arguments, **named)  # type: ignore[misc]

    return checked_later if inspect.iscoroutinefunction(method) else checked  # type: ignore[return-value]
