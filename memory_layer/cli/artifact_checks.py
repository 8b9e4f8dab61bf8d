"""`memoryctl artifacts scan / verify / sweep / manifest`: an operator's verbs, on the database and the object store themselves."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import App, Parameter

from memory_layer.cli import command, render
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.options import AsJson, Data, Limit, Yes
from memory_layer.errors import UsageError

if TYPE_CHECKING:
    from memory_layer.ops.operate import Run

manifest = App(name="manifest", help="Signed lists of all artifacts in the archive.")

Which = Annotated[str | None, Parameter(help="Id or key of a manifest. Default: the newest.")]

_RATE: Final = re.compile(r"([1-9][0-9]*)([kMG]?)B?")
_UNITS: Final = {"": 1, "k": 1000, "M": 10**6, "G": 10**9}


async def scan(
    *,
    sample: Annotated[int | None, Parameter(help="Check so many artifacts at random instead of all.")] = None,
    rate: Annotated[
        str | None, Parameter(help="Read no more than this a second, such as 20M. Default: as fast as it goes.")
    ] = None,
    resume: Annotated[bool, Parameter(help="Go on where the last scan of all was cut off.", negative=())] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Read every artifact's bytes again and compare their SHA-256. Exit 1 when one is corrupt, missing, covered or not locked.

    Each fault becomes an entry in the log (memory.artifact.corrupt), and is shown with the artifact. A scan of all can be cut off
    anywhere: --resume goes on. The worker runs one each week.

    For example:

      memoryctl artifacts scan --sample 1000
      memoryctl artifacts scan --rate 20M --resume
    """
    from memory_layer.ops.artifacts import jobs
    from memory_layer.ops.artifacts.places import LOCK, need_files
    from memory_layer.ops.artifacts.scan import scan as run_scan
    from memory_layer.service.system import system_caller

    if sample is not None and sample < 1:
        raise UsageError("--sample takes a number from 1.")
    if sample is not None and resume:
        raise UsageError("--resume is for a scan of all; a sample has no place where it was cut off.")
    speed = None if rate is None else _rate(rate)

    async def work(run: Run) -> None:
        installation = await need_files(run)
        actor = await system_caller(installation, "memoryctl", str(run.id))
        progress = installation.progress
        done = await run_scan(installation, actor, sample=sample, rate=speed, resume=resume, progress=progress)
        jobs.report_scan(run, done)

    arguments = {"sample": sample, "rate": speed, "resume": resume}
    return await command.run("artifacts-scan", arguments, work, data=data, as_json=as_json, lock=LOCK)


