"""HTTPS, client certificates and proxies in front: whom the API answers."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from memory_layer import config
from memory_layer.api.bounded import BoundedProtocol
from memory_layer.api.tls import ServerCertificate, comes_from, trusted_proxies
from memory_layer.errors import UsageError
from tests.api.door import check_error, eventually
from tests.support.certificates import Authority
from tests.support.product import Product, clean_environment, run_ctl


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


@pytest.fixture(scope="module")
def served(product: Product, authority: Authority) -> Iterator[str]:
    """Another server of the product, of two processes: it has a certificate, and wants one of its clients."""
    certificate, key = authority.issue("server")
    environment = clean_environment() | {
        "DATABASE_URL": product.database, "PORT": "0", "TLS_CERT": str(certificate), "TLS_KEY": str(key),
        "TLS_CLIENT_CA": str(authority.certificate),
    }  # fmt: skip
    said = authority.folder / "served.log"
    with said.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "memory_layer.cli", "serve", "--data", str(product.data), "--processes", "2"],
            env=environment,
            stderr=log,
            text=True,
        )
    try:
        line = eventually(said.read_text, lambda text: "listening on" in text and text.endswith("\n"), 60)
        url = re.search(r"listening on (\S+)", line)[1]  # type: ignore[index]
        assert url.startswith("https://")
        eventually(lambda: _status(url, trusts(authority)), lambda status: status == 200, 60)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _status(url: str, context: ssl.SSLContext, path: str = "/readyz") -> int | None:
    try:
        return httpx2.get(url + path, verify=context, timeout=30).status_code
    except httpx2.TransportError:
        return None


def trusts(authority: Authority, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if client is not None:
        context.load_cert_chain(*client)
    return context


def test_a_client_with_a_certificate_is_answered(
    product: Product, served: str, authority: Authority, tenant: str
) -> None:
    token = {"Authorization": f"Bearer {product.issue(tenant=tenant)}"}
    with httpx2.Client(
        base_url=served, headers=token, verify=trusts(authority, authority.issue("agent")), timeout=30
    ) as http:
        made = http.post("/v1/memory/nodes", json={"owner": "ann", "content": "over TLS"})
        assert made.status_code == 201, made.text
        assert http.get(f"/v1/memory/nodes/{made.json()['memoryNodeId']}").json()["content"] == "over TLS"


def test_a_client_without_one_reads_why_it_is_refused(product: Product, served: str, authority: Authority) -> None:
    token = {"Authorization": f"Bearer {product.issue()}"}
    with httpx2.Client(base_url=served, headers=token, verify=trusts(authority), timeout=30) as http:
        for path in ("/v1/memory/nodes", "/openapi.json", "/livez/../v1/memory/nodes", "/livezz"):
            error = check_error(http.get(path), 401, "UNAUTHENTICATED")
            assert "client certificate" in error["message"]
        assert (http.get("/livez").status_code, http.get("/readyz").status_code) == (200, 200)


def test_what_another_authority_issued_is_refused(served: str, authority: Authority) -> None:
    other = Authority(authority.folder, "other")
    expired = authority.issue("late", days=-1)
    for client in (other.issue("intruder"), expired):
        assert _status(served, trusts(authority, client), "/v1/memory/nodes") is None
    with pytest.raises(httpx2.TransportError):  # and its own certificate is checked by those who know the authority
        httpx2.get(served + "/livez", timeout=30)
    with pytest.raises(httpx2.TransportError):
        httpx2.get(served.replace("https", "http") + "/livez", timeout=30)


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path, "ca")
    files = authority.issue("server")
    served = ServerCertificate(*files, None)
    monkeypatch.setattr("memory_layer.api.tls.LOOK_EVERY", 0.0)
    first = _shown(served, authority)
    served.refresh()
    assert _shown(served, authority) == first
    authority.issue("server")
    served.refresh()
    second = _shown(served, authority)
    assert second != first
    files[1].write_text("no key")  # half of a renewal: the pair that fits stays in use
    served.refresh()
    assert _shown(served, authority) == second
    files[1].unlink()
    served.refresh()
    assert _shown(served, authority) == second


def _shown(served: ServerCertificate, authority: Authority) -> bytes | None:
    """The certificate that a client is shown, in a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = served.context.wrap_bio(to_server, to_client, server_side=True)
    client = trusts(authority).wrap_bio(to_client, to_server, server_hostname="server")
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client.getpeercert(binary_form=True)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"TLS_CERT": "server"}, "TLS_KEY"),
        ({"TLS_KEY": "key"}, "TLS_CERT"),
        ({"TLS_CLIENT_CA": "server"}, "TLS_CERT"),
        ({"TLS_CERT": "server", "TLS_KEY": "missing"}, "no such file"),
        ({"TLS_CERT": "server", "TLS_KEY": "other"}, "mismatch"),
        ({"TLS_CERT": "key", "TLS_KEY": "key"}, "TLS_CERT"),
        ({"TLS_CERT": "server", "TLS_KEY": "key", "TLS_CLIENT_CA": "key"}, "TLS_CLIENT_CA"),
        ({"TRUSTED_PROXIES": "10.0.0.0/33"}, "TRUSTED_PROXIES"),
        ({"TRUSTED_PROXIES": "proxy.internal"}, "TRUSTED_PROXIES"),
        ({"TRUSTED_PROXIES": ","}, "TRUSTED_PROXIES"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used(tmp_path: Path, settings: dict[str, str], named: str) -> None:
    authority = Authority(tmp_path, "ca")
    certificate, key = authority.issue("server")
    files = {"server": certificate, "key": key, "other": authority.issue("other")[1], "missing": tmp_path / "missing"}
    environment = {name: str(files.get(value, value)) for name, value in settings.items()}
    words = ("up" if "TLS_CLIENT_CA" in settings else "serve", "--data", str(tmp_path / "data"))
    ended = run_ctl(*words, env=environment | {"DATABASE_URL": "postgresql://memory_app@127.0.0.1:1/memory"})
    assert ended.returncode == 2, ended.stderr
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        ("10.0.0.7", True), ("10.0.0.8", False), ("10.1.200.3", True), ("::ffff:10.1.0.1", True), ("::ffff:10.2.0.1", False),
        ("fd00::5", True), ("fd01::5", False), ("127.0.0.1", True), ("::1", True), ("192.0.2.1", False), ("", True), (None, True),
        ("10.0.0.7evil", False),
    ],
)  # fmt: skip
def test_whose_connections_are_taken(address: str | None, trusted: bool) -> None:
    networks = trusted_proxies(config.load({}, trusted_proxies="10.0.0.7, 10.1.0.0/16,fd00::/64"))
    assert networks is not None
    assert comes_from(address, networks) is trusted


