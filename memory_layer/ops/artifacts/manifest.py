"""Manifests of all artifacts: which id is which object. Written to the archive each night under its lock, signed, each naming the one
before; from one of them the table ``artifacts`` can be made anew.

A manifest is a folder of three objects, ``artifact-manifests/<time>-<id>/``: ``rows.ndjson.gz``, a line for each artifact in canonical
JSON by tenant and id; ``manifest.json``, which has its SHA-256; ``manifest.sig`` (``ops/manifests.py``). Lines hold no file names and no
metadata: those may be personal, and what is locked for years cannot be erased. They are in the payloads of the log, which can.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gzip
import hashlib
import io
import re
import tempfile
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import IO, Any, Final, Literal

import msgspec

from memory_layer import __version__, canonical
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.errors import ChecksumMismatch, DependencyUnavailable, NotFound, UsageError
from memory_layer.model import format_time, format_time_or_none, uuid7
from memory_layer.ops import manifests
from memory_layer.ops.artifacts.names import FORMAT, PREFIX
from memory_layer.ops.artifacts.places import SQL
from memory_layer.ops.manifests import MANIFEST, MAX_SIGNATURE, SIGNATURE, Count, Hex, Kind, ManifestKey, Position
from memory_layer.progress import Progress, no_progress
from memory_layer.service.installation import Installation
from memory_layer.stores.postgres import ALL_TENANTS, open_postgres
from memory_layer.stores.protocols import Lock, ObjectStore

ROWS: Final = "rows.ndjson.gz"
MAX_LINE: Final = 64 * 1024
PAGE: Final = 1000  # artifacts
_BLOCK: Final = 1024 * 1024
_MEMORY: Final = 16 * 2**20  # bytes of rows that are kept without a file
_KEY: Final = re.compile(rf"({PREFIX}/[0-9A-Za-z._-]+)/{re.escape(MANIFEST)}")


class NothingYet(DependencyUnavailable):
    """There is no entry in the audit log yet, and no manifest without one."""


class Rows(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The file of rows: where it lies, and what it must be. ``expanded``: its bytes without compression."""

    key: str
    version_id: str
    bytes: Count
    sha256: Hex
    expanded: Count


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The content of ``manifest.json``. ``log``: every artifact that was created up to that entry is in the manifest. ``bytes``: of all
    artifacts. ``previous``: SHA-256 of the manifest before."""

    format: Literal["memory-layer/artifact-manifest/v1"]
    origin: str
    log: Position
    created_at: str
    tool: str
    artifacts: Count
    bytes: Count
    rows: Rows
    previous: Hex | None


KIND: Final = Kind(FORMAT, Manifest, "manifest of artifacts", max_bytes=64 * 1024)


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A line of the rows."""

    tenant: str
    id: uuid.UUID
    node: uuid.UUID | None
    url: str
    key: str
    version: str
    sha256: Hex
    size: Count
    content_type: str
    manifest_signature_id: str | None
    created_by: uuid.UUID
    created_at: str
    retain_until: str | None
    verified_at: str | None
    storage_class: str


@dataclass(frozen=True, slots=True)
class Exported:
    """A manifest that was written. ``digest``: its SHA-256."""

    id: uuid.UUID
    key: str
    version_id: str
    digest: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Read:
    """A manifest whose signature holds. ``known``: the row of ``artifact_manifests``, None where Postgres knows of none."""

    key: str
    version_id: str
    digest: str
    signer: str | None
    manifest: Manifest
    known: dict[str, Any] | None