async def verify(
    artifact_id: Annotated[str, Parameter(help="Id of an artifact, of whichever tenant.")],
    /,
    *,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Read one artifact's bytes again, and put into the log what was found. Exit 1 when something is wrong.

    For example:

      memoryctl artifacts verify 019a7f3e-...
    """
    from memory_layer.ops.artifacts.places import need_files
    from memory_layer.ops.artifacts.scan import finding_of, verify_one
    from memory_layer.ops.report import Finding
    from memory_layer.service.system import system_caller

    wanted = command.id_of(artifact_id, "is not an artifact's id.")

    async def work(run: Run) -> None:
        installation = await need_files(run)
        actor = await system_caller(installation, "memoryctl", str(run.id))
        artifact, checked = await verify_one(installation, actor, wanted)
        run.fact("artifactId", str(artifact.id))
        run.fact("sha256", artifact.sha256)
        run.fact("bytes", checked.hashed)
        if checked.fault is not None:
            run.find(finding_of(artifact, checked))
        elif checked.cold:
            text = f"Its bytes are in the class {checked.storage_class} and were not read; size, version and lock are right."
            run.find(Finding("artifacts.cold", "info", "skip", text))
        else:
            run.find(Finding("artifacts.right", "info", "pass", "Its bytes are those that were stored."))

    arguments = {"artifactId": str(wanted)}
    return await command.run("artifacts-verify", arguments, work, data=data, as_json=as_json)


async def sweep(
    *,
    older_than: Annotated[int, Parameter(help="Seconds that an object must be older than.")] = 3600,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Delete artifacts that ended with their node, and objects that no artifact names (of uploads that were cut off, and of deleted
    artifacts); where nobody may delete objects, tell of them. The worker does it each night.

    What is locked or held stays, and so does what somebody laid there to register it later.

    For example:

      memoryctl artifacts sweep
    """
    import datetime as dt

    from memory_layer.ops.artifacts import jobs
    from memory_layer.ops.artifacts.places import SWEEP_LOCK, find_eraser, need_files
    from memory_layer.service.artifact_ending import end_with_nodes
    from memory_layer.service.orphans import sweep as run_sweep

    if older_than < 60:
        raise UsageError(
            "--older-than takes a number from 60: an upload that is under way names its object a moment later."
        )

    async def work(run: Run) -> None:
        installation = await need_files(run)
        eraser, age = await find_eraser(installation), dt.timedelta(seconds=older_than)
        ended = await end_with_nodes(installation)
        done = await run_sweep(installation.postgres, installation.objects, eraser, age=age)
        jobs.report_sweep(run, done, ended)

    arguments = {"olderThan": older_than}
    return await command.run("artifacts-sweep", arguments, work, data=data, as_json=as_json, lock=SWEEP_LOCK)


@manifest.command
async def export(*, data: Data = None, as_json: AsJson = False) -> int:
    """Write a signed list of all artifacts to the archive, under its lock. The worker does it each night.

    For example:

      memoryctl artifacts manifest export
    """
    from memory_layer.ops.artifacts import jobs
    from memory_layer.ops.artifacts.manifest import export as run_export
    from memory_layer.ops.artifacts.places import MANIFEST_LOCK, need_files
    from memory_layer.ops.manifests import manifest_key
    from memory_layer.ops.report import Finding

    async def work(run: Run) -> None:
        installation = await need_files(run)
        done = await run_export(installation, manifest_key(installation.folder), progress=run.installation.progress)
        jobs.report_export(run, done)
        run.find(Finding("manifest.export", "info", "pass", f"{done.manifest.artifacts} artifacts are in {done.key}."))

    return await command.run("artifacts-manifest-export", {}, work, data=data, as_json=as_json, lock=MANIFEST_LOCK)


@manifest.command(name="list")
async def list_(*, limit: Limit = 20, data: Data = None, as_json: AsJson = False) -> int:
    """List manifests, the newest first.

    For example:

      memoryctl artifacts manifest list --json
    """
    from memory_layer.ops.artifacts.manifest import listed
    from memory_layer.ops.report import plain_json

    command.check_limit(limit)

    with database_of(data_folder(data)) as dsn:
        found = plain_json(await listed(dsn, limit))
    names = {
        "id": "manifest", "created_at": "createdAt", "artifacts": "artifacts", "object_key": "key", "version_id": "versionId",
        "sha256": "sha256", "previous": "previous", "key_id": "signedBy",
    }  # fmt: skip
    if as_json:
        render.data([{shown: row[name] for name, shown in names.items()} for row in found])
    else:
        columns = ("manifest", "createdAt", "artifacts", "key")
        rows = [(row["id"], row["created_at"], row["artifacts"], row["object_key"]) for row in found]
        render.table(columns, rows, wide="key")
    return 0


@manifest.command(name="verify")
async def verify_manifest(which: Which = None, /, *, data: Data = None, as_json: AsJson = False) -> int:
    """Check a manifest's signature, hashes, lock and place in the chain, and compare the table with it. Exit 1 when something differs.

    For example:

      memoryctl artifacts manifest verify
    """
    from memory_layer.ops.artifacts import rebuild as ops
    from memory_layer.ops.artifacts.manifest import read
    from memory_layer.ops.artifacts.places import need_files
    from memory_layer.stores.logs import find_trust_root

    async def work(run: Run) -> None:
        installation = await need_files(run)
        found = await read(installation, which, find_trust_root(installation.folder))
        _report_read(run, found)
        done = await ops.compare(installation, found, progress=run.installation.progress)
        run.find(*await ops.findings_of_store(installation, found), *ops.findings_of(done))

    return await command.run("artifacts-manifest-verify", {"manifest": which}, work, data=data, as_json=as_json)


@manifest.command
async def rebuild(
    which: Which = None,
    /,
    *,
    yes: Yes = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Restore the rows of artifacts from a manifest into the empty table, and from the log what came after it.

    Signature and hashes are checked first. Names and metadata come from the log, where they were not erased. Refused, exit 4, when
    there is a row. Where Postgres knows of no manifest, the archive's newest is taken.

    For example:

      memoryctl artifacts manifest rebuild
      memoryctl artifacts manifest rebuild artifact-manifests/20260101T013000Z-.../manifest.json
    """
    from memory_layer.ops.artifacts import rebuild as ops
    from memory_layer.ops.artifacts.manifest import read
    from memory_layer.ops.artifacts.places import MANIFEST_LOCK, need_files
    from memory_layer.stores.logs import find_trust_root

    command.agree("Writes stop while the rows are restored. Restore the table of artifacts?", yes=yes)

    async def work(run: Run) -> None:
        installation = await need_files(run)
        found = await read(installation, which, find_trust_root(installation.folder))
        _report_read(run, found)
        done = await ops.rebuild(installation, found, progress=run.installation.progress)
        facts = {"restored": done.restored, "named": done.named, "from_log": done.from_log, "untold": done.missing}
        for name, value in facts.items():
            run.fact(name, value)
        run.find(*ops.findings_of_rebuild(done))

    arguments = {"manifest": which}
    return await command.run(
        "artifacts-manifest-rebuild", arguments, work, data=data, as_json=as_json, lock=MANIFEST_LOCK
    )


def _report_read(run: Run, found: Any) -> None:
    run.fact("key", found.key)
    run.fact("versionId", found.version_id)
    run.fact("sha256", found.digest)
    run.fact("signedBy", found.signer)
    run.fact("createdAt", found.manifest.created_at)
    run.fact("artifacts", found.manifest.artifacts)


def _rate(text: str) -> int:
    match = _RATE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text} is no rate: --rate takes bytes a second, such as 500k, 20M or 1G.")
    return int(match[1]) * _UNITS[match[2]]
