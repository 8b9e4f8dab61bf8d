"""Run the application: uvicorn on one listening socket, drained on SIGTERM and SIGINT."""

from __future__ import annotations

import socket
from pathlib import Path

import uvicorn

from memory_layer.api.app import create_app
from memory_layer.config import Settings
from memory_layer.errors import DependencyUnavailable


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


def serve(settings: Settings, data: Path, public_key: str, listener: socket.socket) -> None:
    """Answer until told to stop; requests in flight are finished first."""
    config = uvicorn.Config(
        create_app(settings, data, public_key),
        loop="uvloop",
        http="httptools",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=30,
    )
    uvicorn.Server(config).run(sockets=[listener])
