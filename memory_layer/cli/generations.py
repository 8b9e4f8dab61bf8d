"""`memoryctl vectors reembed / compare / cutover / rollback / retire / generations`: another model for a namespace.

Plain functions: ``cli/vectors.py`` has the App that they are commands of.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from memory_layer import config
from memory_layer.cli import command, render
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.options import AsJson, Data, OneNamespace, OneTenant, Tenant
from memory_layer.errors import UsageError

LeaveBehind = Annotated[
    bool, Parameter(help="Go on without the nodes that have no text, which only their caller can give a vector.")
]


async def reembed(
    *,
    tenant: OneTenant = "default",
    namespace: OneNamespace = None,
    model: Annotated[str | None, Parameter(help="The new model; default EMBEDDINGS_NEXT_MODEL.")] = None,
    dimension: Annotated[int | None, Parameter(help="Its dimension; default that of the settings.")] = None,
    wait: Annotated[bool, Parameter(negative="--no-wait", help="Wait until the worker has embedded it all.")] = True,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Embed a namespace by another model, into a second generation of its index. Searches go on as they were, and see none of it.

    First set EMBEDDINGS_NEXT_PROVIDER, _MODEL and _DIMENSIONS for every server and worker, and for this command. From the start on
    every write goes to both generations. Cut off, it goes on when it is run again, and the worker goes on by itself.

    For example:

      memoryctl vectors reembed --namespace kernel-memory --model text-embedding-3-small --dimension 1536
    """
    from memory_layer.ops import generations as ops

    asked = {"model": model, "dimension": dimension, "wait": wait}
    return await _run("vectors-reembed", ops.reembed, tenant, namespace, asked, data, as_json)


async def compare(
    *,
    tenant: OneTenant = "default",
    namespace: OneNamespace = None,
    queries: Annotated[Path | None, Parameter(help="A file with a query a line; default stored texts.")] = None,
    sample: Annotated[int, Parameter(help="How many stored texts are asked for.")] = 200,
    k: Annotated[int, Parameter(name="-k", help="How many hits of each are compared.")] = 10,
    least: Annotated[
        float, Parameter(help="Share of the old model's hits that the new one must have, from 0 to 1.")
    ] = 0.5,
    seed: Annotated[int, Parameter(help="Another seed samples other texts.")] = 0,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Ask both generations the same, and report how far the new model finds what the old one does. Exit 1 when it is not enough.

    Also reported: whether the new one has every node (counts and digests), and whether texts find themselves.

    For example:

      memoryctl vectors compare --queries questions.txt --least 0.7
    """
    from memory_layer.ops import generations as ops

    if not (1 <= sample <= 100_000 and 1 <= k <= 1000 and 0 <= least <= 1):
        raise UsageError("--sample takes 1 to 100000, -k 1 to 1000, --least 0 to 1.")
    asked = None
    if queries is not None:
        try:
            asked = [line.strip() for line in queries.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{queries} cannot be read as text: {error}.") from error

    chosen = {"count": sample, "k": k, "least": least, "seed": seed}
    work = partial(ops.compare, queries=asked)
    shown = {"queries": None if asked is None else len(asked)}
    return await _run("vectors-compare", work, tenant, namespace, chosen, data, as_json, shown)


async def cutover(
    *,
    tenant: OneTenant = "default",
    namespace: OneNamespace = None,
    within: Annotated[float, Parameter(help="Seconds to look for a moment in which nothing is missing.")] = 60.0,
    leave_behind: LeaveBehind = False,
    force: Annotated[bool, Parameter(help="Cut over whatever is missing.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Let the new generation answer, in every process from its next search on. Refused (exit 4) while it lacks a node.

    The old one is kept and written, for `memoryctl vectors rollback`. Searches that have begun end on the generation they began with.

    For example:

      memoryctl vectors cutover --namespace kernel-memory
    """
    from memory_layer.ops import generations as ops

    if within < 0:
        raise UsageError("--within is a number of seconds from 0.")

    asked = {"within": within, "leave_behind": leave_behind, "force": force}
    return await _run("vectors-cutover", ops.cutover, tenant, namespace, asked, data, as_json)


async def rollback(
    *, tenant: OneTenant = "default", namespace: OneNamespace = None, data: Data = None, as_json: AsJson = False
) -> int:
    """Let the generation from before the cut-over answer again. The other one stays, and can be cut over to once more.

    For example:

      memoryctl vectors rollback --namespace kernel-memory
    """
    from memory_layer.ops import generations as ops

    asked = {"within": ops.ROLLBACK_TIMEOUT}
    return await _run("vectors-rollback", ops.rollback, tenant, namespace, asked, data, as_json)


async def retire(
    *,
    tenant: OneTenant = "default",
    namespace: OneNamespace = None,
    abandon: Annotated[bool, Parameter(help="Also one that is being built and never answered.")] = False,
    leave_behind: LeaveBehind = False,
    timeout: Annotated[float, Parameter(help="Seconds without progress until waiting for a worker ends.")] = 60.0,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """End the generation that does not answer: it is written no more, and its index is dropped. There is no way back after that.

    Rows that a worker has in hand are waited for. Exit 3 when it does not get on with them; the next run goes on from there.

    For example:

      memoryctl vectors retire --namespace kernel-memory
    """
    from memory_layer.ops import generations as ops

    asked = {"abandon": abandon, "leave_behind": leave_behind}
    work = partial(ops.retire, within=timeout)
    return await _run("vectors-retire", work, tenant, namespace, asked, data, as_json)


async def generations(
    *,
    tenant: Tenant = None,
    all_: Annotated[bool, Parameter(name="--all", help="Also namespaces with one generation.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """List the namespaces with two generations: which answers, which is beside it, and how many nodes it lacks.

    For example:

      memoryctl vectors generations --all
    """
    from memory_layer.ops.generations import listing

    with database_of(data_folder(data)) as dsn:
        found = await listing(dsn, tenant, pairs=not all_)
    if as_json:
        render.data(found)
        return 0
    rows = []
    for space in found:
        active, standby, covered = space["active"], space["beside"] or {}, space["coverage"]
        answers = f"{active['indexNamespace']} ({active['model']}, {active['dimension']})"
        other = f"{standby['indexNamespace']} ({standby['model']}, {standby['dimension']})" if standby else ""
        counts = (
            (covered["active"], covered["beside"], covered["behind"], covered["given"])
            if standby
            else (covered["active"],)
        )
        rows.append(
            (
                space["tenant"],
                space["namespace"],
                answers,
                other,
                standby.get("state", ""),
                *counts,
                *[""] * (4 - len(counts)),
            )
        )
    render.table(
        ("tenant", "namespace", "answers", "beside", "state", "indexed", "beside it", "behind", "no text"), rows
    )
    return 0


async def _run(
    verb: str,
    work: Callable[..., Awaitable[None]],
    tenant: str,
    namespace: str | None,
    asked: dict[str, Any],
    data: Path | None,
    as_json: bool,
    shown: dict[str, Any] | None = None,
) -> int:
    """``asked``: what ``work`` is given, and with ``shown`` what the record says of it."""
    from memory_layer.ops.generations import Target

    target = Target(tenant, namespace or config.load().vector_db_namespace)
    record = {"leaveBehind" if name == "leave_behind" else name: value for name, value in asked.items()}
    arguments = target.arguments | (shown or {}) | record
    bound = partial(work, target=target, **asked)
    return await command.run(verb, arguments, bound, data=data, as_json=as_json, lock=target.lock)
