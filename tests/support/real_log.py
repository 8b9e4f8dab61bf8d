"""A log that the running service wrote, copies of it in forgers' hands, and its evidence bundle taken apart and put together."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from psycopg.conninfo import make_conninfo

from memory_layer.audit import bundle, trust_root
from memory_layer.audit.anchors import CheckpointRow
from memory_layer.audit.bundle import Head, LineWriter, Manifest
from memory_layer.audit.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint
from memory_layer.audit.entry import genesis_prev, leaf_hash
from memory_layer.audit.seal import NO_PREVIOUS, encode_signature, key_id, seal_hash
from memory_layer.audit.seal_chain import SealRow
from memory_layer.audit.tree import Frontier
from memory_layer.ops import embedded, export
from memory_layer.ops.manifests import manifest_key
from memory_layer.service import artifacts
from memory_layer.service.checkpoints import publish_once
from memory_layer.service.installation import Installation
from memory_layer.stores.signers.local import open_local_signer
from tests.support.databases import copied, new_database
from tests.support.service import caller, create, delete, hold, patch, running_memory, unit
from tests.support.triggers import switch_off

TENANTS = ("ann", "bob", "eve")
ROUNDS = 205
CHECKPOINTED = (60, 120, 180, ROUNDS)  # rounds after which the tree is published


@dataclass
class RealLog:
    """``dsn`` is the superuser's. ``bundle`` is the whole log exported; ``notes`` are its checkpoints, the newest last."""

    dsn: str
    data: Path
    bundle: Path
    notes: list[bytes]

    @property
    def root_bytes(self) -> bytes:
        return (self.data / "trust-root.json").read_bytes()

    @property
    def root(self) -> trust_root.TrustRoot:
        return trust_root.load(self.root_bytes)

    @property
    def anchor(self) -> Checkpoint:
        return parse_checkpoint(self.notes[-1])

    def key(self, name: str = "seal") -> Ed25519PrivateKey:
        key = load_pem_private_key((self.data / "keys" / f"{name}.pem").read_bytes(), password=None)
        assert isinstance(key, Ed25519PrivateKey)
        return key

    @functools.cached_property
    def _apart(self) -> Forgery:
        return Forgery.read(self.bundle)

    def forge(self) -> Forgery:
        """The bundle taken apart; what is done to it is done to this one alone."""
        read = self._apart
        lists = {name: list(getattr(read, name)) for name in ("entries", "payloads", "seals", "checkpoints")}
        return dataclasses.replace(read, manifest=dataclasses.replace(read.manifest), others=dict(read.others), **lists)


async def _write(memory: Installation) -> None:
    nodes: list[tuple[uuid.UUID, str]] = []
    for turn in range(ROUNDS):
        tenant = TENANTS[turn % 3]
        made = await asyncio.gather(
            *(create(memory, tenant, content=f"turn {turn}.{n}", metadata={"turn": turn, "n": n}, subjects=[f"s{n}"],
                     embedding=unit(1, n) if n == 0 else None) for n in range(7))
        )  # fmt: skip
        changes = [
            patch(memory, made[0], tenant, content="changed", metadata={"again": turn}),
            hold(memory, made[1], tenant=tenant),
        ]
        changes += [delete(memory, made[2], tenant), delete(memory, made[3], tenant)]
        await asyncio.gather(*changes)
        if turn % 20 == 0:
            await _upload(memory, tenant, made[4], f"{turn}.txt")
            await hold(memory, made[1], on=False, tenant=tenant)
        nodes += [(made[4], tenant)]
        if turn + 1 in CHECKPOINTED:
            await publish_once(memory)


