"""Run a server that listens on every interface where there is only one: in a network of its own, reached through loopback alone.

    unshare --user --map-root-user --net python loopback_only.py FD:PORT ... -- COMMAND ...

Each FD is a listening socket of the outer network, inherited from the caller; what connects to it is carried to PORT inside, and back.
Ends with the command, by its exit code. Standard library alone: it runs as a file, from anywhere. Linux.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # linux/sockios.h, linux/if.h
BATCH_SIZE = 256 * 1024  # bytes


def raise_loopback() -> None:
    """A new network has a loopback interface that is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        found = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16sH14x", found)[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(BATCH_SIZE):
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def forward(listener: socket.socket, port: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port, limit=BATCH_SIZE)
        except OSError:  # not up yet
            writer.transport.abort()
            return
        try:
            await asyncio.gather(carry(reader, inner_writer), carry(inner_reader, writer))
        finally:
            inner_writer.close()
            writer.close()

    await asyncio.start_server(connected, sock=listener, limit=BATCH_SIZE)


async def main(ports: list[str], command: list[str]) -> int:
    raise_loopback()
    server = await asyncio.create_subprocess_exec(*command)
    for pair in ports:
        number, port = pair.split(":")
        listener = socket.socket(fileno=int(number))
        listener.setblocking(False)
        await forward(listener, int(port))
    return await server.wait()


if __name__ == "__main__":
    split = sys.argv.index("--")
    sys.exit(asyncio.run(main(sys.argv[1:split], sys.argv[split + 1 :])))
