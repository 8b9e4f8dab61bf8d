"""`memoryctl artifacts`: bytes in and out; what operators do with them is in ``artifact_checks.py``."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from memory_layer.cli import artifact_checks, connection, render
from memory_layer.cli.options import AsJson
from memory_layer.errors import UsageError

artifacts = App(name="artifacts", help="Store and fetch files.")

RetainUntil = Annotated[str | None, Parameter(help="Lock the bytes until then, such as 2031-01-01T00:00:00Z.")]


@artifacts.command
def put(
    path: Annotated[Path, Parameter(help="File to store; - reads standard input.", allow_leading_hyphen=True)],
    /,
    *,
    node: Annotated[str | None, Parameter(help="Id of the node to attach it to.")] = None,
    name: Annotated[str | None, Parameter(help="Stored name. Default: the file's own.")] = None,
    content_type: Annotated[str | None, Parameter(help="Media type. Default: guessed from the name.")] = None,
    retain_until: RetainUntil = None,
    as_json: AsJson = False,
) -> None:
    """Store a file; prints its artifact id.

    For example:

      memoryctl artifacts put report.pdf --node 019a7f3e-...
      pg_dump app | memoryctl artifacts put - --name app.sql
    """
    if str(path) != "-" and not path.is_file():
        raise UsageError(f"{path} is no file that can be read.")
    with connection.client() as memory:
        file = sys.stdin.buffer if str(path) == "-" else path
        label = name or ("stdin" if str(path) == "-" else None)
        stored = memory.upload(file, node=node, name=label, content_type=content_type, retain_until=retain_until)
    _stored(stored, as_json)


@artifacts.command
def register(
    url: Annotated[str, Parameter(help="Where it lies, such as s3://bucket/tenant/key?versionId=...")],
    /,
    *,
    sha256: Annotated[str, Parameter(help="Its SHA-256, 64 lower-case hex digits.")],
    size: Annotated[int, Parameter(help="Its bytes.")],
    node: Annotated[str | None, Parameter(help="Id of the node to attach it to.")] = None,
    name: Annotated[str | None, Parameter(help="Stored name.")] = None,
    content_type: Annotated[str | None, Parameter(help="Media type.")] = None,
    manifest_signature_id: Annotated[str | None, Parameter(help="The signed manifest that it came with.")] = None,
    retain_until: RetainUntil = None,
    as_json: AsJson = False,
) -> None:
    """Register an object that lies in the object store already, below your tenant's prefix; prints its artifact id.

    The server reads it to its end and compares the SHA-256 first; its version is pinned.

    For example:

      memoryctl artifacts register s3://illuvrse-memory-prod/default/models/a.bin --sha256 9f86d0... --size 1048576
    """
    with connection.client() as memory:
        stored = memory.register(
            url,
            sha256=sha256,
            size=size,
            node=node,
            name=name,
            content_type=content_type,
            manifest_signature_id=manifest_signature_id,
            retain_until=retain_until,
        )
    _stored(stored, as_json)


@artifacts.command
def retain(artifact_id: str, until: str, /, *, as_json: AsJson = False) -> None:
    """Keep an artifact longer: nobody can delete its bytes before. That is never shortened.

    For example:

      memoryctl artifacts retain 019a7f3e-... 2033-01-01T00:00:00Z
    """
    with connection.client() as memory:
        kept = memory.retain(artifact_id, until)
    if as_json:
        render.data(kept)
    else:
        render.line(f"{kept['artifactId']} is kept until {kept['retainUntil']}")


def _stored(stored: dict[str, Any], as_json: bool) -> None:
    if as_json:
        render.data(stored)
    else:
        render.line(str(stored["artifactId"]))
        render.say(f"{stored['sizeBytes']:,} bytes, SHA-256 {stored['sha256']}")


@artifacts.command
def get(
    artifact_id: str,
    /,
    *,
    output: Annotated[
        Path | None,
        Parameter(
            alias="-o", help="File or folder to write to; - writes to standard output.", allow_leading_hyphen=True
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show an artifact, or with --output fetch its bytes and check their SHA-256.

    For example:

      memoryctl artifacts get 019a7f3e-...
      memoryctl artifacts get 019a7f3e-... --output report.pdf
    """
    with connection.client() as memory:
        if output is None:
            about = memory.artifact(artifact_id)
        elif str(output) == "-":
            if as_json:
                raise UsageError("--json and --output - would both write to standard output; choose one.")
            memory.download(artifact_id, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        else:
            about = memory.download(artifact_id, output)
    if as_json:
        render.data(about)
    elif output is None:
        render.pairs(list(about.items()))
    else:
        render.line(about["path"])
        render.say(f"{about['sizeBytes']:,} bytes, SHA-256 {about['sha256']} as announced")


@artifacts.command(name="list")
def list_artifacts(
    *,
    node: Annotated[str | None, Parameter(help="Id of a node: its artifacts alone.")] = None,
    limit: Annotated[int, Parameter(help="How many at most; 0 for all.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List artifacts, newest first.

    For example:

      memoryctl artifacts list --node 019a7f3e-...
      memoryctl artifacts list --limit 0 --json | jq -r '.items[].artifactId'
    """
    if limit < 0:
        raise UsageError("--limit is 0 (all) or more.")
    with connection.client() as memory:
        pages = memory.artifacts(node, page_size=min(limit, 100) or 100)
        found = list(itertools.islice(pages, limit or None))
    if as_json:
        render.data({"items": found})
        return
    rows = [
        (one["artifactId"], one["name"], one["sizeBytes"], one["memoryNodeId"], one["createdAt"], _kept(one))
        for one in found
    ]
    render.table(("id", "name", "bytes", "node", "created", "kept"), rows, wide="name")
    if limit and len(found) == limit:
        render.say(f"the first {limit}; --limit 0 lists all.")


def _kept(artifact: dict[str, Any]) -> str:
    if artifact["legalHold"]:
        return "held"
    return "" if artifact["retainUntil"] is None else f"until {artifact['retainUntil']}"


@artifacts.command
def delete(
    artifact_id: str,
    /,
    *,
    yes: Annotated[bool, Parameter(alias="-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> int:
    """Delete an artifact. Refused under legal hold (exit 4), and while it is locked (exit 1). Asks first on a terminal.

    Its bytes leave the object store in the night, or with `memoryctl artifacts sweep`, once nothing names them.

    For example:

      memoryctl artifacts delete 019a7f3e-... --yes
    """
    if not render.confirm(f"Delete artifact {artifact_id}?", yes=yes):
        render.say("nothing was deleted.")
        return 1
    with connection.client() as memory:
        done = memory.delete_artifact(artifact_id)
    if as_json:
        render.data({"artifactId": artifact_id, **done})
    else:
        render.say(f"{artifact_id} deleted: entry {done['auditSeq']} of the audit log.")
    return 0


for _command in (artifact_checks.verify, artifact_checks.scan, artifact_checks.sweep, artifact_checks.manifest):
    artifacts.command(_command)
