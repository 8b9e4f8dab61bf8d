"""`memoryctl artifacts scan / verify / sweep / manifest`: an operator's verbs, on the database and the object store themselves."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import App, Parameter

from memory_layer import config
from memory_layer.cli import render, reports
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.vector_frame import agree, progress
from memory_layer.errors import UsageError

if TYPE_CHECKING:
    from memory_layer.ops.artifacts.places import Places, Tell
    from memory_layer.ops.runs import Run

manifest = App(name="manifest", help="Signed lists of all artifacts in the archive.")

Data = Annotated[Path | None, Parameter(help="Data folder of `memoryctl up`.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
Which = Annotated[str | None, Parameter(help="Id or key of a manifest. Default: the newest.")]

_RATE: Final = re.compile(r"([1-9][0-9]*)([kMG]?)B?")
_UNITS: Final = {"": 1, "k": 1000, "M": 10**6, "G": 10**9}


def scan(
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
    from memory_layer.ops.artifacts.places import LOCK
    from memory_layer.ops.artifacts.scan import scan as run_scan

    if sample is not None and sample < 1:
        raise UsageError("--sample takes a number from 1.")
    if sample is not None and resume:
        raise UsageError("--resume is for a scan of all; a sample has no place where it was cut off.")
    speed = None if rate is None else _rate(rate)

    async def work(run: Run, places: Places, tell: Tell) -> None:
        jobs.tell_scan(run, await run_scan(places, sample=sample, rate=speed, resume=resume, tell=tell))

    arguments = {"sample": sample, "rate": speed, "resume": resume}
    return _perform("artifacts-scan", arguments, work, data, as_json, lock=LOCK)


def verify(
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
    from memory_layer.ops.artifacts.scan import finding_of, verify_one
    from memory_layer.ops.report import Finding

    wanted = _uuid(artifact_id, "an artifact's")

    async def work(run: Run, places: Places, _tell: Tell) -> None:
        artifact, checked = await verify_one(places, wanted)
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

    return _perform("artifacts-verify", {"artifactId": str(wanted)}, work, data, as_json)


def sweep(
    *,
    older_than: Annotated[int, Parameter(help="Seconds that an object must be older than.")] = 3600,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Delete objects that uploads left and no artifact names; where nobody may delete, tell of them. The worker does it each night.

    What is locked or held stays, and so does what somebody laid there to register it later.

    For example:

      memoryctl artifacts sweep
    """
    import datetime as dt

    from memory_layer.ops.artifacts import jobs
    from memory_layer.ops.artifacts.places import eraser_of
    from memory_layer.service.sweeping import sweep as run_sweep

    if older_than < 60:
        raise UsageError(
            "--older-than takes a number from 60: an upload that is under way names its object a moment later."
        )

    async def work(run: Run, places: Places, _tell: Tell) -> None:
        async with eraser_of(places) as eraser:
            age = dt.timedelta(seconds=older_than)
            done = await run_sweep(places.postgres, places.objects, eraser, age=age)
        jobs.tell_sweep(run, done)

    return _perform("artifacts-sweep", {"olderThan": older_than}, work, data, as_json, lock="artifacts-sweep")


@manifest.command
def export(*, data: Data = None, as_json: AsJson = False) -> int:
    """Write a signed list of all artifacts to the archive, under its lock. The worker does it each night.

    For example:

      memoryctl artifacts manifest export
    """
    from memory_layer.ops.artifacts import jobs
    from memory_layer.ops.artifacts.manifest import export as run_export
    from memory_layer.ops.report import Finding
    from memory_layer.ops.vectors.keys import signing_key

    async def work(run: Run, places: Places, tell: Tell) -> None:
        done = await run_export(places, signing_key(places.folder), tell=tell)
        jobs.tell_export(run, done)
        run.find(Finding("manifest.export", "info", "pass", f"{done.manifest.artifacts} artifacts are in {done.key}."))

    return _perform("artifacts-manifest-export", {}, work, data, as_json, lock="artifacts-manifest")


