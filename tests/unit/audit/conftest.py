"""A synthetic log, written with the library as the service writes its own."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from memory_layer import canonical
from memory_layer.audit import entry as entries
from memory_layer.audit import seal as seals
from memory_layer.audit import trust_root as trust_roots
from memory_layer.audit.verdict import Verdict
from memory_layer.audit.verify import Row, SealRow, verify

ORIGIN = "memory.example/audit/prod/s0/e1"
START = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)


def signing_key(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def public_der(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass
class Fact:
    """What one entry is made from."""

    members: dict[str, object]
    salt: bytes
    payload: bytes


def fact(seq: int, chance: random.Random, moment: dt.datetime) -> Fact:
    """Creates and deletes, some of them without a request's headers."""
    salt = chance.randbytes(32)
    deleted = seq % 5 == 4
    payload = canonical.dumps({"content": f"turn {seq}", "metadata": {"n": seq, "score": 0.25}, "who": "Zoë"})
    stamp = int(moment.timestamp() * 1000) << 80 | chance.getrandbits(80)
    members: dict[str, object] = {
        "id": uuid.UUID(int=stamp & ~(0xF << 76) & ~(3 << 62) | 7 << 76 | 2 << 62),
        "ts": entries.format_ts(moment),
        "type": "memory.node.deleted" if deleted else "memory.node.created",
        "tenant": f"tenant-{seq % 3}",
        "actor": uuid.UUID(int=chance.getrandbits(128)),
        "auth": "jwt",
        "node": uuid.UUID(int=chance.getrandbits(128)),
        "version": 2 if deleted else 1,
        "state": entries.state_hash(salt, b'{"version":1}'),
        "request_id": f"req-{seq}",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736" if seq % 2 else None,
        "manifest_signature_id": f"manifest-{seq}" if seq % 4 == 0 else None,
        "payload": entries.payload_commitment(salt, payload),
    }
    return Fact(members, salt, payload)


@dataclass
class Log:
    """Rows and seals to tamper with, and the trust root that judges them."""

    rows: list[Row]
    seals: list[SealRow]
    root: trust_roots.TrustRoot
    origin: str = ORIGIN
    facts: list[list[Fact]] = field(default_factory=list)

    def verify(self, *, pinned: bool = True, payloads: bool = True, erased: object = (), **how: Any) -> Verdict:
        return verify(
            self.root,
            iter(self.rows),
            iter(self.seals),
            expected_origin=self.origin,
            pinned=pinned,
            payloads=payloads,
            erased=erased,  # type: ignore[arg-type]
            **how,
        )

    def edit(self, seq: int, **columns: object) -> None:
        """Change columns of the row at position ``seq``."""
        self.rows[seq] = self.rows[seq]._replace(**columns)  # type: ignore[arg-type]

    def rewrite(self, seq: int, old: bytes, new: bytes, *, rehash: bool = True) -> None:
        """Change an entry's bytes, and its hash column to match."""
        changed = self.rows[seq].entry.replace(old, new, 1)
        assert changed != self.rows[seq].entry
        self.edit(seq, entry=changed)
        if rehash:
            self.edit(seq, hash=entries.leaf_hash(changed))


Signer = Callable[[int], Ed25519PrivateKey]


def write(
    facts: list[list[Fact]],
    *,
    origin: str = ORIGIN,
    signer: Signer = lambda _batch: signing_key(1),
    seal_members: Callable[[int, dict[str, object]], dict[str, object]] = lambda _batch, members: members,
) -> tuple[list[Row], list[SealRow]]:
    """Chain and seal batches of facts with the real keys, whatever the facts say."""
    rows: list[Row] = []
    sealed: list[SealRow] = []
    prev, prev_seal = entries.genesis_prev(origin), seals.NO_PREVIOUS
    for batch, batch_facts in enumerate(facts):
        first = len(rows)
        fresh: list[Row] = []
        for one in batch_facts:
            seq = first + len(fresh)
            members: dict[str, object] = {"log": origin, "seq": seq, "prev": prev, **one.members}
            data = entries.encode_entry(**members)  # type: ignore[arg-type]
            read = entries.parse_entry(data)
            digest = entries.leaf_hash(data)
            fresh.append(
                Row(
                    seq,
                    batch,
                    data,
                    digest,
                    read.prev,
                    "",
                    read.id,
                    read.ts,
                    read.type,
                    read.tenant,
                    read.node,
                    read.artifact,
                    read.manifest_signature_id,
                    one.salt,
                    one.payload,
                )
            )
            prev = digest
        key = signer(batch)
        lines: dict[str, object] = {
            "log": origin,
            "batch": batch,
            "first": first,
            "last": first + len(fresh) - 1,
            "head": prev,
            "prev_seal": prev_seal,
            "time": fresh[-1].ts,
            "key": seals.key_id(public_der(key)),
            "alg": "ed25519",
        }
        text = seals.seal_text(**seal_members(batch, lines))  # type: ignore[arg-type]
        signature = seals.encode_signature(key.sign(text))
        rows += [row._replace(signature=signature) for row in fresh]
        sealed.append(SealRow(batch, text, signature))
        prev_seal = seals.seal_hash(text)
    return rows, sealed


def facts_for(batches: int = 22, size: int = 10) -> list[list[Fact]]:
    chance = random.Random(7)
    return [
        [fact(batch * size + n, chance, START + dt.timedelta(seconds=batch)) for n in range(size)]
        for batch in range(batches)
    ]


def root_for(*keys: trust_roots.TrustedKey, origin: str = ORIGIN) -> trust_roots.TrustRoot:
    trusted = keys or (trust_roots.trusted_key("ed25519", public_der(signing_key(1))),)
    return trust_roots.load(trust_roots.dump(origin, trusted))


_FACTS = facts_for()
_ROWS, _SEALS = write(_FACTS)
_ROOT = root_for()


@pytest.fixture
def log() -> Log:
    """220 entries in 22 batches of ten, consistent; each test has its own copy."""
    return Log(list(_ROWS), list(_SEALS), _ROOT, facts=[[replace(one) for one in batch] for batch in _FACTS])


@pytest.fixture
def rebuilt() -> Callable[..., Log]:
    """A log written anew with real keys: ``rebuilt(facts, root=..., signer=..., ...)``."""

    def build(facts: list[list[Fact]], root: trust_roots.TrustRoot = _ROOT, **how: object) -> Log:
        rows, sealed = write(facts, **how)  # type: ignore[arg-type]
        return Log(rows, sealed, root, facts=facts)

    return build
