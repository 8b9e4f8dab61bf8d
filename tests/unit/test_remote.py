"""What the adapters of remote services share."""

from __future__ import annotations

import time
import traceback

import pytest

from memory_layer.errors import DependencyUnavailable, UsageError
from memory_layer.stores.remote.faults import translated
from memory_layer.stores.remote.http import Tries, TryAgain, with_tries


def test_a_translated_error_carries_nothing_of_the_services_own() -> None:
    def call() -> None:
        raise ValueError("the secret that was sent")

    with pytest.raises(UsageError) as caught:
        translated(call, ValueError, lambda _: UsageError("It was refused."))
    assert (caught.value.__context__, caught.value.__cause__) == (None, None)
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ValueError, match="secret"):  # what is not the service's goes on as it is
        translated(call, KeyError, lambda _: UsageError("It was refused."))


async def test_tries_end_with_their_number_with_the_deadline_and_with_any_other_error() -> None:
    calls: list[float] = []

    def unavailable(what: str, *, retry_after: int | None = None) -> DependencyUnavailable:
        return DependencyUnavailable(f"It {what}.", retry_after=retry_after)

    async def attempt(*failures: Exception) -> str:
        calls.append(time.monotonic())
        if len(calls) <= len(failures):
            raise failures[len(calls) - 1]
        return "done"

    async def tried(*failures: Exception, deadline: float = 5.0) -> str:
        calls.clear()
        return await with_tries(lambda: attempt(*failures), Tries(3, 0.01, 0.02), deadline, unavailable)

    assert await tried(TryAgain("answers 503"), TryAgain("answers 503")) == "done"
    with pytest.raises(DependencyUnavailable, match=r"^It answers 503, in try 3 of 3\.$") as caught:
        await tried(*[TryAgain("answers 503")] * 3)
    assert caught.value.retry_after is None
    assert await tried(TryAgain("answers 429", pause=0.3)) == "done"
    assert calls[1] - calls[0] >= 0.3
    with pytest.raises(DependencyUnavailable, match="in try 1 of 3") as caught:  # it asks for more than there is
        await tried(TryAgain("answers 429", pause=60), deadline=1.0)
    assert caught.value.retry_after == 60
    with pytest.raises(ZeroDivisionError):
        await tried(ZeroDivisionError())
    assert len(calls) == 1