def test_a_proxy_must_be_named_by_its_address() -> None:
    with pytest.raises(UsageError, match="TRUSTED_PROXIES"):
        trusted_proxies(config.load({}, trusted_proxies="any"))


class Wire(asyncio.Transport):
    """A connection from elsewhere on a network, of which a test sees what is sent."""

    def __init__(self, peer: str) -> None:
        super().__init__({"peername": (peer, 40000), "sockname": ("10.0.0.1", 4300)})
        self.sent = b""
        self.written = asyncio.Event()
        self.closed = False

    def write(self, data: Any) -> None:
        self.sent += bytes(data)
        self.written.set()

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@pytest.mark.parametrize("peer", ["10.0.0.7", "192.0.2.1"])
async def test_requests_from_elsewhere_are_refused(peer: str) -> None:
    asked = []

    async def application(scope: Any, _receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    class Protocol(BoundedProtocol):
        proxies = trusted_proxies(config.load({}, trusted_proxies="10.0.0.7"))

    settings = uvicorn.Config(application, lifespan="off", log_config=None)
    settings.load()
    wire = Wire(peer)
    protocol = Protocol(config=settings, server_state=uvicorn.server.ServerState(), app_state={})
    protocol.connection_made(wire)
    protocol.data_received(
        b"POST /v1/memory/nodes HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.0.0.7\r\nContent-Length: 2\r\n\r\n{}"
    )
    await asyncio.wait_for(wire.written.wait(), 60)
    protocol.connection_lost(None)
    head = wire.sent.partition(b"\r\n")[0]
    if peer == "10.0.0.7":
        assert (head[:12], asked) == (b"HTTP/1.1 204", ["/v1/memory/nodes"])
    else:
        assert (head[:12], asked) == (b"HTTP/1.1 403", [])
        assert b"TRUSTED_PROXIES" in wire.sent
