"""`memoryctl search`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
    before: Annotated[int, Parameter(help="Neighbours before each hit in its thread, up to 10.")] = 0,
    after: Annotated[int, Parameter(help="Neighbours after it.")] = 0,
    explain: Annotated[bool, Parameter(negative="", help="Why each was found.")] = False,
    recency: Annotated[
        float | None, Parameter(help="Put recent nodes first: the age in days that halves what one gets for it.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Find nodes by meaning and by words.

    Neighbours stand beside their hit in the order of the thread, without a score.

    For example:

      memoryctl search "what pets does Caroline have"
      memoryctl search deadline --mode keyword --top-k 3
      memoryctl search "when does the ferry leave" --top-k 1 --before 2 --after 2
      memoryctl search "when does the ferry leave" --explain
      memoryctl search "what did we decide" --recency 7
      memoryctl search trip --filter '{"metadata.conversation": "26"}' --json
    """
    condition = connection.json_object(where, "--filter")
    with connection.client() as memory:
        found = memory.search(
            text,
            top_k=top_k,
            filter=condition,
            namespace=namespace,
            score_threshold=score_threshold,
            mode=mode,
            before=before,
            after=after,
            explain=explain,
            recency=None if recency is None else {"halfLifeDays": recency},
        )
    if as_json:
        render.data(found)
        return 0
    rows = [row for hit in found["results"] for row in _rows(hit)]
    if rows:
        columns = ("score", "id", "text", "source", *(("why",) if explain else ()))
        render.table(columns, [row[: len(columns)] for row in rows], wide="text")
    else:
        render.say("nothing found.")
    if not found.get("queryReadable", True):
        render.say("The embedding model cannot read this query: it finds by words alone.")
    if found.get("degraded"):
        render.say("The vector store does not answer: these results come from keywords alone.")
    if pending := found.get("pending"):
        render.say(f"{pending} texts written lately are found by their words only: their vectors are being made.")
    return 0


def _rows(hit: dict[str, Any]) -> list[tuple[object, ...]]:
    """A hit between its neighbours."""
    context = hit.get("context") or {"before": [], "after": []}
    shown = [*context["before"], hit, *context["after"]]
    return [
        (
            one.get("score", ""),
            one.get("memoryNodeId"),
            render.snippet(str(one.get("content") or "")),
            render.source(one.get("metadata")),
            _why(one),
        )
        for one in shown
    ]


def _why(hit: dict[str, Any]) -> str:
    """What a hit was found by, with what each part is or added."""
    found, scores = hit.get("explain"), hit.get("scores", {})
    if found is None:
        return ""
    parts = [] if found["cosine"] is None else [f"cosine {found['cosine']:.2f}"]
    if found["words"]:
        parts.append("words " + ", ".join(f"{one['word']} {one['weight']:.2f}" for one in found["words"]))
    if found["neighbour"] is not None:
        parts.append(f"neighbour {found['neighbour']['memoryNodeId']} +{found['neighbour']['gave']:.2f}")
    parts += [f"{part} +{scores[part]:.2f}" for part in ("thread", "date", "recency") if part in scores]
    return "; ".join(parts)
