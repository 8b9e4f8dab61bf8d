"""`memoryctl drill`: rehearse a disaster, and measure the way back."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from memory_layer import config
from memory_layer.cli import command
from memory_layer.cli.drill_archive import audit_restore
from memory_layer.cli.options import AsJson, Compared, Data, Here, Namespace, Tenant, Timeout, Yes
from memory_layer.errors import UsageError

drill = App(name="drill", help="Rehearse a disaster, and measure the way back.")
drill.command(audit_restore)


@drill.command(name="vector-desync")
async def vector_desync(
    *,
    inflict: Annotated[
        bool,
        Parameter(help="Break an index first: one of the drill's own, unless --live. Not where SERVICE_ENV is prod."),
    ] = False,
    live: Annotated[bool, Parameter(help="With --inflict: break the index of the namespaces in scope.")] = False,
    snapshot: Annotated[Path | None, Parameter(help="Bring vectors back from this snapshot before repairing.")] = None,
    probes: Annotated[int, Parameter(help="Queries that recall is probed with, in each namespace.")] = 50,
    freeze: Annotated[
        bool, Parameter(negative="", help="Freeze writes (503 FROZEN) from the first step to the last; not needed.")
    ] = False,
    compared: Compared = "sample",
    tenant: Tenant = None,
    namespace: Namespace = None,
    yes: Yes = False,
    here: Here = False,
    timeout: Timeout = 600.0,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Bring the index and Postgres together again, and prove it. Exit 1 when something remained.

    Replays what is not indexed, compares counts and digests, restores (--snapshot) and repairs, compares again, probes recall@10
    against exact search. The report has the time of each step and the time to recover; `memoryctl runs show` prints it again.
    Writers need not stop for it: what they change meanwhile is not judged. With --freeze they do, so that counts stand still and are
    the same on both sides; it is lifted at the end, and by itself where the drill is killed.

    For example:

      memoryctl drill vector-desync
      memoryctl drill vector-desync --inflict
      memoryctl drill vector-desync --snapshot /backup/vectors-2026-11-24
    """
    from memory_layer.ops.vectors import rehearsal
    from memory_layer.ops.vectors.spaces import LOCK

    if live and not inflict:
        raise UsageError("--live says what --inflict breaks: name both, or neither.")
    if inflict and not live and (tenant or namespace or snapshot):
        raise UsageError(
            "--inflict breaks an index of the drill's own: --tenant, --namespace and --snapshot need --live."
        )
    if probes < 1:
        raise UsageError("--probes takes a number from 1.")
    if inflict:
        rehearsal.refuse_in_prod(config.load())
    if live:
        question = "Search by meaning will miss rows until the drill is over. Break the live index of these namespaces?"
        command.agree(question, yes=yes)
    asked = rehearsal.Asked(tenant, namespace, inflict, live, snapshot, compared, here, freeze, timeout, probes)
    work = partial(rehearsal.rehearse, asked=asked)
    return await command.run(rehearsal.VERB, asked.to_json(), work, data=data, as_json=as_json, lock=LOCK)
