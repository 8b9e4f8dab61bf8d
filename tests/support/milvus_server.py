"""The real Milvus server, standalone, out of the wheel ``milvus`` (2.3.5), in a process and a folder of its own.

The wheel holds the compressed server; it is unpacked once for each environment. All its ports are free ones, the embedded etcd's
too. This release binds its ports on every interface and has no setting against it: so it runs in a network namespace of its own, which
has none but loopback, and two ports of this machine's loopback lead there (``loopback_only.py``).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import lzma
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VERSION = "2.3.5"
ALONE = ("unshare", "--user", "--map-root-user", "--net")
START_WITHIN = 120.0  # seconds; ten on an idle machine
COMPONENTS = ("rootCoord", "proxy", "queryCoord", "queryNode", "indexCoord", "indexNode", "dataCoord", "dataNode")


def missing(server: str = "milvus") -> str | None:
    """Why the server cannot be started here, or None."""
    for module in (server, "pymilvus"):
        if importlib.util.find_spec(module) is None:
            only = "; the server is made for Linux and macOS on x86-64" if module == "milvus" else ""
            return f"{module} is not installed: `make test-real` installs it{only}"
    return _cannot_be_alone() if server == "milvus" else None


@functools.cache
def _cannot_be_alone() -> str | None:
    """Why no network namespace can be made here, or None."""
    if shutil.which("unshare") is None:
        return "unshare (Debian: util-linux) is not installed, and Milvus would listen on every interface without it"
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        return (
            "this machine lets nobody make a network namespace, and Milvus would listen on every interface without one"
        )
    return None


class MilvusServer:
    """``stop``, ``kill`` and ``start`` again keep the data and the port."""

    def __init__(
        self, folder: Path, *, authorization: bool = False, interim_index: bool = False, tick: int = 50
    ) -> None:
        self.folder = folder
        self._ports = free_ports(14)
        self.port = self._ports[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self._metrics = self._ports[-1]
        self._process: subprocess.Popen[bytes] | None = None
        self._binaries = unpacked()
        configure(folder, self._ports, authorization=authorization, interim_index=interim_index, tick=tick)

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | {
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(self._metrics),
            "MILVUS_RUN_DIR": str(self.folder / "run"),
            "MILVUSCONF": str(self.folder / "configs"),
            "LD_LIBRARY_PATH": str(self._binaries),
            "DYLD_LIBRARY_PATH": str(self._binaries),
        }
        with contextlib.ExitStack() as outer:
            out = outer.enter_context((self.folder / "server.log").open("ab"))
            doors = {port: outer.enter_context(_listening(port)) for port in (self.port, self._metrics)}
            self._process = subprocess.Popen(
                [
                    *ALONE, sys.executable, Path(__file__).with_name("loopback_only.py"),
                    *(f"{door.fileno()}:{port}" for port, door in doors.items()),
                    "--", self._binaries / "milvus", "run", "standalone",
                ],
                cwd=self.folder,
                env=environment,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[door.fileno() for door in doors.values()],
            )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_WITHIN
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            assert self._process is not None
            with contextlib.suppress(OSError):
                if b"OK" in opener.open(f"http://127.0.0.1:{self._metrics}/healthz", timeout=5).read():
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = (self.folder / "server.log").read_text(errors="replace")[-3000:]
                raise AssertionError(f"Milvus did not start (exit {self._process.returncode}):\n{tail}")
            time.sleep(0.05)

    def pause(self) -> None:
        """It keeps its ports and answers nothing."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # until it has stopped

    def resume(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(
                self._process.pid, signal.SIGKILL
            )  # a group of its own: what carries to the server, and the server
            self._process.wait(30)


@contextlib.contextmanager
def running_milvus(
    *, authorization: bool = False, interim_index: bool = False, tick: int = 50
) -> Iterator[MilvusServer]:
    """``tick``: milliseconds; a write shows with the next one, and the suite makes hundreds. Milvus has 200."""
    folder = Path(tempfile.mkdtemp(prefix="memory-layer-milvus-"))
    try:
        for attempt in range(3):  # a port may be taken between the look and the start
            server = MilvusServer(
                folder / str(attempt), authorization=authorization, interim_index=interim_index, tick=tick
            )
            try:
                server.start()
                break
            except AssertionError:
                if attempt == 2:
                    raise
        yield server
    finally:
        with contextlib.suppress(UnboundLocalError):
            server.kill()  # what it holds goes with its folder: nothing is worth a slow goodbye
        shutil.rmtree(folder, ignore_errors=True)


def _listening(port: int) -> socket.socket:
    """A port of this machine's loopback, for the process that carries what comes there."""
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind(("127.0.0.1", port))
        door.listen(128)
    except OSError as error:
        door.close()
        raise AssertionError(f"port {port} was taken meanwhile") from error
    return door


def unpacked() -> Path:
    """The folder of the server and its libraries; unpacked by the first who needs it."""
    import milvus

    packed = Path(milvus.__file__).parent / "data" / "bin"
    ready = Path(sys.prefix) / "var" / f"milvus-{VERSION}"
    ready.parent.mkdir(parents=True, exist_ok=True)
    with (ready.parent / f"milvus-{VERSION}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            making = Path(tempfile.mkdtemp(dir=ready.parent))
            for file in packed.glob("*.lzma"):
                target = making / file.stem
                with lzma.open(file) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out)
                target.chmod(0o755)
            making.rename(ready)
    return ready


def configure(folder: Path, ports: list[int], *, authorization: bool, interim_index: bool, tick: int) -> None:
    """Write the server's settings: the wheel's own template, with our ports and folders."""
    from milvus import MilvusServerConfig

    named = [name for name in MilvusServerConfig().configurable_items if name.endswith("_port")]
    names = sorted(named, key=lambda name: name != "proxy_port")  # whose port comes first
    config: Any = MilvusServerConfig(data_dir=str(folder), **dict(zip(names, ports, strict=False)))
    config.configurable_items["authorization_enabled"][1] = authorization
    for component in COMPONENTS:
        config.set(f"{component}.ip", "127.0.0.1")
    # What memoryctl tells operators to set; without it unsealed vectors are searched through an index that loses matches.
    config.set("queryNode.segcore.interimIndex.enableIndex", "true" if interim_index else "false")
    config.set("proxy.timeTickInterval", str(tick))
    config.set(
        "common.session.ttl", "5"
    )  # s; how long a killed server's parts are taken for alive after it started again
    config.set("log.level", "warn")
    config.resolve()
    peer, client = ports[-3], ports[-2]
    (folder / "configs" / "etcd.yaml").write_text(
        f"name: default\nunsafe-no-fsync: true\n"
        f"listen-client-urls: http://127.0.0.1:{client}\nadvertise-client-urls: http://127.0.0.1:{client}\n"
        f"listen-peer-urls: http://127.0.0.1:{peer}\ninitial-advertise-peer-urls: http://127.0.0.1:{peer}\n"
        f"initial-cluster: default=http://127.0.0.1:{peer}\n"
    )
    file = folder / "configs" / "milvus.yaml"
    text = file.read_text()
    assert text.count("\netcd:\n") == 1
    file.write_text(text.replace("\netcd:\n", f"\netcd:\n  config:\n    path: {folder / 'configs' / 'etcd.yaml'}\n"))


def free_ports(count: int) -> list[int]:
    """Ports below the range from which the system deals to clients, all free at once."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            port = random.SystemRandom().randrange(12_000, 32_000)
            one = held.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port not in found:
                found.append(port)
        return found
