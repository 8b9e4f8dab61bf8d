"""The calls about artifacts: bytes in and out, objects that are there already, how long they are kept."""

from __future__ import annotations

import re
from urllib.parse import quote

from memory_layer.api import decode, schemas
from memory_layer.api.calls import Answer, Call, Touched, shown, touched_by, written
from memory_layer.errors import Problem, RangeNotSatisfiable, UnsupportedMediaType, ValidationError
from memory_layer.service import artifact_listing, artifacts, reading, registration

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_HEX = re.compile(r"[0-9a-f]{64}")
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]{1,255}")


async def upload_artifact(call: Call) -> Answer:
    headers = call.headers
    sha256 = headers.get("x-content-sha256")
    if sha256 is not None and _HEX.fullmatch(sha256) is None:
        raise ValidationError(
            "X-Content-SHA256 is not 64 lower-case hex digits.",
            details=[Problem("header.x-content-sha256", "not a SHA-256")],
        )
    content_type = headers.get("content-type") or "application/octet-stream"
    if _CONTENT_TYPE.fullmatch(content_type) is None:
        raise ValidationError(
            "Content-Type does not fit.", details=[Problem("header.content-type", "not printable ASCII")]
        )
    if content_type.strip().lower().startswith("multipart/"):
        raise UnsupportedMediaType(
            "An upload is the file itself, and a multipart body is the file in an envelope, which would be stored with it. Send the bytes "
            "alone, with the file's own Content-Type: curl -T FILE, or --data-binary @FILE in place of -F."
        )
    node = call.query.memory_node_id
    new = artifacts.Upload(
        node=None if node is None else decode.identifier(node, "query.memoryNodeId"),
        name=call.query.name,
        content_type=content_type,
        sha256=sha256,
        metadata={},
        retain_until=decode.timestamp(headers.get("x-retain-until"), "header.x-retain-until"),
    )
    assert call.stream is not None  # noqa: S101 - the operation says that it streams
    outcome = await artifacts.upload(call.installation, call.caller, new, call.stream, call.idempotency)
    return written(201, outcome)


async def register_artifact(call: Call) -> Answer:
    body: schemas.RegisterArtifactBody = call.body
    header = call.caller.manifest_signature_id
    if body.manifest_signature_id is not None and header is not None and header != body.manifest_signature_id:
        raise ValidationError(
            "manifestSignatureId and the header X-Manifest-Signature-Id name two manifests. Send one.",
            details=[Problem("manifestSignatureId", "not that of the header")],
        )
    new = registration.Registration(
        url=body.url,
        sha256=body.sha256,
        size_bytes=body.size_bytes,
        node=None if body.node is None else decode.identifier(body.node, "node"),
        name=body.name,
        content_type=body.content_type,
        manifest_signature_id=body.manifest_signature_id,
        retain_until=decode.timestamp(body.retain_until, "retainUntil"),
        metadata=body.metadata,
    )
    return written(201, await registration.register(call.installation, call.caller, new, call.idempotency))


async def extend_retention(call: Call) -> Answer:
    body: schemas.RetentionBody = call.body
    until = decode.timestamp(body.retain_until, "retainUntil")
    return written(200, await artifacts.extend(call.installation, call.caller, call.id(), until, call.idempotency))


async def list_artifacts(call: Call) -> Answer:
    query: schemas.ArtifactsQuery = call.query
    node = None if query.memory_node_id is None else decode.identifier(query.memory_node_id, "query.memoryNodeId")
    page = await artifact_listing.list_artifacts(call.installation, call.caller, node, query.cursor, query.limit)
    body = {"items": page.items, "nextCursor": page.cursor, "dropped": page.dropped}
    return Answer(200, body, touched=touched_by(page.items))


async def delete_artifact(call: Call) -> Answer:
    return written(204, await artifacts.delete(call.installation, call.caller, call.id(), call.idempotency))


async def get_artifact(call: Call) -> Answer:
    return shown(await artifacts.get(call.installation, call.caller, call.id()))


async def artifact_content(call: Call) -> Answer:
    artifact = await artifacts.find(call.installation, call.caller, call.id())
    node = () if artifact.memory_node_id is None else (str(artifact.memory_node_id),)
    touched = Touched(node, (str(artifact.id),))
    if call.query.link and (url := artifacts.link(call.installation, artifact)) is not None:
        return Answer(302, None, {"Location": url, "Cache-Control": "no-store"}, touched)
    start, stop, status = _byte_range(call.headers.get("range"), artifact.size_bytes)
    headers = {
        "Content-Type": artifact.content_type,
        "Accept-Ranges": "bytes",
        "Content-Length": str(stop - start),
        "ETag": f'"{artifact.sha256}"',
        "X-Content-SHA256": artifact.sha256,
        # Stored bytes are someone's input: a browser must neither guess a type nor run them.
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(artifact.name or artifact.sha256, safe='')}",
    }
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{artifact.size_bytes}"
    blocks = reading.content(call.installation, artifact, start, stop, ranged=status == 206)
    return Answer(status, blocks, headers, touched)


def _byte_range(header: str | None, size: int) -> tuple[int, int, int]:
    """(start, stop, status) of one byte range (RFC 9110, 14.1.2). Several ranges, or other units, are answered whole."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or (not match.group(1) and not match.group(2)):
        return 0, size, 200
    first, last = match.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return 0, size, 200
    else:
        start, stop = max(size - int(last), 0), size
    if start >= size or start >= stop:
        raise RangeNotSatisfiable(f"The artifact has {size} bytes.")
    return start, stop, 206