async def _upload(memory: Installation, tenant: str, node: uuid.UUID, name: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield name.encode()

    await artifacts.upload(memory, caller(tenant), artifacts.Upload(node, name, "text/plain", None, {}), chunks())


@contextmanager
def real_log(cluster: embedded.Cluster, folder: Path) -> Iterator[RealLog]:
    """Written once: at least 2,000 entries in 200 batches, of three tenants, every kind of change, and checkpoints."""
    data = folder / "installation"
    with new_database(cluster) as made:

        async def run() -> None:
            async with running_memory(made("memory_app"), data) as memory:
                await _write(memory)

        asyncio.run(run())
        content = (data / "trust-root.json").read_bytes()
        root = trust_root.load(content)
        out = folder / "evidence"
        export.export(made("memory_app"), root, content, out, key=manifest_key(data, root))
        notes = [row.note for row in bundle.Reader(out).checkpoints()]
        yield RealLog(made("postgres"), data, out, [note for note in notes if note is not None])


FORGED = ("audit_events", "audit_seals", "audit_payloads", "audit_checkpoints", "memory_nodes", "artifacts")


@contextmanager
def forged_copy(log: RealLog) -> Iterator[psycopg.Connection[Any]]:
    """A copy of the database in the hands of a superuser who switched every trigger off."""
    original = str(psycopg.conninfo.conninfo_to_dict(log.dsn)["dbname"])
    with (
        copied(log.dsn, original) as name,
        psycopg.connect(make_conninfo(log.dsn, dbname=name), autocommit=True) as connection,
    ):
        switch_off(connection, *FORGED)
        yield connection


def refit(folder: Path, **claims: Any) -> None:
    """Give a bundle a manifest, unsigned, that fits its files as they are; ``claims``: counts, and what a gzip file expands to, of
    other sizes (``entries``, ``entries_expanded``, ...)."""
    manifest = bundle.load_manifest((folder / bundle.MANIFEST).read_bytes())
    files = {}
    for name, told in manifest.files.items():
        data = (folder / name).read_bytes()
        expanded = claims.get(f"{name.partition('.')[0]}_expanded", told.expanded)
        files[name] = bundle.File(len(data), hashlib.sha256(data).hexdigest(), expanded)
    counts = {name: claims.get(name, count) for name, count in manifest.counts.items()}
    (folder / bundle.MANIFEST).unlink()
    (folder / bundle.SIGNATURE).unlink(missing_ok=True)
    bundle.write_manifest(folder, dataclasses.replace(manifest, files=files, counts=counts))


@dataclass
class Forgery:
    """A bundle taken apart. ``write`` puts it together with a manifest that fits, as whoever lacks the manifest key can."""

    manifest: Manifest
    entries: list[bytes]
    payloads: list[tuple[int, bytes, bytes]]
    seals: list[SealRow]
    checkpoints: list[CheckpointRow]
    others: dict[str, bytes] = field(default_factory=dict)
    seal_lines: list[bytes] | None = None

    @classmethod
    def read(cls, folder: Path) -> Forgery:
        reader = bundle.Reader(folder)
        _, manifest = reader.manifest()
        assert manifest is not None
        entries = [line for block in reader.blocks(bundle.ENTRIES) for line in block]
        others = {name: (folder / name).read_bytes() for name in (bundle.TRUST_ROOT, bundle.FORMAT_PAGE, bundle.README)}
        made = cls(
            manifest, entries, list(reader.payloads()), list(reader.seals(0)), list(reader.checkpoints()), others
        )
        assert not reader.malformed
        return made

    def evidence(self) -> tuple[object, ...]:
        """What must not change unnoticed."""
        return tuple(self.entries), tuple(self.payloads), tuple(self.seals), tuple(self.checkpoints)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        files, counts = {}, {}
        lines: dict[str, list[bytes]] = {
            bundle.ENTRIES: self.entries,
            bundle.PAYLOADS: [bundle.payload_line(*payload) for payload in self.payloads],
            bundle.SEALS: self.seal_lines or [bundle.seal_line(seal) for seal in self.seals],
            bundle.CHECKPOINTS: [bundle.checkpoint_line(row) for row in self.checkpoints],
        }
        for name, content in lines.items():
            with LineWriter(folder, name) as file:
                for line in content:
                    file.write(line)
                files[name] = file.finish()
            counts[name.partition(".")[0]] = len(content)
        for name, data in self.others.items():
            files[name] = bundle.write_file(folder, name, data)
        base = self.manifest.base
        head = None
        if self.entries and self.seals:
            last, seal = self.entries[-1], self.seals[-1]
            head = Head(self.said(-1), leaf_hash(last), _batch(seal), seal_hash(seal.text))
        facts = {"base": base, "head": head, "counts": counts, "files": files}
        bundle.write_manifest(
            folder, Manifest(**{name: getattr(self.manifest, name) for name in Manifest.__slots__} | facts)
        )
        return folder

    # --- What a forger does

    def said(self, place: int) -> int:
        try:
            return int(json.loads(self.entries[place])["seq"])
        except ValueError:
            return place % len(self.entries)

    def span(self, batch: int) -> tuple[int, int]:
        """First and last entry of a batch of the original."""
        line = self.seals[batch].text.split(b"\n")[3].split()
        return int(line[1]), int(line[2])

    def long_batch(self, after: int = 40) -> int:
        """A batch of at least four entries."""
        for batch in range(after, len(self.seals)):
            first, last = self.span(batch)
            if last - first >= 3:
                return batch
        raise LookupError(f"no batch after {after} has four entries")

    def middle(self) -> int:
        """An entry in the middle of a batch."""
        return self.span(self.long_batch())[0] + 1

    def edit(self, place: int, old: bytes, new: bytes) -> None:
        before = self.entries[place]
        self.entries[place] = before.replace(old, new, 1)
        assert self.entries[place] != before

    def member(self, place: int, **values: object) -> None:
        changed = json.loads(self.entries[place]) | values
        self.entries[place] = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()

    def get(self, place: int, name: str) -> Any:
        return json.loads(self.entries[place])[name]

    def truncate(self, batches: int) -> None:
        """Cut off the newest batches, with their payloads and checkpoints."""
        first = self.span(len(self.seals) - batches)[0]
        del self.entries[first:], self.seals[-batches:]
        self.payloads = [payload for payload in self.payloads if payload[0] < first]
        self.checkpoints = [row for row in self.checkpoints if row.size <= first]

    def reseal(self, batch: int, key: Ed25519PrivateKey, *, old: bytes = b"", new: bytes = b"") -> None:
        """Sign one seal again, its text changed."""
        seal = self.seals[batch]
        text = seal.text.replace(old, new, 1)
        assert text != seal.text or not old
        self.seals[batch] = SealRow(seal.batch, text, encode_signature(key.sign(text)))

    def rechain(
        self, key: Ed25519PrivateKey, first: int = 0, *, alg: str = "ed25519", text: Callable[[bytes], bytes] = bytes
    ) -> None:
        """Link all entries from ``first`` on anew and seal them with ``key``: what its holder can do."""
        der = open_public(key)
        prev = leaf_hash(self.entries[first - 1]) if first else genesis_prev(self.manifest.origin)
        for place in range(first, len(self.entries)):
            line = self.entries[place]
            at = line.index(b'"prev":"') + 8
            self.entries[place] = line = line[:at] + prev.encode() + line[at + 64 :]
            prev = leaf_hash(line)
        before, sealed = NO_PREVIOUS, self.seals
        for batch, seal in enumerate(sealed):
            lines = seal.text.decode().split("\n")
            last = int(lines[3].split()[2])
            if last >= first:
                stamp = self.entries[last].partition(b'"ts":"')[2][:27].decode()
                lines[4:9] = [
                    f"head {leaf_hash(self.entries[last])}",
                    f"prev-seal {before}",
                    f"time {stamp}",
                    f"key {key_id(der)}",
                    f"alg {alg}",
                ]
                content = text("\n".join(lines).encode())
                sealed[batch] = SealRow(seal.batch, content, encode_signature(key.sign(content)))
            before = seal_hash(sealed[batch].text)

    def tree_root(self, size: int) -> bytes:
        tree = Frontier()
        tree.extend([bytes.fromhex(leaf_hash(entry)) for entry in self.entries[:size]])
        return tree.root()


def open_public(key: Ed25519PrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def note_for(log: RealLog, size: int, root: bytes) -> bytes:
    """A checkpoint by the log's real key."""
    signer = open_local_signer(log.data / "keys" / "checkpoint.pem")
    return sign_checkpoint(
        log.root.origin, size, root, public_key_der=signer.public_key_der, sign=log.key("checkpoint").sign
    )


def _batch(seal: SealRow) -> int:
    line = seal.text.decode("utf-8", "replace").partition("\nbatch ")[2].partition("\n")[0]
    return int(line) if line.isdigit() else seal.batch
