"""`memoryctl vectors`: the index beside its truth. Compare, replay, repair, keep and bring back."""

from __future__ import annotations

import contextlib
import datetime as dt
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from memory_layer import config
from memory_layer.cli import command, generations, languages, render
from memory_layer.cli.access import data_folder
from memory_layer.cli.options import AsJson, Compared, Data, Here, Namespace, Tenant, Timeout, Yes
from memory_layer.errors import UsageError
from memory_layer.service.installation import Installation

if TYPE_CHECKING:
    from memory_layer.ops.operate import Run
    from memory_layer.ops.vectors.restore import Restored

vectors = App(name="vectors", help="The vector index: compare it with Postgres, replay, repair, snapshot, restore.")


@vectors.command
async def status(
    *, tenant: Tenant = None, namespace: Namespace = None, data: Data = None, as_json: AsJson = False
) -> int:
    """Show, for each namespace, rows by status, what the index holds, and whether both are one. Exit 1 when they differ.

    `moving`: they differ by what the worker has yet to do. `unread`: texts that the model cannot read; they have no vector and are found
    by their words. Digests are sums over (node id, version) that do not depend on order.

    For example:

      memoryctl vectors status
      memoryctl vectors status --tenant ann --json
    """
    from memory_layer.ops.vectors.findings import facts_of
    from memory_layer.ops.vectors.reconcile import compare
    from memory_layer.ops.vectors.spaces import Scope, named_spaces, need_index
    from memory_layer.service.actions.generations import SEPARATOR
    from memory_layer.service.renewed_vectors import earlier
    from memory_layer.service.renewed_words import older

    async with command.installation_of(data) as installation:
        spaces = await named_spaces(await need_index(installation), Scope(tenant, namespace))
        progress = installation.progress
        found = [await compare(installation, space, vectors="none", progress=progress) for space in spaces]
        older_words, earlier_vectors = await older(installation), await earlier(installation)
    named = {(space.tenant, space.namespace.partition(SEPARATOR)[0]) for space in spaces}
    stale = sum(older_words.get(one, 0) for one in named)
    begun = sum(earlier_vectors.get((space.tenant, space.namespace), 0) for space in spaces)
    now = dt.datetime.now(dt.UTC)
    if as_json:
        from memory_layer.ops.report import plain_json

        whole = facts_of(found) | {
            "spaces": [done.to_json() for done in found],
            "olderWords": stale,
            "earlierVectors": begun,
        }
        render.data(plain_json(whole))
    else:
        columns = (
            "tenant",
            "namespace",
            "model",
            "state",
            "settled",
            "index",
            "waiting",
            "failed",
            "unread",
            "oldest",
            "digest",
            "index's",
        )
        lines = []
        for done in found:
            rows, space = done.space.rows, done.space
            waiting = rows["pending"] + rows["in_flight"] + rows["deleting"]
            age = "" if space.oldest is None else f"{max(0.0, (now - space.oldest).total_seconds()):.0f} s"
            cells = (space.tenant, space.namespace, space.model or "", done.state, done.rows, done.index, waiting)
            failed = rows["failed"] + rows["dead"]
            lines.append((*cells, failed, space.unread, age, done.row_digest[:12], done.index_digest[:12]))
        render.table(columns, lines, wide="namespace")
        if partly := sum(done.space.partly for done in found):
            render.say(f"{partly} texts are so long that their vectors stand for evenly spread parts of them.")
        if stale:
            render.say(
                f"{stale} texts have words of an older version, by which they are found; the worker writes them again."
            )
        if begun:
            render.say(
                f"{begun} vectors are of an earlier version, of long texts the beginning alone; the worker looks at them and makes those anew."
            )
    return 1 if any(done.state == "differs" for done in found) else 0


