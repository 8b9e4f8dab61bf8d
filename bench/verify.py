"""How fast a log is verified: in a live database, as an export on one core and on all, and the checks alone."""

from __future__ import annotations

import datetime as dt
import gc
import json
import os
import tempfile
import time
import uuid
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bench.report import Table
from bench.running import running
from memory_layer.audit import bundle, seal, trust_root
from memory_layer.audit.entry import encode_entry, format_ts, genesis_prev, leaf_hash
from memory_layer.audit.offline import verify_bundle
from memory_layer.audit.seal_chain import Base
from memory_layer.audit.verify import Row, SealRow, verify
from memory_layer.client import MemoryClient
from tests.support.product import run_ctl

ORIGIN = "bench.example/audit/dev/s0/e1"
LIVE, TOGETHER, ALONE, EXPORTED = 6_400, 64, 100_000, 400_000


def measure() -> Table:
    rows = [("`memoryctl audit verify` on the live database: entries, payloads, seals, rows", _live())]
    for size, entries in ((64, ALONE), (1, ALONE // 10)):
        rate = f"{_checks_alone(entries, size):,.0f} entries/s"
        rows.append((f"the checks alone, {size} to a batch, CPU time of one core", rate))
    cores = os.cpu_count() or 1
    for size, entries in ((64, EXPORTED), (1, EXPORTED // 10)):
        one, every = _exported(entries, size, cores)
        rate = f"{one:,.0f} entries/s on one core, {every:,.0f} on {cores}"
        rows.append((f"an export without payloads, {size} to a batch, from the files", rate))
    return Table(
        "verify", rows, f"{LIVE:,} nodes written in requests of {TOGETHER}; {ALONE:,} entries made for the checks alone"
    )


def _live() -> str:
    with running() as product:
        with MemoryClient(product.url, product.token) as memory:
            for first in range(0, LIVE, TOGETHER):
                memory.create_many([{"owner": "ann", "metadata": {"number": first + n}} for n in range(TOGETHER)])
        began = time.monotonic()
        done = run_ctl("audit", "verify", "--data", str(product.data), "--json")
        seconds = time.monotonic() - began
        counts = json.loads(done.stdout)["counts"]
        assert done.returncode == 10, done.stdout + done.stderr
        assert counts["entries"] >= LIVE
        return f"{counts['entries'] / seconds:,.0f} entries/s, the start of the program included ({counts['batches']:,} batches)"


def _exported(entries: int, size: int, cores: int) -> tuple[float, float]:
    """Entries a second by the clock with one process and with as many as there are cores, the start of those included."""
    rows, seals, root = _written(entries, size)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        _export(out, rows, seals)
        rates = []
        for processes in (1, cores):
            began = time.monotonic()
            verdict = verify_bundle(out, root, pinned=True, processes=processes)
            rates.append(entries / (time.monotonic() - began))
            assert not verdict.findings, verdict.findings[0]
    return rates[0], rates[1]


def _export(out: Path, rows: list[Row], seals: list[SealRow]) -> None:
    lines = {
        bundle.ENTRIES: [row.entry for row in rows],
        bundle.PAYLOADS: [],
        bundle.SEALS: [bundle.seal_line(row) for row in seals],
        bundle.CHECKPOINTS: [],
    }
    files, counts = {}, {}
    for name, content in lines.items():
        with bundle.LineWriter(out, name) as file:
            for line in content:
                file.write(line)
            files[name], counts[name.partition(".")[0]] = file.finish(), file.lines
    for name in (bundle.TRUST_ROOT, bundle.FORMAT_PAGE, bundle.README):
        files[name] = bundle.write_file(out, name, b"")
    manifest = bundle.Manifest(
        origin=ORIGIN,
        base=Base(prev=genesis_prev(ORIGIN)),
        head=bundle.Head(rows[-1].seq, rows[-1].hash, seals[-1].batch, seal.seal_hash(seals[-1].text)),
        payloads="none",
        tenant=None,
        counts=counts,
        files=files,
        previous=None,
        time=rows[-1].ts,
        tool="memory-layer bench",
    )
    bundle.write_manifest(out, manifest)


def _checks_alone(entries: int, size: int) -> float:
    """Entries a second, the best of three."""
    rows, seals, root = _written(entries, size)
    gc.freeze()  # the rows stand in for a stream; walking them is no part of the work
    best = 0.0
    for _ in range(3):
        began = time.process_time()
        verdict = verify(root, rows, seals, expected_origin=ORIGIN, pinned=True, payloads=False)
        best = max(best, entries / (time.process_time() - began))
        assert not verdict.findings, verdict.findings[0]
    gc.unfreeze()
    return best


def _written(entries: int, size: int) -> tuple[list[Row], list[SealRow], trust_root.TrustRoot]:
    """A log of ``entries`` entries, ``size`` to a batch."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    root = trust_root.load(trust_root.dump(ORIGIN, [trust_root.trusted_key("ed25519", der)]))
    moment = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    prev, prev_seal = genesis_prev(ORIGIN), seal.NO_PREVIOUS
    kind = "memory.node.created"
    rows, seals = [], []
    for first in range(0, entries, size):
        moment += dt.timedelta(milliseconds=10)
        ts, batch, fresh = format_ts(moment), first // size, []
        for seq in range(first, min(first + size, entries)):
            id_ = str(uuid.UUID(int=int(moment.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | seq))
            node, tenant = str(uuid.UUID(int=seq)), f"t{seq % 20}"
            data = encode_entry(
                log=ORIGIN, seq=seq, id=id_, ts=ts, type=kind, tenant=tenant, actor=uuid.UUID(int=1), auth="jwt",
                node=node, version=1, state="0" * 64, request_id=f"req-{seq}",
                trace_id="4bf92f3577b34da6a3ce929d0e0e4736", payload="1" * 64, prev=prev,
            )  # fmt: skip
            digest = leaf_hash(data)
            fresh.append((seq, data, digest, prev, id_, tenant, node))
            prev = digest
        text = seal.seal_text(
            log=ORIGIN, batch=batch, first=first, last=fresh[-1][0], head=prev, prev_seal=prev_seal, time=ts,
            key=seal.key_id(der), alg="ed25519",
        )  # fmt: skip
        signature = seal.encode_signature(key.sign(text))
        seals.append(SealRow(batch, text, signature))
        prev_seal = seal.seal_hash(text)
        rows += [
            Row(seq, batch, data, digest, before, signature, id_, ts, kind, tenant, node, None, None)
            for seq, data, digest, before, id_, tenant, node in fresh
        ]
    return rows, seals, root
