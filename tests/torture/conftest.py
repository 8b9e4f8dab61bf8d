"""Settings of the torture tier, and its voice: a line every few seconds, although pytest captures what tests print."""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.torture.harness import Say


@pytest.fixture
def kills() -> int:
    """TORTURE_KILLS: how many random kills the storm makes; 500 unless set. The other tests shrink with it."""
    return int(os.environ.get("TORTURE_KILLS", "500"))


@pytest.fixture
def seed(say: Say) -> int:
    """TORTURE_SEED: repeats the choices of an earlier run, though not the machine's timing."""
    given = os.environ.get("TORTURE_SEED")
    chosen = int(given) if given else random.randrange(2**32)
    say(f"TORTURE_SEED={chosen}")
    return chosen


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Say:
    started = time.monotonic()

    def tell(text: str) -> None:
        with capfd.disabled():
            print(f"\n[{time.monotonic() - started:6.1f} s] {text}", end="", flush=True)

    return tell
