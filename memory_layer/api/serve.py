"""Run the application: uvicorn on one listening socket, drained on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path

import uvicorn

from memory_layer.api.app import create_app
from memory_layer.api.bounded import IDLE_SECONDS, BoundedProtocol
from memory_layer.api.tls import ServerCertificate, open_certificate, trusted_proxies
from memory_layer.config import Settings
from memory_layer.errors import DependencyUnavailable, MemoryLayerError
from memory_layer.stores.token_keys import TokenKeys


def listen(host: str, port: int) -> socket.socket:
    """A bound, listening socket. A port that is taken is one clear error."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise DependencyUnavailable(
            f"cannot listen on {host}:{port}: {error.strerror}. Stop what uses the port, or choose another with --port or PORT."
        ) from error
    return listener


def serve(settings: Settings, data: Path, keys: TokenKeys, listener: socket.socket) -> None:
    """Answer until stopped; requests in flight are finished first. Raises what kept it from starting."""
    refused: list[MemoryLayerError] = []
    certificate = open_certificate(settings)
    _run(_Server(_config(settings, data, keys, refused, certificate), certificate), [listener], refused)


def answer_handed(settings: Settings, data: Path, keys: TokenKeys, channel: socket.socket) -> None:
    """The same for connections that another process accepts and hands over the channel, each with one byte."""
    refused: list[MemoryLayerError] = []
    certificate = open_certificate(settings)
    _run(_Handed(_config(settings, data, keys, refused, certificate), certificate, channel), [], refused)


def _run(server: uvicorn.Server, sockets: list[socket.socket], refused: list[MemoryLayerError]) -> None:
    # A document of half a million lists makes Python look for garbage nine hundred times by its own defaults, and each look at all of
    # them keeps everybody waiting. What is loaded by now stays for good and need not be looked at.
    gc.freeze()
    gc.set_threshold(20_000, 5, 1_000)
    try:
        server.run(sockets=sockets)
    finally:
        if refused:  # in the place of uvicorn's SystemExit
            raise refused[0]


class _Server(uvicorn.Server):
    """uvicorn that takes over a renewed certificate."""

    def __init__(self, config: uvicorn.Config, certificate: ServerCertificate | None) -> None:
        super().__init__(config)
        self._certificate = certificate

    async def on_tick(self, counter: int) -> bool:
        if self._certificate is not None:
            self._certificate.refresh()
        return await super().on_tick(counter)


class _Handed(_Server):
    """The same without a listener of its own; its protocol is made as its ``startup`` makes it."""

    def __init__(self, config: uvicorn.Config, certificate: ServerCertificate | None, channel: socket.socket) -> None:
        super().__init__(config, certificate)
        self._channel = channel
        self._opening: set[asyncio.Task[object]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._take)
        self._channel.send(b"r")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._channel.close()
        await super().shutdown(sockets)

    def _take(self) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._channel, 64, 64)
        except BlockingIOError:
            return
        except OSError:
            message, descriptors = b"", []
        loop = asyncio.get_running_loop()
        for descriptor in descriptors:
            connection = socket.socket(fileno=descriptor)
            connection.setblocking(False)
            task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection, ssl=self.config.ssl))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        if not message:  # the accepting process is gone
            loop.remove_reader(self._channel.fileno())
            self.should_exit = True

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _config(
    settings: Settings,
    data: Path,
    keys: TokenKeys,
    refused: list[MemoryLayerError],
    certificate: ServerCertificate | None,
) -> uvicorn.Config:
    class Protocol(BoundedProtocol):
        proxies = trusted_proxies(settings)
        wants_certificate = settings.tls_client_ca is not None

    return uvicorn.Config(
        create_app(settings, data, keys, refused),
        loop="uvloop",
        http=Protocol,
        ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
        ws="none",
        # Who asks is who is at the other end of the connection: nothing here trusts what a header says of that.
        proxy_headers=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=int(IDLE_SECONDS),
    )
