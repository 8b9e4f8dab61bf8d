"""Several API processes at one port: they share the log, are started again when they end, and end together."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.product import Product, run_ctl, running_product


@pytest.fixture(scope="module")
def twins() -> Iterator[Product]:
    with running_product("--processes", "2") as product:
        yield product
        children = answering(product)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def answering(product: Product) -> list[int]:
    """The process ids of those that answer: the supervisor's children."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
            command = status.with_name("cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found[int(status.parent.name)] = (int(fields[1]), command)
    (supervisor,) = [p for p, (parent, c) in found.items() if parent == product.process.pid and b"serve" in c]
    return sorted(p for p, (parent, _) in found.items() if parent == supervisor)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not come about"
        time.sleep(0.05)


def write(product: Product, count: int) -> None:
    """Each write over a connection of its own, so that both are asked."""
    headers = {"Authorization": f"Bearer {product.token}"}
    for number in range(count):
        made = httpx2.post(
            f"{product.url}/v1/memory/nodes",
            json={"owner": "ann", "metadata": {"n": number}},
            headers=headers,
            timeout=30,
        )
        assert made.status_code == 201, made.text


def created(product: Product) -> int:
    """How many creations /metrics tells of, whichever process is asked."""
    text = httpx2.get(f"{product.url}/metrics").text
    found = re.search(
        r'memory_http_requests_total\{method="POST",route="/v1/memory/nodes",status="201"\} ([0-9.e+]+)', text
    )
    return 0 if found is None else int(float(found[1]))


def test_two_answer_and_count_together(twins: Product) -> None:
    assert len(answering(twins)) == 2
    before = created(twins)
    write(twins, 30)
    assert {created(twins) for _ in range(8)} == {before + 30}


def test_one_that_ends_is_started_again(twins: Product) -> None:
    first, second = answering(twins)
    os.kill(first, signal.SIGKILL)
    until(lambda: len(answering(twins)) == 2 and first not in answering(twins))
    assert second in answering(twins)
    write(twins, 10)
    assert run_ctl("audit", "verify", "--data", str(twins.data)).returncode == 10


def test_all_of_them_hear_of_a_revoked_service(twins: Product) -> None:
    headers = {"Authorization": f"Bearer {twins.issue('leaver')}"}
    with contextlib.ExitStack() as stack:  # new connections are dealt in turn: both have checked the token
        clients = [stack.enter_context(httpx2.Client(base_url=twins.url, headers=headers)) for _ in range(8)]
        assert {client.get("/v1/memory/nodes").status_code for client in clients} == {200}
        words = ("principal", "revoke", "leaver", "--reason", "gone", "--yes", "--data", str(twins.data))
        assert run_ctl(*words).returncode == 0
        since = time.monotonic()
        until(lambda: {client.get("/v1/memory/nodes").status_code for client in clients} == {401})
        assert time.monotonic() - since < 5


@pytest.mark.parametrize("count", ["0", "257", "-1"])
def test_a_number_that_makes_no_sense(count: str) -> None:
    for command in ("serve", "up"):
        done = run_ctl(command, "--processes", count)
        assert done.returncode == 2
        assert "1 to 256" in done.stderr


def test_lasting_connections_are_dealt_in_turn(twins: Product) -> None:
    # One of the two may have been started again a moment ago, and not be at the port yet.
    until(lambda: min(shares_of_eight(twins)) >= 3)  # never below 30 %


def shares_of_eight(twins: Product) -> list[int]:
    """How many of eight new connections each process holds."""
    headers = {"Authorization": f"Bearer {twins.token}"}
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx2.Client(base_url=twins.url, headers=headers)) for _ in range(8)]
        for client in clients:
            assert client.get("/livez").status_code == 200
        shares = [connections_of(pid) for pid in answering(twins)]
    assert sum(shares) >= 8
    return shares


def connections_of(pid: int) -> int:
    """How many TCP connections a process holds at the product's port."""
    inodes = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "01"}
    held = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    return len([name for name in held if name.startswith("socket:[") and name[8:-1] in inodes])
