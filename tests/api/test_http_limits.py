"""What one connection, or many, can make the server hold: over raw sockets, for a client library would not send this."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.api.door import create
from tests.support.product import Product, running_product

MB = 2**20
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@contextlib.contextmanager
def connected(product: Product, timeout: float = 60) -> Iterator[socket.socket]:
    where = urlsplit(product.url)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=timeout) as raw:
        yield raw


def answer(raw: socket.socket) -> tuple[int, bytes]:
    """(status, body) of all that comes until the server closes; status 0 when nothing did."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := raw.recv(65536):
            parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    return (int(head.split()[1]), body) if head else (0, b"")


def ask(product: Product, data: bytes) -> tuple[int, bytes]:
    with connected(product) as raw:
        raw.sendall(data)
        return answer(raw)


def code(body: bytes) -> str:
    error = json.loads(body)["error"]
    assert error["requestId"]
    assert error["message"]
    return str(error["code"])


def flood(product: Product, first: bytes, again: bytes, most: int = 64 * MB) -> tuple[int, bytes, int]:
    """Send ``again`` until the server stops that: (status, body, bytes sent)."""
    with connected(product) as raw:
        raw.sendall(first)
        sent = 0
        try:
            while sent < most:
                raw.sendall(again)
                sent += len(again)
        except OSError:
            pass
        status, body = answer(raw)
        return status, body, sent


def serving(product: Product) -> int:
    """The process id of the API."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"serve" in words and str(product.data).encode() in words:
                return int(folder.name)
    raise AssertionError("no API process")


def resident(pid: int) -> int:
    """Bytes of memory."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def test_how_many_headers(product: Product) -> None:
    def request(count: int) -> bytes:
        more = "".join(f"x-{n}: 1\r\n" for n in range(count - 2))
        return f"GET /livez HTTP/1.1\r\nhost: here\r\nconnection: close\r\n{more}\r\n".encode()

    assert ask(product, request(100))[0] == 200
    status, body = ask(product, request(101))
    assert (status, code(body)) == (431, "HEADERS_TOO_LARGE")


@pytest.mark.parametrize("place", ["value", "name", "path", "query", "many"])
def test_how_large_a_head(product: Product, place: str) -> None:
    def request(size: int) -> bytes:
        filler = "x" * size
        path = {"path": f"/{filler}", "query": f"/livez?{filler}"}.get(place, "/livez")
        extra = {"value": f"x-a: {filler}\r\n", "name": f"{filler}: 1\r\n"}.get(place, "")
        if place == "many":
            extra = "".join(f"x-{n}: {'y' * (size // 50)}\r\n" for n in range(50))
        return f"GET {path} HTTP/1.1\r\nhost: here\r\nconnection: close\r\n{extra}\r\n".encode()

    assert ask(product, request(60_000))[0] in (200, 404)
    status, body = ask(product, request(66_000))
    assert (status, code(body)) == (431, "HEADERS_TOO_LARGE")


@needs_proc
@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"GET /livez HTTP/1.1\r\nhost: here\r\nx-a: ", b"y" * 65536),
        (b"GET /livez HTTP/1.1\r\nhost: here\r\n", b"x-a: " + b"y" * 8000 + b"\r\n"),
        (b"GET /livez HTTP/1.1\r\nhost: here\r\n", b"x-a: y\r\n" * 1000),
        (b"GET /", b"y" * 65536),
        (b"", b"\r\n" * 32768),
        (b"POST /v1/memory/nodes HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-a: ", b"y" * 65536),
        (b"POST /v1/memory/nodes HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n5;x=", b"y" * 65536),
    ],
    ids=["value", "large headers", "small headers", "path", "empty lines", "trailer", "chunk extension"],
)
def test_a_head_without_end_is_not_kept(product: Product, first: bytes, again: bytes) -> None:
    pid = serving(product)
    before = resident(pid)
    status, body, sent = flood(product, first, again)
    assert sent < 32 * MB
    assert status in (0, 400, 401, 431)
    if status == 431:
        assert code(body) == "HEADERS_TOO_LARGE"
    assert resident(pid) - before < 16 * MB
    assert httpx2.get(product.url + "/livez").status_code == 200


@needs_proc
def test_requests_that_nobody_waits_for_do_not_pile_up(product: Product) -> None:
    pid = serving(product)
    before = resident(pid)
    _, _, sent = flood(product, b"", b"GET /healthz HTTP/1.1\r\nhost: here\r\n\r\n" * 500, 16 * MB)
    assert sent < 16 * MB
    assert resident(pid) - before < 32 * MB