async def export(installation: Installation, key: ManifestKey | None, *, progress: Progress = no_progress) -> Exported:
    """Write a manifest of all artifacts, under the archive's lock. Raises DependencyUnavailable without a manifest key or a log."""
    if key is None:
        raise DependencyUnavailable(
            "There is no manifest key here (keys/manifest.pem, named by trust-root.json): give this process the data folder that has it."
        )
    (found,), (newest,) = (
        await installation.postgres.fetch(ALL_TENANTS, (SQL["log_position"], {"origin": installation.postgres.origin})),
        await installation.postgres.fetch(ALL_TENANTS, (SQL["manifests"], {"limit": 1})),
    )
    if not found or found[0]["seq"] is None:
        raise NothingYet
    place, now, manifest_id = found[0], dt.datetime.now(dt.UTC), uuid7()
    folder = f"{PREFIX}/{now:%Y%m%dT%H%M%SZ}-{manifest_id}"
    lock = Lock("COMPLIANCE", now + dt.timedelta(days=installation.settings.archive_lock_days))
    with tempfile.SpooledTemporaryFile(max_size=_MEMORY) as file:
        count, size, expanded = await _write_rows(installation, file, progress)
        stored = await installation.archive.put_named(f"{folder}/{ROWS}", _chunks(file), lock=lock)
    manifest = Manifest(
        format="memory-layer/artifact-manifest/v1",
        origin=place["origin"],
        log=Position(place["seq"], place["hash"]),
        created_at=format_time(now),
        tool=f"memory-layer {__version__}",
        artifacts=count,
        bytes=size,
        rows=Rows(stored.key, stored.version_id, stored.size, stored.sha256, expanded),
        previous=newest[0]["sha256"] if newest else None,
    )
    document = manifests.dump(manifest)
    signature = await manifests.sign(KIND, document, manifest.origin, key)
    await installation.archive.put_named(f"{folder}/{SIGNATURE}", _bytes(signature), lock=lock)
    written = await installation.archive.put_named(f"{folder}/{MANIFEST}", _bytes(document), lock=lock)
    row = {
        "id": manifest_id,
        "key": written.key,
        "version": written.version_id,
        "sha256": written.sha256,
        "artifacts": count,
        "signature": signature.decode("ascii"),
        "key_id": key.key_id,
        "previous": manifest.previous,
    }
    await installation.postgres.run(ALL_TENANTS, (SQL["durable"], {}), (SQL["put_manifest"], row))
    return Exported(manifest_id, written.key, written.version_id, written.sha256, manifest)


async def _write_rows(installation: Installation, file: IO[bytes], progress: Progress) -> tuple[int, int, int]:
    """(artifacts, their bytes, bytes of lines). One gzip member without a time, so that equal rows are equal bytes."""
    after: dict[str, Any] = {"after_tenant": "", "after_id": uuid.UUID(int=0)}
    (totals,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["totals"], after))
    count = size = expanded = 0
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
        while True:
            (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["page"], {**after, "limit": PAGE}))
            lines = b"".join(_line(row) for row in rows)
            await asyncio.to_thread(packed.write, lines)
            count, expanded = count + len(rows), expanded + len(lines)
            size += sum(row["size_bytes"] for row in rows)
            progress("writing artifacts", count, totals[0]["artifacts"])
            if len(rows) < PAGE:
                return count, size, expanded
            after = {"after_tenant": rows[-1]["tenant"], "after_id": rows[-1]["id"]}


def _line(row: dict[str, Any]) -> bytes:
    line = Line(
        tenant=row["tenant"],
        id=row["id"],
        node=row["memory_node_id"],
        url=row["url"],
        key=row["object_key"],
        version=row["version_id"],
        sha256=row["sha256"],
        size=row["size_bytes"],
        content_type=row["content_type"],
        manifest_signature_id=row["manifest_signature_id"],
        created_by=row["created_by"],
        created_at=format_time(row["created_at"]),
        retain_until=format_time_or_none(row["retain_until"]),
        verified_at=format_time_or_none(row["verified_at"]),
        storage_class=row["storage_class"],
    )
    return canonical.dumps(msgspec.to_builtins(line)) + b"\n"


async def read(installation: Installation, which: str | None, root: TrustRoot | None) -> Read:
    """A manifest by its id or key, the newest without either; by the version that Postgres knows, where it knows one.

    Raises NotFound, and ChecksumMismatch where it is not what was written, signed by a key that the trust root names.
    """
    known = await _row(installation, which)
    if known is not None:
        key, version = known["object_key"], known["version_id"]
    else:
        key, version = await _in_archive(installation.archive, which)
    match = _KEY.fullmatch(key)
    if match is None:
        raise UsageError(f"{key} is no manifest of artifacts: its key would be {PREFIX}/.../{MANIFEST}.")
    document = await _whole(installation.archive, key, version, KIND.max_bytes)
    digest = hashlib.sha256(document).hexdigest()
    if known is not None and digest != known["sha256"]:
        raise ChecksumMismatch(
            f"{key} was changed: its SHA-256 is {digest}, and Postgres knows it by {known['sha256']}."
        )
    sig = f"{match[1]}/{SIGNATURE}"
    signature = await _whole(installation.archive, sig, (await _stat(installation.archive, sig)), MAX_SIGNATURE)
    found = manifests.read(KIND, document, signature, root, place=key)
    if found.manifest.rows.key != f"{match[1]}/{ROWS}":
        raise ChecksumMismatch(f"{key} names rows elsewhere: {found.manifest.rows.key}.")
    return Read(key, version, digest, found.key, found.manifest, known)