@vectors.command
async def replay(
    *,
    tenant: Tenant = None,
    namespace: Namespace = None,
    here: Here = False,
    timeout: Timeout = 600.0,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Try again everything that is not indexed (pending, overdue, failed, dead, deleting), and wait. Exit 1 when something stays.

    For example:

      memoryctl vectors replay
      memoryctl vectors replay --here --timeout 60
    """
    from memory_layer.ops.vectors import replay as ops
    from memory_layer.ops.vectors.spaces import Scope, named_spaces, need_index

    async def work(run: Run) -> None:
        installation = await need_index(run.installation, here=here)
        await named_spaces(installation, Scope(tenant, namespace))
        scope, progress = Scope(tenant, namespace), run.installation.progress
        done = await ops.replay(installation, scope, within=timeout, progress=progress)
        run.fact("rows", done.rows)
        run.fact("before", dict(done.before))
        run.fact("settled", done.indexed)
        run.find(*ops.findings_of(done, here=here))

    arguments = {"tenant": tenant, "namespace": namespace, "here": here}
    return await command.run("vectors-replay", arguments, work, data=data, as_json=as_json)


@vectors.command
async def reconcile(
    *,
    repair: Annotated[bool, Parameter(help="Heal what is found.")] = False,
    drop_unknown: Annotated[
        bool, Parameter(negative="", help="With --repair: forget namespaces that Postgres knows nothing of.")
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
    """Name what is missing, extra, stale, ahead or wrong in the index; with --repair repair it. Exit 1 when a difference stays.

    Compared are ids, versions, vectors (--vectors) and, beside those, the fields that filters are evaluated on; and the words of the text index with the texts. Namespaces of the index
    that Postgres knows nothing of are named too, unless --tenant or --namespace narrows what is looked at. It may run at any time: what is being written meanwhile is not judged. Repairs go through the outbox as every write does.

    For example:

      memoryctl vectors reconcile --vectors all
      memoryctl vectors reconcile --repair --tenant ann
    """
    from memory_layer.ops.vectors import findings, replay, words
    from memory_layer.ops.vectors import reconcile as ops
    from memory_layer.ops.vectors.spaces import LOCK, Scope, named_spaces, need_index, unknown_spaces

    if drop_unknown and not (repair and tenant is None and namespace is None):
        raise UsageError("--drop-unknown goes with --repair, and with neither --tenant nor --namespace.")
    if drop_unknown:
        question = "Another installation may use this store. Forget all namespaces that this Postgres does not know?"
        command.agree(question, yes=yes)

    async def work(run: Run) -> None:
        installation = await need_index(run.installation, here=here)
        await look_and_repair(run, installation)

    async def look_and_repair(run: Run, installation: Installation) -> None:
        progress = run.installation.progress
        spaces = await named_spaces(installation, Scope(tenant, namespace))
        unknown = await unknown_spaces(installation) if tenant is None and namespace is None else []
        for name in unknown if drop_unknown else ():
            await installation.vectors.drop_unknown(name)
        if tenant is None and namespace is None:
            run.find(findings.unknown_finding(unknown, dropped=drop_unknown))
        before, after, sent = await ops.reconcile(
            installation, spaces, vectors=compared, repair=repair, within=timeout, progress=progress
        )
        run.find(*findings.findings_of(after, repaired=repair))
        run.find(*(replay.findings_of(sent, here=here) if sent.left else ()))
        run.find(*findings.waiting_findings(after))
        texts = await words.compare(installation, Scope(tenant, namespace), repair=repair)
        run.find(words.finding_of(texts, repaired=repair))
        run.fact("textsCompared", texts.compared)
        if repair:
            rewritten = replay.joined(texts.sent)
            await replay.follow(installation, rewritten, within=timeout, progress=progress)
            run.fact("wordsWrittenAgain", rewritten.indexed)
            run.fact("found", findings.facts_of(before)["differences"])
            run.fact("sentAgain", sent.rows)
            run.fact("removed", sum(done.removed for done in before))
        run.facts.update(findings.facts_of(after))

    arguments = {"tenant": tenant, "namespace": namespace, "repair": repair, "vectors": compared, "here": here}
    arguments["dropUnknown"] = drop_unknown
    lock = LOCK if repair else None
    return await command.run("vectors-reconcile", arguments, work, data=data, as_json=as_json, lock=lock)


@vectors.command
async def snapshot(
    out: Path,
    *,
    lock_days: Annotated[
        int | None, Parameter(help="Put it into the archive too, under OUT's name, locked for so many days.")
    ] = None,
    tenant: Tenant = None,
    namespace: Namespace = None,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Write what the index holds into the new folder OUT: NumPy files, ids, and a signed manifest. Any provider can be restored from it.

    `dirty`: the index was not what Postgres says that it must be; the manifest names the differences. Exit 1 then.

    For example:

      memoryctl vectors snapshot /backup/vectors-2026-11-24
      memoryctl vectors snapshot /backup/vectors-2026-11-24 --lock-days 90
    """
    from memory_layer.ops.manifests import manifest_key
    from memory_layer.ops.report import Finding
    from memory_layer.ops.vectors import archived
    from memory_layer.ops.vectors import snapshot as ops
    from memory_layer.ops.vectors.spaces import Scope, need_index

    if lock_days is not None and not 1 <= lock_days <= 36500:
        raise UsageError("--lock-days takes a number from 1 to 36500.")

    async def work(run: Run) -> None:
        installation = await need_index(run.installation)
        key, progress = manifest_key(installation.folder), installation.progress
        done = await ops.snapshot(installation, Scope(tenant, namespace), out, key, progress=progress)
        run.facts.update(ops.facts_of(done, out))
        run.find(*ops.findings_of(done))
        run.find(Finding("vectors.snapshot", "error", "pass", f"{done.manifest.rows} vectors are in {out}."))
        if lock_days is not None:
            await installation.need("archive")
            run.fact("archived", await archived.keep(installation.archive, out, lock_days))

    arguments = {"tenant": tenant, "namespace": namespace, "lockDays": lock_days}
    return await command.run("vectors-snapshot", arguments, work, data=data, as_json=as_json)


@vectors.command
async def restore(
    folder: Annotated[Path, Parameter(help="A snapshot.")],
    /,
    *,
    plan: Annotated[bool, Parameter(help="Check the snapshot, and show what is in it. Changes nothing.")] = False,
    unsigned: Annotated[bool, Parameter(help="Take one that nobody signed.")] = False,
    from_archive: Annotated[
        bool, Parameter(negative="", help="FOLDER is the name of a snapshot in the archive, from where it is fetched.")
    ] = False,
    tenant: Tenant = None,
    namespace: Namespace = None,
    here: Here = False,
    timeout: Timeout = 600.0,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Write a snapshot's vectors into the index that the settings name, then compare and repair. Exit 1 when a difference stays.

    Every file is checked before the first vector is written. Rows that were changed or deleted since are left out: what the index
    must hold is what Postgres says. It may run over an index that is in use, and again after it was cut off.

    For example:

      memoryctl vectors restore /backup/vectors-2026-11-24 --plan
      VECTOR_DB_PROVIDER=pinecone memoryctl vectors restore /backup/vectors-2026-11-24
      memoryctl vectors restore vectors-20261124T023000Z --from-archive
    """
    if from_archive:
        async with _fetched(str(folder), data_folder(data)) as fetched:
            return await restore(
                fetched, plan=plan, unsigned=unsigned, tenant=tenant, namespace=namespace, here=here, timeout=timeout,
                data=data, as_json=as_json,
            )  # fmt: skip
    from memory_layer.ops.vectors import restore as ops
    from memory_layer.ops.vectors import snapshot as snapshots
    from memory_layer.ops.vectors.manifest import read_manifest
    from memory_layer.ops.vectors.spaces import LOCK, Scope, need_index
    from memory_layer.stores.logs import find_trust_root

    root = find_trust_root(data_folder(data))
    if plan:
        read = read_manifest(folder, root, unsigned=unsigned)
        ops.refuse_elsewhere(read.manifest, Scope(tenant, namespace))
        with render.reporting() as (progress, _):
            await ops.check(folder, read.manifest, progress)
        facts = snapshots.facts_of(read, folder)
        facts["spaces"] = [
            {"tenant": one.tenant, "namespace": one.namespace, "vectors": one.count} for one in read.manifest.spaces
        ]
        if as_json:
            render.data(facts)
        else:
            render.pairs(list(facts.items()))
        return 0

    async def work(run: Run) -> None:
        scope, progress = Scope(tenant, namespace), run.installation.progress
        installation = await need_index(run.installation, here=here)
        read = read_manifest(folder, root, unsigned=unsigned)
        run.fact("snapshot", read.digest)
        run.fact("signedBy", read.key)
        ops.refuse_elsewhere(read.manifest, scope)
        await ops.check(folder, read.manifest, progress)
        done = await ops.restore(installation, folder, read.manifest, scope, within=timeout, progress=progress)
        _report_restored(run, done, here)

    arguments = {"folder": str(folder), "tenant": tenant, "namespace": namespace, "unsigned": unsigned, "here": here}
    return await command.run("vectors-restore", arguments, work, data=data, as_json=as_json, lock=LOCK)


@vectors.command
async def reindex(
    *,
    drop: Annotated[bool, Parameter(help="Let the index forget the namespaces first.")] = False,
    tenant: Tenant = None,
    namespace: Namespace = None,
    yes: Yes = False,
    here: Here = False,
    timeout: Timeout = 3600.0,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Build the index of namespaces anew from Postgres alone. Exit 1 when a difference stays.

    Everything stays searchable while it is written over. With --drop the index forgets the namespaces first, and search by
    meaning misses rows until they are back: only that helps where the index is ahead of Postgres.

    For example:

      memoryctl vectors reindex --namespace kernel-memory
      memoryctl vectors reindex --drop --tenant ann --yes
    """
    from memory_layer.ops.vectors import restore as ops
    from memory_layer.ops.vectors.spaces import LOCK, Scope, named_spaces, need_index

    if drop:
        question = "Search by meaning will miss rows until they are back. Drop the index of these namespaces?"
        command.agree(question, yes=yes)

    async def work(run: Run) -> None:
        installation = await need_index(run.installation, here=here)
        spaces = await named_spaces(installation, Scope(tenant, namespace))
        done = await ops.reindex(installation, spaces, drop=drop, within=timeout, progress=run.installation.progress)
        _report_restored(run, done, here)

    arguments = {"tenant": tenant, "namespace": namespace, "drop": drop, "here": here}
    return await command.run("vectors-reindex", arguments, work, data=data, as_json=as_json, lock=LOCK)


def _report_restored(run: Run, done: Restored, here: bool) -> None:
    from memory_layer.ops.vectors import findings, replay

    run.facts.update(done.counts)
    run.fact("found", findings.facts_of(done.before)["differences"])
    run.fact("sentAgain", done.sent.rows)
    run.find(*findings.findings_of(done.after, repaired=True))
    run.find(*(replay.findings_of(done.sent, here=here) if done.sent.left else ()))
    run.find(*findings.waiting_findings(done.after))
    run.facts.update(findings.facts_of(done.after))


@contextlib.asynccontextmanager
async def _fetched(name: str, folder: Path) -> AsyncIterator[Path]:
    """A snapshot out of the archive, for as long as it is needed here."""
    from memory_layer.ops.vectors import archived
    from memory_layer.service.installation import open_installation

    with tempfile.TemporaryDirectory(prefix="memory-snapshot-") as into:
        async with open_installation(config.load(), folder, "archive") as installation:
            fetched = await archived.fetch(installation.archive, name, Path(into))
        yield fetched


for _command in (
    generations.reembed,
    generations.compare,
    generations.cutover,
    generations.rollback,
    generations.retire,
    generations.generations,
    languages.language,
):
    vectors.command(_command)
