"""`memoryctl search`."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from memory_layer.cli import connection, render
from memory_layer.cli.options import AsJson


def search(
    text: Annotated[str, Parameter(help="What to look for.", allow_leading_hyphen=True)],
    /,
    *,
    top_k: Annotated[int, Parameter(help="How many results.")] = 10,
    where: Annotated[str | None, Parameter(name="--filter", help="Filter as JSON.")] = None,
    mode: Annotated[
        Literal["semantic", "keyword", "hybrid"] | None, Parameter(help="Default: hybrid.", show_choices=True)
    ] = None,
    namespace: Annotated[str | None, Parameter(help="Namespace to search in.")] = None,
    score_threshold: Annotated[float | None, Parameter(help="Least semantic score, -1 to 1.")] = None,
    as_json: AsJson = False,
) -> int:
    """Find nodes by meaning and by words.

    For example:

      memoryctl search "what pets does Caroline have"
      memoryctl search deadline --mode keyword --top-k 3
      memoryctl search trip --filter '{"metadata.conversation": "26"}' --json
    """
    condition = connection.json_object(where, "--filter")
    with connection.client() as memory:
        found = memory.search(
            text, top_k=top_k, filter=condition, namespace=namespace, score_threshold=score_threshold, mode=mode
        )
    if as_json:
        render.data(found)
        return 0
    rows = [
        (
            hit.get("score"),
            hit.get("memoryNodeId"),
            render.snippet(str(hit.get("content") or "")),
            render.source(hit.get("metadata")),
        )
        for hit in found["results"]
    ]
    if rows:
        render.table(("score", "id", "text", "source"), rows, wide="text")
    else:
        render.say("nothing found.")
    if not found.get("queryReadable", True):
        render.say("The embedding model cannot read this query: it finds by words alone.")
    if found.get("degraded"):
        render.say("The vector store does not answer: these results come from keywords alone.")
    if pending := found.get("pending"):
        render.say(f"{pending} texts written lately are found by their words only: their vectors are being made.")
    return 0
