"""`memoryctl serve --processes N`: the process that listens, deals connections to N others in turn, and keeps those going."""

from __future__ import annotations

import contextlib
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from memory_layer import config
from memory_layer.cli import render
from memory_layer.errors import PolicyRefused, UsageError

STOP_WITHIN = 20.0  # seconds
LOOK_EVERY = 0.2  # seconds
ACCEPTS = 64  # connections, before the processes are looked after again
# A process that ends by itself is started again, after a pause that grows while it goes on ending.
PAUSE, LONGEST_PAUSE, STEADY = 0.5, 30.0, 60.0  # seconds


def check_processes(count: int) -> None:
    """Raise UsageError for a number that makes no sense."""
    if not 1 <= count <= 256:
        raise UsageError("--processes takes a number from 1 to 256.")


class _Slot:
    """One of the N: its process, the channel over which connections are handed to it, and when it may be started again."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None
        self.ready = False
        self.started = 0.0
        self.not_before = 0.0
        self.pause = PAUSE


def keep(count: int, listener: socket.socket, command: list[str]) -> int:
    """Run ``command`` ``count`` times until stopped, and hand each of them its share of the connections; start again whichever
    ends by itself, unless none has ever answered and one says that its settings or a policy forbid it: its exit code then.

    Were the socket shared, whichever process wakes first would take a whole burst of connections, and lasting ones would stay with
    it: here they are dealt in turn.
    """
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    slots = [_Slot() for _ in range(count)]
    listener.setblocking(False)
    next_slots = cycle(slots)
    with _metrics_folder() as folder, selectors.DefaultSelector() as selector:
        environment = dict(config.environment()) | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
        served = False
        while not stopping:
            served = served or any(slot.ready for slot in slots)
            if not served and (code := _hopeless(slots)) is not None:
                _end([slot.process for slot in slots if slot.process is not None])
                return code
            for slot in slots:
                _look_after(slot, command, environment, selector)
            _listen_while_ready(selector, listener, any(slot.ready for slot in slots))
            for key, _ in selector.select(LOOK_EVERY):
                if key.fileobj is listener:
                    _deal(listener, next_slots, count)
                else:
                    _hear(key.data, selector)
        listener.close()
        _end([slot.process for slot in slots if slot.process is not None])
    return 0


def _hopeless(slots: list[_Slot]) -> int | None:
    """The exit code of one that refused to start, where another start would be refused too: its settings, or a policy."""
    ended = [slot.process.poll() for slot in slots if slot.process is not None]
    return next((code for code in ended if code in (UsageError.exit_code, PolicyRefused.exit_code)), None)


def _listen_while_ready(selector: selectors.BaseSelector, listener: socket.socket, ready: bool) -> None:
    """While nobody is ready, connections wait in the listener's queue."""
    listening = listener.fileno() in selector.get_map()
    if ready and not listening:
        selector.register(listener, selectors.EVENT_READ)
    elif listening and not ready:
        selector.unregister(listener)


def _deal(listener: socket.socket, next_slots: Iterator[_Slot], count: int) -> None:
    for _ in range(ACCEPTS):
        try:
            connection, _ = listener.accept()
        except OSError:  # no more of them, one that has gone again, or no descriptors left
            return
        with connection:
            _hand(connection, next_slots, count)


def _hand(connection: socket.socket, next_slots: Iterator[_Slot], count: int) -> None:
    """To the next one that takes it; where none does, the client sees its connection closed and comes again."""
    for slot in islice(next_slots, count):
        if slot.ready and slot.channel is not None:
            with contextlib.suppress(OSError):  # it has ended, or does not read
                socket.send_fds(slot.channel, [b"c"], [connection.fileno()])
                return


def _hear(slot: _Slot, selector: selectors.BaseSelector) -> None:
    """A process says that it is ready, or that it is gone."""
    assert slot.channel is not None  # noqa: S101 - only open channels are registered
    try:
        message = slot.channel.recv(64)
    except BlockingIOError:
        return
    except OSError:
        message = b""
    slot.ready = bool(message)
    if not message:
        _hang_up(slot, selector)


def _hang_up(slot: _Slot, selector: selectors.BaseSelector) -> None:
    slot.ready = False
    if slot.channel is not None:
        selector.unregister(slot.channel)
        slot.channel.close()
        slot.channel = None


def _look_after(slot: _Slot, command: list[str], environment: dict[str, str], selector: selectors.BaseSelector) -> None:
    now = time.monotonic()
    if slot.process is not None and slot.process.poll() is not None:
        render.say(f"an API process ended by itself (exit {slot.process.returncode}); it is started again.")
        slot.pause = PAUSE if now - slot.started > STEADY else min(slot.pause * 2, LONGEST_PAUSE)
        slot.not_before, slot.process = now + slot.pause, None
        _hang_up(slot, selector)
    if slot.process is None and now >= slot.not_before:
        slot.channel, theirs = socket.socketpair()
        slot.channel.setblocking(False)
        selector.register(slot.channel, selectors.EVENT_READ, slot)
        with theirs:
            slot.process = subprocess.Popen(
                [*command, "--handed-fd", str(theirs.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        slot.started = now


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
