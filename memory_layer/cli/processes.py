"""`memoryctl serve --processes N`: one listening socket, N processes that answer at it, and the one that keeps them going."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from memory_layer import config
from memory_layer.cli import render
from memory_layer.errors import UsageError

STOP_WITHIN = 20.0  # seconds
LOOK_EVERY = 0.2  # seconds
# A process that ends by itself is started again, after a pause that grows while it goes on ending.
PAUSE, LONGEST_PAUSE, STEADY = 0.5, 30.0, 60.0  # seconds


def check_processes(count: int) -> None:
    """Raise UsageError for a number that makes no sense."""
    if not 1 <= count <= 256:
        raise UsageError("--processes takes a number from 1 to 256.")


class _Slot:
    """One of the N, and when it may be started again."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.not_before = 0.0
        self.pause = PAUSE


def keep(count: int, listener: socket.socket, command: list[str]) -> int:
    """Run ``command`` ``count`` times on the listening socket until told to stop; start again whichever ends by itself."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    slots = [_Slot() for _ in range(count)]
    with _metrics_folder() as folder:
        environment = dict(config.environment()) | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
        start = _starter([*command, "--listen-fd", str(listener.fileno())], listener.fileno(), environment)
        while not stopping:
            for slot in slots:
                _look_after(slot, start)
            time.sleep(LOOK_EVERY)
        _end([slot.process for slot in slots if slot.process is not None])
    return 0


def _starter(command: list[str], fd: int, environment: dict[str, str]) -> Callable[[], subprocess.Popen[bytes]]:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, pass_fds=(fd,), start_new_session=True
        )

    return start


def _look_after(slot: _Slot, start: Callable[[], subprocess.Popen[bytes]]) -> None:
    now = time.monotonic()
    if slot.process is not None and slot.process.poll() is not None:
        render.say(f"an API process ended by itself (exit {slot.process.returncode}); it is started again.")
        slot.pause = PAUSE if now - slot.started > STEADY else min(slot.pause * 2, LONGEST_PAUSE)
        slot.not_before, slot.process = now + slot.pause, None
    if slot.process is None and now >= slot.not_before:
        slot.process, slot.started = start(), now


@contextlib.contextmanager
def _metrics_folder() -> Iterator[Path]:
    """Where the processes keep their metrics, so that each of them can answer /metrics for all."""
    folder = Path(tempfile.mkdtemp(prefix="memory-layer-metrics-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_WITHIN
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def python(*words: str) -> list[str]:
    """``memoryctl`` with these words, by this interpreter."""
    return [sys.executable, "-m", "memory_layer.cli", *words]
