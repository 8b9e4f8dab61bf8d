"""The manifest of an evidence bundle, and its signature. Format: ``docs/audit-format.md``, "Evidence bundle"."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from memory_layer import canonical
from memory_layer.audit.form import Form
from memory_layer.audit.seal import decode_signature
from memory_layer.audit.seal_chain import Base
from memory_layer.audit.signed import Problem, judge
from memory_layer.audit.tree import Frontier
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import Finding
from memory_layer.errors import MemoryLayerError, ValidationError

FORMAT: Final = "memory-layer/evidence-bundle/v1"
SIGNED: Final = "memory-layer/audit-manifest/v1"  # the first line of what is signed of a bundle or segment
ENTRIES, PAYLOADS, SEALS, CHECKPOINTS = "entries.ndjson.gz", "payloads.ndjson.gz", "seals.ndjson", "checkpoints.ndjson"
TRUST_ROOT, FORMAT_PAGE, README = "trust-root.json", "audit-format.md", "README.txt"
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
FILES: Final = (ENTRIES, PAYLOADS, SEALS, CHECKPOINTS, TRUST_ROOT, FORMAT_PAGE, README)
MAX_MANIFEST: Final = 65_536

_FORM: Final = Form("the manifest of a bundle")
wrong: Final = _FORM.wrong


class Head(NamedTuple):
    """The end of a range: its last entry and its hash, the last batch and the hash of its seal."""

    seq: int
    hash: str
    batch: int
    seal: str


class File(NamedTuple):
    """What a manifest says of a file; ``expanded`` is the length of what a gzip file holds, in bytes."""

    bytes: int
    sha256: str
    expanded: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``manifest.json``. ``payloads``: "all", "none", or "tenant" for those of ``tenant`` alone.

    The payloads of entries about keys are there in any case. ``previous`` is the SHA-256 of the manifest of the range before.
    """

    origin: str
    base: Base
    head: Head | None
    payloads: str
    tenant: str | None
    counts: dict[str, int]
    files: dict[str, File]
    previous: str | None
    time: str
    tool: str


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``: RFC 8785. Raises ValidationError like ``load_manifest``."""
    base, head = manifest.base, manifest.head
    files = {name: {k: v for k, v in file._asdict().items() if v is not None} for name, file in manifest.files.items()}
    document = {
        "format": FORMAT,
        "origin": manifest.origin,
        "base": base._asdict() | {"tree": base64.b64encode(base.tree).decode("ascii"), "ts": base.ts or None},
        "head": None if head is None else head._asdict(),
        "payloads": manifest.payloads,
        "tenant": manifest.tenant,
        "counts": manifest.counts,
        "files": files,
        "previous": manifest.previous,
        "time": manifest.time,
        "tool": manifest.tool,
    }
    data = canonical.dumps(document)
    load_manifest(data)
    return data


def load_manifest(data: bytes) -> Manifest:
    """Read ``manifest.json``. Raises ValidationError unless it has exactly the one form."""
    try:
        document = canonical.loads(data)
        if canonical.dumps(document) != data:
            raise wrong("is not in its canonical form")
        names = "base counts files format head origin payloads previous tenant time tool"
        top = _FORM.members(document, names, "the manifest")
        if top["format"] != FORMAT:
            raise wrong(f"format is not {FORMAT}")
        files = _FORM.members(top["files"], " ".join(sorted(FILES)), "files")
        counts = _FORM.members(top["counts"], "checkpoints entries payloads seals", "counts")
        of_tenant = top["payloads"] == "tenant"
        if top["payloads"] not in ("all", "tenant", "none") or of_tenant != (top["tenant"] is not None):
            raise wrong("payloads is not all, none, or tenant with a tenant")
        return Manifest(
            origin=_FORM.text(top["origin"], "origin"),
            base=read_base(_FORM, top["base"]),
            head=None if top["head"] is None else read_head(_FORM, top["head"]),
            payloads=top["payloads"],
            tenant=None if top["tenant"] is None else _FORM.text(top["tenant"], "tenant"),
            counts={name: _FORM.integer(value, f"counts.{name}") for name, value in counts.items()},
            files={name: _file(name, value) for name, value in files.items()},
            previous=None if top["previous"] is None else _FORM.hash(top["previous"], "previous"),
            time=_FORM.time(top["time"], "time"),
            tool=_FORM.text(top["tool"], "tool"),
        )
    except ValidationError:
        raise
    except MemoryLayerError as error:
        raise wrong(error.message) from None


def check_manifest_signature(manifest: bytes, last: int, signature: bytes, root: TrustRoot) -> Finding | None:
    """What is wrong with ``manifest.sig`` of a bundle or segment whose last entry is ``last``, or None."""
    problem, parsed, key = judge(SIGNED, hashlib.sha256(manifest).hexdigest(), last, signature, root)
    if problem is None:
        return None
    expected, found = "a manifest's signature in its one form", repr(signature[:160])
    if parsed is None:
        return Finding("NONCANONICAL_ENCODING", expected, found, file=SIGNATURE)
    if problem in ("origin", "document"):
        expected, found = "a signature over this manifest", "over another"
    elif problem == "unknown key":
        expected, found = "a manifest key of the trust root", f"key {parsed.key_id}"
    elif problem == "purpose":
        purposes = ", ".join(other.purpose for other in root.keys if other.key_id == parsed.key_id)
        expected, found = "a key for manifests", f"key {parsed.key_id} for {purposes}"
    elif key is not None and problem == "algorithm":
        expected, found = key.algorithm, parsed.algorithm
    elif key is not None and problem == "too early":
        expected, found = f"entries from {key.from_seq}", f"up to {last}"
    elif key is not None and problem == "too late":
        expected, found = f"entries up to {key.to_seq}", f"up to {last}"
    else:
        expected, found = f"a signature of key {parsed.key_id} over the manifest", parsed.encoded[:160]
    return Finding(_CODES[problem], expected, found, file=SIGNATURE)


_CODES: Final[dict[Problem, str]] = {
    "form": "NONCANONICAL_ENCODING",
    "origin": "MANIFEST_SIGNATURE_INVALID",
    "document": "MANIFEST_SIGNATURE_INVALID",
    "unknown key": "KEY_UNKNOWN",
    "purpose": "KEY_NOT_AUTHORISED_FOR_EPOCH",
    "algorithm": "ALG_NOT_ALLOWED",
    "signature": "MANIFEST_SIGNATURE_INVALID",
    "too early": "KEY_NOT_AUTHORISED_FOR_EPOCH",
    "too late": "KEY_EPOCH_CLOSED",
}


# --- Members of the manifest -------------------------------------------------------------------------------------------


def read_base(form: Form, value: Any) -> Base:
    """The member ``base``. Raises ValidationError."""
    base = form.members(value, "batch prev prev_seal seq tree ts", "base")
    tree = decode_signature(form.text(base["tree"], "base.tree"))
    if tree is None or Frontier.loads(tree).size != base["seq"]:
        raise form.wrong("base.tree is not of base.seq entries")
    return Base(
        form.integer(base["seq"], "base.seq"),
        form.integer(base["batch"], "base.batch"),
        form.hash(base["prev"], "base.prev"),
        form.hash(base["prev_seal"], "base.prev_seal"),
        "" if base["ts"] is None else form.time(base["ts"], "base.ts"),
        tree,
    )


def read_head(form: Form, value: Any) -> Head:
    """The member ``head``. Raises ValidationError."""
    head = form.members(value, "batch hash seal seq", "head")
    return Head(
        form.integer(head["seq"], "head.seq"),
        form.hash(head["hash"], "head.hash"),
        form.integer(head["batch"], "head.batch"),
        form.hash(head["seal"], "head.seal"),
    )


def _file(name: str, value: Any) -> File:
    names = "bytes expanded sha256" if name.endswith(".gz") else "bytes sha256"
    facts = _FORM.members(value, names, f"files.{name}")
    expanded = _FORM.integer(facts["expanded"], f"files.{name}.expanded") if "expanded" in facts else None
    size, sha256 = (
        _FORM.integer(facts["bytes"], f"files.{name}.bytes"),
        _FORM.hash(facts["sha256"], f"files.{name}.sha256"),
    )
    return File(size, sha256, expanded)
