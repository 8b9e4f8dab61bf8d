"""What went wrong with a call of a service, in our words: the service's own text may repeat what it was sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


class Fault(NamedTuple):
    """``passing``: it may go away without action."""

    text: str
    passing: bool


def translated(
    function: Callable[[], T], errors: type[E] | tuple[type[E], ...], explain: Callable[[E], Exception]
) -> T:
    """What ``function`` returns. Where it raises one of ``errors``, raises what ``explain`` makes of that instead."""
    try:
        return function()
    except errors as error:
        raised = explain(error)
    # Outside the handler: no traceback may carry the service's own text.
    raise raised