@manifest.command(name="list")
def list_(
    *, limit: Annotated[int, Parameter(help="How many at the most.")] = 20, data: Data = None, as_json: AsJson = False
) -> int:
    """List manifests, the newest first.

    For example:

      memoryctl artifacts manifest list --json
    """
    from memory_layer.ops.artifacts.places import SQL
    from memory_layer.ops.report import plain_json
    from memory_layer.stores.postgres import ALL_TENANTS, open_postgres

    if not 1 <= limit <= 10_000:
        raise UsageError("--limit takes a number from 1 to 10000.")

    async def look(dsn: str) -> list[dict[str, Any]]:
        postgres = await open_postgres(dsn, size=1)
        try:
            (rows,) = await postgres.fetch(ALL_TENANTS, (SQL["manifests"], {"limit": limit}))
        finally:
            await postgres.close()
        return rows

    with database_of(data_folder(data)) as dsn:
        found = plain_json(asyncio.run(look(dsn)))
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
def verify_manifest(which: Which = None, /, *, data: Data = None, as_json: AsJson = False) -> int:
    """Check a manifest's signature, hashes, lock and place in the chain, and compare the table with it. Exit 1 when something differs.

    For example:

      memoryctl artifacts manifest verify
    """
    from memory_layer.ops.artifacts import rebuild as ops
    from memory_layer.ops.artifacts.manifest import read
    from memory_layer.ops.vectors.keys import trust_root

    async def work(run: Run, places: Places, tell: Tell) -> None:
        found = await read(places, which, trust_root(places.folder))
        _tell_read(run, found)
        done = await ops.compare(places, found, tell=tell)
        for finding in (*await ops.findings_of_store(places, found), *ops.findings_of(done)):
            run.find(finding)

    return _perform("artifacts-manifest-verify", {"manifest": which}, work, data, as_json)


@manifest.command
def rebuild(
    which: Which = None,
    /,
    *,
    yes: Annotated[bool, Parameter(help="Do not ask.", negative=())] = False,
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
    from memory_layer.ops.vectors.keys import trust_root

    agree(True, yes, "Writes stop while the rows are restored. Restore the table of artifacts?")

    async def work(run: Run, places: Places, tell: Tell) -> None:
        found = await read(places, which, trust_root(places.folder))
        _tell_read(run, found)
        done = await ops.rebuild(places, found, tell=tell)
        for name in ("restored", "named", "from_log", "untold"):
            run.fact(name, getattr(done, name))
        for finding in ops.findings_of_rebuild(done):
            run.find(finding)

    return _perform("artifacts-manifest-rebuild", {"manifest": which}, work, data, as_json, lock="artifacts-manifest")


def _tell_read(run: Run, found: Any) -> None:
    run.fact("key", found.key)
    run.fact("versionId", found.version_id)
    run.fact("sha256", found.digest)
    run.fact("signedBy", found.signer)
    run.fact("createdAt", found.manifest.created_at)
    run.fact("artifacts", found.manifest.artifacts)


def _perform(
    verb: str,
    arguments: dict[str, Any],
    work: Callable[[Run, Places, Tell], Awaitable[None]],
    data: Path | None,
    as_json: bool,
    *,
    lock: str | None = None,
) -> int:
    """Run a verb in the operator's frame on the log and the object stores, with a progress bar."""
    from memory_layer.ops.artifacts.places import open_places
    from memory_layer.ops.runs import Place, perform

    folder = data_folder(data)
    with database_of(folder) as dsn:
        settings = config.load(database_url=dsn)

        async def go(run: Run) -> None:
            async with open_places(settings, folder, str(run.id)) as places:
                with progress() as tell:
                    await work(run, places, tell)

        place = Place(settings, folder, dsn, render.say)
        report = perform(place, verb, arguments, lambda run: asyncio.run(go(run)), lock=lock)
    return reports.show(report.to_json(), as_json=as_json)


def _rate(text: str) -> int:
    match = _RATE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text} is no rate: --rate takes bytes a second, such as 500k, 20M or 1G.")
    return int(match[1]) * _UNITS[match[2]]


def _uuid(text: str, whose: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise UsageError(f"{text} is not {whose} id.") from None