def drip(raw: socket.socket, data: bytes, stop: threading.Event) -> None:
    """A byte each half second, until nobody takes it."""
    with contextlib.suppress(OSError):
        while not stop.wait(0.5):
            raw.sendall(data)


@pytest.mark.slow
def test_who_is_too_slow_is_let_go(product: Product, tenant: str) -> None:
    """Side by side, for each takes its time."""
    token = product.issue(tenant=tenant)
    post = f"POST /v1/memory/nodes HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n"
    put = f"PUT /v1/memory/artifacts?name=a HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {token}\r\n"
    slow = {
        "head": (b"GET /livez HTTP/1.1\r\nx-a: ", b"y", 408, 20),
        "body": (post.encode() + b"content-length: 1000000\r\n\r\n{", b" ", 408, 30),
        "chunks": (post.encode() + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n", 408, 30),
        "upload": (put.encode() + b"content-length: 1000000\r\n\r\n", b"z", 408, 30),
        "silence": (b"", b"", 0, 30),
        "after an answer": (b"GET /livez HTTP/1.1\r\nhost: here\r\n\r\n", b"", 200, 30),
        "refused body": (b"POST /v1/memory/nodes HTTP/1.1\r\nhost: h\r\ncontent-length: 99999\r\n\r\n", b"x", 401, 1),
    }
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        opened = {name: stack.enter_context(connected(product, 60)) for name in slow}
        for name, (first, again, _, _) in slow.items():
            opened[name].sendall(first)
            if again:
                threading.Thread(target=drip, args=(opened[name], again, stop), daemon=True).start()
        ended: dict[str, tuple[int, bytes, float]] = {}

        def wait(name: str) -> None:
            ended[name] = (*answer(opened[name]), time.monotonic() - began)

        threads = [threading.Thread(target=wait, args=(name,)) for name in slow]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
    for name, (_, _, status, seconds) in slow.items():
        found, body, took = ended[name]
        assert found == status, (name, body)
        assert seconds - 1 <= took <= seconds + 15, (name, took)
        if status == 408:
            assert code(body) == "REQUEST_TIMEOUT"


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@pytest.mark.slow
def test_large_bodies_share_a_bounded_room(product: Product, http: httpx2.Client, tenant: str) -> None:
    head = (
        f"POST /v1/memory/nodes:batch HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {product.issue(tenant=tenant)}\r\n"
        f"content-type: application/json\r\ncontent-length: {31 * MB}\r\n\r\n"
    ).encode()
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(product)) for _ in range(9)]
        for raw in held:
            with contextlib.suppress(OSError):  # the last ones are refused before all is sent
                raw.sendall(head + b"[" + b" " * (30 * MB))
        held[-1].settimeout(30)
        first = held[-1].recv(65536)
        assert first.startswith(b"HTTP/1.1 503")
        assert b"OVERLOADED" in first
        create(http, content="small ones go on")
    until(lambda: ask(product, head.replace(b"host:", b"connection: close\r\nhost:") + b"[" + b" " * (31 * MB - 1))[0] == 400,
          "room again")  # fmt: skip


def test_uploads_are_bounded_in_number(product: Product, http: httpx2.Client, tenant: str) -> None:
    head = (
        f"PUT /v1/memory/artifacts?name=a HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {product.issue(tenant=tenant)}\r\n"
        "content-length: 100\r\n\r\n"
    ).encode()

    def status() -> int:
        return http.put("/v1/memory/artifacts", params={"name": "b"}, content=b"12345").status_code

    with contextlib.ExitStack() as stack:
        for _ in range(70):  # some more than fit, for ours take a place too
            stack.enter_context(connected(product)).sendall(head)
        until(lambda: status() == 503, "a refusal")
        create(http, content="nodes go on")
    until(lambda: status() == 201, "room again")


@pytest.mark.slow
def test_metrics_are_for_who_is_at_the_other_end() -> None:
    """Not for whoever says that he comes from here, whatever uvicorn is set to believe."""
    with running_product(environment={"FORWARDED_ALLOW_IPS": "*", "EMBEDDINGS_PROVIDER": "none"}) as product:
        assert httpx2.get(product.url + "/metrics").status_code == 200
        for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
            said = "for=127.0.0.1" if name == "Forwarded" else "127.0.0.1"
            assert httpx2.get(product.url + "/metrics", headers={name: said}).status_code == 401, name
