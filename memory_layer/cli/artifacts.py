"""`memoryctl artifacts`: bytes in and out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from memory_layer.cli import connection, render
from memory_layer.errors import UsageError

artifacts = App(name="artifacts", help="Store and fetch files.")

AsJson = Annotated[bool, Parameter(name="--json", help="Print the API's answer.")]


@artifacts.command
def put(
    path: Annotated[Path, Parameter(help="File to store; - reads standard input.", allow_leading_hyphen=True)],
    /,
    *,
    node: Annotated[str | None, Parameter(help="Id of the node to attach it to.")] = None,
    name: Annotated[str | None, Parameter(help="Stored name. Default: the file's own.")] = None,
    content_type: Annotated[str | None, Parameter(help="Media type. Default: guessed from the name.")] = None,
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
        stored = memory.upload(file, node=node, name=label, content_type=content_type)
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
