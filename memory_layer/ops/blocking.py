"""Work of a command that blocks its event loop, and that Ctrl-C can still end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def blocking() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt at once inside. asyncio's own handler cancels at the next await, which may be minutes away.

    For commands, which are alone on their loop; outside the main thread it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