async def listed(dsn: str, limit: int) -> list[dict[str, Any]]:
    """The rows of ``artifact_manifests``, newest first."""
    postgres = await open_postgres(dsn, size=1)
    try:
        (rows,) = await postgres.fetch(ALL_TENANTS, (SQL["manifests"], {"limit": limit}))
    finally:
        await postgres.close()
    return rows


async def _row(installation: Installation, which: str | None) -> dict[str, Any] | None:
    if which is None:
        (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["manifests"], {"limit": 1}))
        return rows[0] if rows else None
    with contextlib.suppress(ValueError):
        (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["manifest"], {"id": uuid.UUID(which)}))
        if not rows:
            raise NotFound(f"Postgres knows no manifest {which}. `memoryctl artifacts manifest list` shows them.")
        return rows[0]
    return None


async def _in_archive(archive: ObjectStore, which: str | None) -> tuple[str, str]:
    """(key, version) where Postgres does not know: its newest version, or that of the newest manifest."""
    if which is not None:
        return which, await _stat(archive, which)
    newest, cursor = None, None
    while True:
        page = await archive.versions(f"{PREFIX}/", cursor)
        for version in page.versions:
            if not version.marker and version.latest and _KEY.fullmatch(version.key):
                newest = version
        if (cursor := page.cursor) is None:
            break
    if newest is None:
        raise NotFound("There is no manifest of artifacts in the archive.")
    return newest.key, newest.version_id


async def _stat(archive: ObjectStore, key: str) -> str:
    return (await archive.stat(key)).version_id


async def lines(archive: ObjectStore, manifest: Manifest) -> AsyncGenerator[list[Line], None]:
    """The rows, some at a time. The file is read whole and hashed before the first is given. Raises ChecksumMismatch, NotFound."""
    rows = manifest.rows
    digest, size = hashlib.sha256(), 0
    with tempfile.SpooledTemporaryFile(max_size=_MEMORY) as file:
        async for block in archive.read(rows.key, rows.version_id):
            digest.update(block)
            size += len(block)
            if size > rows.bytes:
                break
            await asyncio.to_thread(file.write, block)
        if size != rows.bytes or digest.hexdigest() != rows.sha256:
            raise ChecksumMismatch(
                f"{rows.key} was changed: it has {size} bytes and SHA-256 {digest.hexdigest()}, and the manifest says {rows.bytes} and "
                f"{rows.sha256}."
            )
        file.seek(0)
        count = 0
        with gzip.GzipFile(fileobj=file, mode="rb") as packed:
            while piece := await asyncio.to_thread(_piece, packed, rows):
                count += len(piece)
                yield piece
        if count != manifest.artifacts:
            raise ChecksumMismatch(f"{rows.key} has {count} rows, and the manifest says {manifest.artifacts}.")


def _piece(packed: gzip.GzipFile, rows: Rows) -> list[Line]:
    """Some rows. The signature covers their bytes; only a defect of ours could make them differ from what we read."""
    found: list[Line] = []
    try:
        while len(found) < PAGE and (line := packed.readline(MAX_LINE)):
            found.append(msgspec.json.decode(line, type=Line))
        if packed.tell() > rows.expanded:
            raise ValueError("it expands to more than the manifest says")
    except (OSError, EOFError, ValueError, msgspec.MsgspecError) as error:
        raise ChecksumMismatch(f"{rows.key} cannot be read: {error}.") from None
    return found


async def _whole(store: ObjectStore, key: str, version: str, most: int) -> bytes:
    data = io.BytesIO()
    async for block in store.read(key, version, 0, most + 1):
        data.write(block)
    if data.tell() > most:
        raise ChecksumMismatch(f"{key} has more than {most} bytes.")
    return data.getvalue()


async def _bytes(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    file.seek(0)
    while block := await asyncio.to_thread(file.read, _BLOCK):
        yield block
