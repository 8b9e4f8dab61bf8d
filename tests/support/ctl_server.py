"""memoryctl without the half second of CPU that its imports take: each command is a fork of a process that has them.

It has its own process, environment, working folder, standard streams and exit code. What it does not show is that a command's imports
are complete and in an order that works: tests/cli/test_commands.py loads each alone.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import memory_layer

# What commands import where they use it.
LIBRARIES = ("anyio.streams.tls", "anyio.to_thread", "cyclopts.completion.install", "cyclopts.help", "encodings.idna", "h11",
             "h2.connection", "httpcore2", "httpx2", "jwt", "psycopg_pool", "rich.console", "rich.progress", "rich.table")  # fmt: skip
# What Python reads once, when it starts.
AT_START = ("PYTHON", "LC_", "LANG", "LD_")
HANDLES = 3


def serves(env: Mapping[str, str]) -> bool:
    """Whether a fork is as good as a new process here. On macOS system libraries refuse to go on in a fork."""
    return sys.platform == "linux" and _at_start(env) == _at_start(os.environ)


def _at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(AT_START) and name != "PYTHONPATH"}


def run(
    words: Sequence[str], env: Mapping[str, str], timeout: float, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` of ``python -m memory_layer.cli`` with text streams. Raises subprocess.TimeoutExpired."""
    request = json.dumps({"words": list(words), "env": dict(env), "cwd": str(cwd or Path.cwd())}).encode() + b"\n"
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        socket.socket(socket.AF_UNIX) as server,
    ):
        given.write(stdin.encode())
        given.seek(0)
        server.settimeout(timeout)
        server.connect(_address())
        socket.send_fds(server, [request[:1]], [file.fileno() for file in (given, out, err)])
        server.sendall(request[1:])
        with server.makefile("r") as answers:
            pid = int(answers.readline())
            try:
                code = int(answers.readline())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(words), timeout) from None
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode().replace("\r\n", "\n"))
        return subprocess.CompletedProcess(list(words), code, *texts)


@functools.cache
def _address() -> str:
    """Where this process's server listens. It ends with its standard input, however that comes about."""
    folder = tempfile.TemporaryDirectory(prefix="memory-layer-test-ctl-")
    address = str(Path(folder.name) / "socket")
    program = f"from tests.support.ctl_server import main; main({address!r})"
    server = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    atexit.register(folder.cleanup)
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    return address


def main(address: str) -> None:
    """Serve; what comes back here is a fork that is to be the command."""
    request = _serve(address)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:1] = [request["cwd"], *filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["memory_layer.cli", *request["words"]]
    code: object = 0
    try:
        runpy.run_module("memory_layer.cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    _end(code)


def _end(code: object) -> NoReturn:
    """What Python does when it ends, but for taking a thousand modules apart: that is two thirds of what a short command costs."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit((code or 0) & 0xFF)


def _serve(address: str) -> dict[str, Any]:
    names = [found.name for found in pkgutil.walk_packages(memory_layer.__path__, "memory_layer.")]
    for name in (*LIBRARIES, *names):
        if not name.endswith(".__main__"):
            with contextlib.suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(name)
    gc.freeze()  # a fork's collector would copy every page of it
    running: dict[int, tuple[int, socket.socket]] = {}  # a handle of a command to its id and to who waits for it
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([listener, sys.stdin, *running], [], [])
            if sys.stdin in readable:
                os._exit(0)
            for handle in running.keys() & set(readable):
                pid, connection = running.pop(handle)
                _, status = os.waitpid(pid, 0)
                os.close(handle)
                with connection, contextlib.suppress(OSError):
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            if listener in readable:
                connection, _ = listener.accept()
                request, handles = _request(connection)
                pid = os.fork()
                if pid == 0:
                    for other, (_, waiting) in running.items():
                        os.close(other)
                        waiting.close()
                    connection.close()
                    for number, handle in enumerate(handles):
                        os.dup2(handle, number)
                        os.close(handle)
                    return request
                for handle in handles:
                    os.close(handle)
                running[os.pidfd_open(pid)] = pid, connection
                with contextlib.suppress(OSError):
                    connection.sendall(f"{pid}\n".encode())


def _request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What to run, and its standard streams."""
    first, handles, _, _ = socket.recv_fds(connection, 1, HANDLES)
    with connection.makefile("r") as rest:
        request: dict[str, Any] = json.loads(first.decode() + rest.readline())
    return request, handles
