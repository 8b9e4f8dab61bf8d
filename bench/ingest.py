"""A folder of many files taken in by the command, and again; and a note that is written while another tenant's long texts wait for their vectors."""

from __future__ import annotations

import re
import statistics
import tempfile
import threading
import time
from pathlib import Path

import httpx2

from bench.report import Table
from bench.running import running
from tests.support.product import Product

FILES = 10_000
NAMESPACE = "bench"
LONG, LONG_CHARACTERS = 4, 1_900_000
NOTES = 10
FILL = "The committee reviewed the quarterly figures and agreed to postpone the vote until all regional offices had replied. "
_COUNT = re.compile(r'^memory_http_requests_total\{.*route="/v1/[^"]*".*\} ([0-9.e+]+)$', re.MULTILINE)


def measure() -> Table:
    rows = []
    with running() as product, tempfile.TemporaryDirectory(prefix="bench-ingest-") as folder:
        rows += _notes_beside_long_texts(product)
        _write(Path(folder))
        for what, words in (
            ("new", ()),
            ("again, nothing changed", ()),
            ("again with --prune, nothing changed", ("--prune",)),
        ):
            rows.append((f"{FILES:,} files: {what}", _taken_in(product, folder, *words)))
        for name in ("0/0.md", "1/7.md"):
            (Path(folder) / name).unlink()
        rows.append((f"{FILES:,} files: two are gone, --prune", _taken_in(product, folder, "--prune")))
    return Table(
        "ingest",
        rows,
        f"{FILES:,} Markdown files of a heading and a sentence in 100 folders, `memoryctl ingest` with its start; the worker embeds what is new "
        f"meanwhile. Notes: {NOTES} of one tenant, one after the other with `?wait=indexed`, while {LONG} texts of {LONG_CHARACTERS:,} characters "
        "of another tenant, each written by itself, wait for their vectors",
    )


def _write(folder: Path) -> None:
    for number in range(FILES):
        path = folder / str(number % 100) / f"{number // 100}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f"# File {number}\n\nThis is the file of number {number}, and it says that the sample {number * 7919} was kept.\n"
        )


def _taken_in(product: Product, folder: str, *words: str) -> str:
    before, began = _requests(product), time.monotonic()
    done = product.ctl("ingest", folder, "--namespace", NAMESPACE, *words)
    assert done.returncode == 0, done.stderr
    return f"{time.monotonic() - began:.1f} s, {_requests(product) - before:,} requests"


def _requests(product: Product) -> int:
    """How many the API has answered."""
    shown = httpx2.get(f"{product.url}/metrics", timeout=30).text
    return round(sum(float(count) for count in _COUNT.findall(shown)))


def _notes_beside_long_texts(product: Product) -> list[tuple[str, str]]:
    def client(tenant: str) -> httpx2.Client:
        token = product.issue(tenant=tenant)
        return httpx2.Client(base_url=product.url, headers={"Authorization": f"Bearer {token}"}, timeout=120)

    with client("ann") as ann, client("bob") as bob:
        # The model is loaded at first use.
        assert bob.post("/v1/memory/nodes?wait=indexed", json={"owner": "bob", "content": "warm up"}).is_success

        def write(number: int) -> None:
            text = (FILL * (LONG_CHARACTERS // len(FILL) + 1))[:LONG_CHARACTERS]
            assert ann.post("/v1/memory/nodes", json={"owner": "ann", "content": f"{number} {text}"}).status_code == 201

        writers = [threading.Thread(target=write, args=(number,)) for number in range(LONG)]
        for writer in writers:
            writer.start()
        seconds, late = [], 0
        for number in range(NOTES):
            began = time.monotonic()
            made = bob.post("/v1/memory/nodes?wait=indexed", json={"owner": "bob", "content": f"note {number}"})
            seconds.append(time.monotonic() - began)
            late += made.status_code == 202
        for writer in writers:
            writer.join()
        while _waiting(product, "ann"):
            time.sleep(0.05)
    return [
        (
            "a note beside another tenant's long texts, until it is found by meaning",
            f"p50 {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s; {late} of {NOTES} not within 10 s",
        )
    ]


def _waiting(product: Product, tenant: str) -> int:
    row = (
        product.watching()
        .execute("SELECT count(*) FROM memory_vectors WHERE tenant = %s AND status <> 'succeeded'", (tenant,))
        .fetchone()
    )
    assert row is not None
    return int(str(row[0]))
