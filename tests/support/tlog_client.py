"""A client of C2SP transparency logs, written from the specifications alone: c2sp.org/signed-note, /tlog-checkpoint, /tlog-tiles and
RFC 6962. It shares no code with the product, and takes from it a verifier key and an address."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Any

import httpx2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Refused(Exception):
    """What the log served does not verify."""


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _root(hashes: list[bytes]) -> bytes:
    """MTH over hashes of subtrees of one size, RFC 6962 section 2.1."""
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return _node(_root(hashes[:split]), _root(hashes[split:]))


@dataclass
class TlogClient:
    """``prefix``: what stands before ``checkpoint`` and ``tile/``. ``vkey``: the log's, name+hash+key."""

    prefix: str
    vkey: str
    http: Any = field(default_factory=lambda: httpx2.Client(timeout=30))

    def _get(self, path: str) -> bytes:
        answer = self.http.get(f"{self.prefix}/{path}")
        if answer.status_code != 200:
            raise Refused(f"{path}: {answer.status_code}")
        return bytes(answer.content)

    def checkpoint(self) -> tuple[int, bytes]:
        """Size and root of the newest checkpoint, its signature verified."""
        name, stated, key = self.vkey.split("+", 2)
        raw = base64.b64decode(key, validate=True)
        key_id = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
        if raw[0] != 1 or key_id.hex() != stated:
            raise Refused("the verifier key")
        note = self._get("checkpoint").decode()
        text, _, signatures = note.partition("\n\n")
        origin, size, root = text.split("\n")
        if origin != name:
            raise Refused("another log")
        for line in signatures.splitlines():
            dash, signer, data = line.split(" ")
            signature = base64.b64decode(data, validate=True)
            if (dash, signer, signature[:4]) == ("\u2014", name, key_id):
                try:
                    Ed25519PublicKey.from_public_bytes(raw[1:]).verify(signature[4:], (text + "\n").encode())
                except InvalidSignature:
                    raise Refused("the signature") from None
                return int(size), base64.b64decode(root, validate=True)
        raise Refused("no signature by the log's key")

    def tile(self, level: int, index: int, size: int) -> list[bytes]:
        """The hashes of a tile in the tree of ``size``, partial or full."""
        width = min(256, (size >> (8 * level)) - 256 * index)
        digits = f"{index:03d}"
        while len(digits) % 3:
            digits = "0" + digits
        parts = [digits[place : place + 3] for place in range(0, len(digits), 3)]
        number = "/".join([*("x" + part for part in parts[:-1]), parts[-1]])
        data = self._get(f"tile/{level}/{number}" + ("" if width == 256 else f".p/{width}"))
        if len(data) != 32 * width:
            raise Refused("a tile of another length")
        return [data[place : place + 32] for place in range(0, len(data), 32)]

    def leaves(self, size: int, root: bytes) -> list[bytes]:
        """Every leaf hash of the tree, once each level of tiles is what the one below hashes to, and all lead to ``root``."""
        hashes: list[bytes] = []
        for index in range(-(-size // 256)):
            hashes += self.tile(0, index, size)
        if _root(hashes) != root:
            raise Refused("the root")
        below, level = hashes, 1
        while size >> (8 * level):
            row: list[bytes] = []
            for index in range(-(-(size >> (8 * level)) // 256)):
                row += self.tile(level, index, size)
            if row != [_root(below[place : place + 256]) for place in range(0, len(row) * 256, 256)]:
                raise Refused(f"level {level}")
            below, level = row, level + 1
        return hashes

    def consistency(self, first: int, first_root: bytes, second: int, second_root: bytes) -> None:
        """RFC 9162, section 2.1.4.2, with the proof that the log serves."""
        answer = self.http.get(f"{self.prefix}/consistency", params={"from": first, "to": second})
        path = [base64.b64decode(value, validate=True) for value in answer.json()["hashes"]]
        if first == second:
            if path or first_root != second_root:
                raise Refused("consistency")
            return
        if first & (first - 1) == 0:
            path = [first_root, *path]
        fn, sn = first - 1, second - 1
        while fn & 1:
            fn, sn = fn >> 1, sn >> 1
        fr = sr = path[0]
        for value in path[1:]:
            if sn == 0:
                raise Refused("consistency")
            if fn & 1 or fn == sn:
                fr, sr = _node(value, fr), _node(value, sr)
                while fn and not fn & 1:
                    fn, sn = fn >> 1, sn >> 1
            else:
                sr = _node(sr, value)
            fn, sn = fn >> 1, sn >> 1
        if (fr, sr, sn) != (first_root, second_root, 0):
            raise Refused("consistency")
