"""A blocking client library in a few threads, with a budget of time for each call and all its tries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from memory_layer.errors import SignerUnavailable, UsageError
from memory_layer.stores.remote.faults import Fault

T = TypeVar("T")

BUDGET: Final = 1.9  # seconds for a signature with all its tries; the committer gives 2
CONNECT, READ = 0.9, 1.5  # seconds that the client libraries get for one try
# What failed quickly is tried again; what hung is not, for there is no time left.
AGAIN_WITHIN, PAUSE = 0.8, 0.1  # seconds; below CONNECT, so that what hung in either way is over it
THREADS: Final = 8


class Failed(Exception):
    """A call that came to nothing; inside a Connection alone."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


class Connection:
    """One client of a key service, counted by its users: closed when the last signer that retained it releases it."""

    def __init__(
        self,
        service: str,
        explain: Callable[[Exception], Fault],
        errors: tuple[type[Exception], ...],
        close: Callable[[], None],
        budget: float = BUDGET,
    ) -> None:
        """``errors``: what a call may raise, each of which ``explain`` has words for. ``close`` may block. Budget in seconds."""
        self.service = service
        self._explain = explain
        self._errors = errors
        self._close = close
        self._budget = budget
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=service)
        self._users = 0
        self._closed = False
        self.keeper: asyncio.Task[None] | None = None  # renews a token, where the service wants that

    async def call(self, what: str, function: Callable[[], T]) -> T:
        """What ``function`` returns, called in a thread. Raises SignerUnavailable within the budget."""
        try:
            return await self._call(function)
        except Failed as error:
            raise self._unavailable(what, error.fault) from None

    async def ask(self, what: str, function: Callable[[], T], *, once: bool = False) -> T:
        """The same while somebody can correct a setting: what does not pass by itself is a UsageError.

        ``once``: never tried again, for what is not the same when it is done twice.
        """
        try:
            return await self._call(function, once=once)
        except Failed as error:
            if error.fault.passing:
                raise self._unavailable(what, error.fault) from None
            raise UsageError(f"{self.service} did not {what}: {error.fault.text}.") from None

    async def _call(self, function: Callable[[], T], *, once: bool = False) -> T:
        if self._closed:
            raise Failed(Fault("this signer is closed", True))
        again_until = 0.0 if once else time.monotonic() + AGAIN_WITHIN
        work = asyncio.get_running_loop().run_in_executor(self._threads, partial(self._try, function, again_until))
        try:
            async with asyncio.timeout(self._budget):
                return await work
        except TimeoutError:
            raise Failed(Fault(f"it did not answer within {self._budget:g} s", True)) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if work.cancelled() and not (task is not None and task.cancelling()):
                # What waited for a thread when the connection was closed: nobody cancelled the caller.
                raise Failed(Fault("this signer is closed", True)) from None
            raise

    def _try(self, function: Callable[[], T], again_until: float) -> T:
        while True:
            try:
                return function()
            except self._errors as error:
                fault = self._explain(error)
            except (KeyError, ValueError, TypeError):  # where a wrong answer is taken apart
                fault = Fault("its answer cannot be understood", True)
            if not fault.passing or time.monotonic() + PAUSE > again_until:
                # Outside the handler: no traceback may carry the service's own text, which can hold what it was sent.
                raise Failed(fault)
            time.sleep(PAUSE)

    def _unavailable(self, what: str, fault: Fault) -> SignerUnavailable:
        return SignerUnavailable(f"{self.service} did not {what}: {fault.text}.")

    def retain(self) -> None:
        self._users += 1

    async def release(self) -> None:
        self._users -= 1
        if self._users <= 0:
            await self.close()

    async def close(self) -> None:
        """End the threads and the connections; waits for a call under way, at most as long as one may take."""
        if self._closed:
            return
        self._closed = True
        if self.keeper is not None:
            self.keeper.cancel()
            await asyncio.gather(self.keeper, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        await asyncio.to_thread(self._close)
