"""`memoryctl serve` and `memoryctl worker`: one role each, from the environment."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from memory_layer import config
from memory_layer.cli import render
from memory_layer.cli.access import data_folder
from memory_layer.cli.options import Data
from memory_layer.cli.processes import check_processes, keep, python
from memory_layer.errors import UsageError
from memory_layer.telemetry import metrics
from memory_layer.telemetry.logs import log_to_stderr

ORPHAN_SECONDS = 5.0  # that a child has to end in once its parent is gone

# How `up` and `serve --processes` tie their children to themselves; of no use to anybody else.
ListenFd = Annotated[int | None, Parameter(show=False)]
HandedFd = Annotated[int | None, Parameter(show=False)]
Parent = Annotated[int | None, Parameter(show=False)]


MetricsPort = Annotated[
    int | None, Parameter(help="Serve Prometheus metrics at this port of HOST; 0 takes a free one.")
]
Processes = Annotated[int, Parameter(help="How many processes answer; one a core is a good number.")]


def serve(
    *,
    data: Data = None,
    port: int | None = None,
    processes: Processes = 1,
    listen_fd: ListenFd = None,
    handed_fd: HandedFd = None,
    parent: Parent = None,
) -> int:
    """Answer HTTP until stopped. Needs DATABASE_URL, a migrated database and the folder of keys.

    Processes share one port and one audit log, on this machine and on any number of others.

    For example:

      DATABASE_URL=postgresql://memory_app@db/memory memoryctl serve --data /var/lib/memory-layer --processes 4
    """
    from memory_layer.api import tls
    from memory_layer.api.serve import answer_handed, listen
    from memory_layer.api.serve import serve as run
    from memory_layer.ops import first_start

    check_processes(processes)
    settings = config.load(port=port)
    first_start.check_settings(settings)
    tls.check(settings)
    folder = data_folder(data)
    die_with(parent)
    log_to_stderr(settings.log_format)
    _warn_of_unknown()
    dsn = settings.database
    keys = first_start.token_keys(settings, folder)
    asyncio.run(first_start.start_log(settings, folder, dsn))
    if handed_fd is not None:
        answer_handed(settings, folder, keys, socket.socket(fileno=handed_fd))
        return 0
    listener = socket.socket(fileno=listen_fd) if listen_fd is not None else listen(settings.host, settings.port)
    if listen_fd is None:
        render.say(f"listening on {settings.scheme}://{settings.host}:{listener.getsockname()[1]}")
    if processes > 1:
        words = python("serve", "--data", str(folder), "--parent", str(os.getpid()))
        return keep(processes, listener, words)
    run(settings, folder, keys, listener)
    return 0


def worker(*, data: Data = None, metrics_port: MetricsPort = None, parent: Parent = None) -> int:
    """Bring written nodes into the index until stopped. Any number of workers may run.

    Told to stop (SIGTERM, SIGINT) it finishes what it has in hand, for ten seconds at the most, and hands back the rest.

    For example:

      DATABASE_URL=postgresql://memory_app@db/memory memoryctl worker --data /var/lib/memory-layer
    """
    from memory_layer.ops import first_start

    settings = config.load()
    first_start.check_settings(settings)
    die_with(parent)
    log_to_stderr(settings.log_format)
    with contextlib.ExitStack() as stack:
        if metrics_port is not None:
            port = stack.enter_context(metrics.serving(settings.host, metrics_port))
            render.say(f"metrics on http://{settings.host}:{port}/metrics")
        asyncio.run(_work(settings, data_folder(data)))
    return 0


async def _work(settings: config.Settings, folder: Path) -> None:
    from memory_layer.service.running import open_service
    from memory_layer.worker.pool import run
    from memory_layer.worker.schedule import run_schedule

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with open_service(settings, folder, pool=6) as installation, asyncio.TaskGroup() as parts:
        parts.create_task(run(installation, stop))
        parts.create_task(run_schedule(installation, stop))


def die_with(parent: int | None) -> None:
    """End when the process that started this one does, however it ends."""
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG, linux/prctl.h
    if os.getppid() != parent:
        raise UsageError("the process that started this one is gone.")
    threading.Thread(target=_follow, args=(parent,), name="follow the parent", daemon=True).start()


def _follow(parent: int) -> None:
    """The database ends with the parent too, so a clean end would only wait for its time-outs."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os._exit(3)


def _warn_of_unknown() -> None:
    for warning in config.unknown_variables():
        render.say(f"warning: {warning}")
