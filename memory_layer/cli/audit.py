"""`memoryctl audit`: judge the log, prove an entry, take evidence away."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from memory_layer.cli import command, render
from memory_layer.cli.access import data_folder
from memory_layer.cli.anchors import anchor
from memory_layer.cli.archive import archive, judge_archive, replay
from memory_layer.cli.new_log import new_log
from memory_layer.cli.options import AsJson, Data, FromStore, TrustRootFile
from memory_layer.cli.proofs import checkpoint, proof, read_file, vkey
from memory_layer.errors import LogNotOpen, MemoryLayerError, UsageError, ValidationError

if TYPE_CHECKING:
    from memory_layer.audit.checkpoint import Checkpoint
    from memory_layer.audit.trust_root import TrustRoot
    from memory_layer.audit.verdict import Verdict
    from memory_layer.ops.operate import Run

audit = App(name="audit", help="Prove what happened.")
audit.command(anchor)
audit.command(archive)
audit.command(checkpoint)
audit.command(new_log)
audit.command(proof)
audit.command(replay)
audit.command(vkey)

MAX_ANCHORS = 10_000  # of one folder


@audit.command
async def verify(
    *,
    export: Annotated[Path | None, Parameter(help="Judge this evidence bundle instead of a database.")] = None,
    archive: Annotated[Path | None, Parameter(help="Judge an archive that was downloaded to this folder.")] = None,
    from_store: FromStore = False,
    trust_root: TrustRootFile = None,
    anchor: Annotated[
        list[Path] | None, Parameter(help="A checkpoint from elsewhere, or a folder of them; may be repeated.")
    ] = None,
    max_anchor_age: Annotated[int, Parameter(help="Seconds that the newest anchor may be behind.")] = 300,
    first: Annotated[
        int | None, Parameter(name="--from", help="Of a bundle or archive: the part from this entry on.")
    ] = None,
    last: Annotated[
        int | None, Parameter(name="--to", help="Of a bundle or archive: the part up to this entry.")
    ] = None,
    payloads: Annotated[bool, Parameter(negative="--no-payloads", help="Compare payload bytes too.")] = True,
    imported: Annotated[
        bool,
        Parameter(help="Judge the log as a copy that `audit replay` brought back: its rows are in another database."),
    ] = False,
    other_log: Annotated[
        list[str] | None,
        Parameter(
            help="The name of a log that is known to lie in this database too; may be repeated. Any other is a finding."
        ),
    ] = None,
    everything: Annotated[
        bool, Parameter(name="--all", negative="", help="Show each finding, not the first few of a kind.")
    ] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Check every entry, link, seal and payload of the log, and each node and artifact against its entries.

    Exit 0 anchored and right, 10 right but unanchored, 20 incomplete, 30 diverged from an anchor, 40 tampered, 50 policy,
    2 usage, 3 the database does not answer. Without --trust-root the copy in the data folder is used.

    With --export no database is needed, and every core is used. The trust root inside a bundle proves nothing: without
    --trust-root the exit is 50. Of a bundle that holds a part of the log, --from and --to say which part you asked for.

    With --archive neither: it judges the segments of an archive as one log, --from-s3 those in the object store, with the locks,
    versions and delete markers there.

    For example:

      memoryctl audit verify
      memoryctl audit verify --trust-root /media/usb/trust-root.json --json
      memoryctl audit verify --export evidence --trust-root mine.json --anchor checkpoint.txt
      memoryctl audit verify --from-s3 --to 250000
    """
    from memory_layer.audit.report import render as text

    if max_anchor_age < 0:
        raise UsageError("--max-anchor-age is a number of seconds from 0.")
    anchors = [parsed for path in anchor or [] for parsed in _checkpoints(path)]
    if (export is not None) + (archive is not None) + from_store > 1:
        raise UsageError("Name one thing to judge: --export, --archive or --from-s3; none of them is the database.")
    if (imported or other_log) and (archive is not None or from_store or export is not None):
        raise UsageError("--imported and --other-log are for a database: a bundle or an archive holds one log.")
    if archive is not None or from_store:
        folder = data_folder(data)
        verdict = await judge_archive(folder, archive, trust_root, anchors, max_anchor_age, first, last, payloads)
    elif export is not None:
        verdict = _verify_export(export, trust_root, anchors, max_anchor_age, first, last, payloads)
    elif first is not None or last is not None:
        raise UsageError("--from and --to are for --export and for an archive: a database is judged as a whole.")
    else:
        others = tuple(other_log or ())
        verdict = await _verify_live(data, trust_root, anchors, max_anchor_age, payloads, imported, others)
    if as_json:
        render.data(verdict.to_json())
    else:
        for line in text(verdict, everything=everything).splitlines():
            render.line(line)
    return verdict.exit_code


@audit.command
async def export(
    out: Path,
    *,
    first: Annotated[int, Parameter(name="--from", help="The first entry; whole batches are exported.")] = 0,
    last: Annotated[int | None, Parameter(name="--to", help="The last entry; else the log's newest.")] = None,
    tenant: Annotated[str | None, Parameter(help="Take along the payloads of this tenant alone.")] = None,
    payloads: Annotated[bool, Parameter(negative="--no-payloads", help="Take payloads along.")] = True,
    after: Annotated[Path | None, Parameter(help="Go on where this earlier bundle ends.")] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Write evidence into the new folder OUT: entries, seals, payloads, checkpoints, and how to verify them without a server.

    Entries hold no personal data; payloads do. Hand over --no-payloads or --tenant where the reader may not see them all.

    For example:

      memoryctl audit export evidence
      memoryctl audit export evidence-ann --tenant ann
      memoryctl audit export november --after october
    """
    from memory_layer.audit.trust_root import load
    from memory_layer.ops import export as exports
    from memory_layer.ops.manifests import manifest_key
    from memory_layer.ops.operate import operate

    if tenant is not None and not payloads:
        raise UsageError("--tenant says whose payloads to take along, and --no-payloads takes none: name one of them.")
    folder = data_folder(data)
    content = read_file(folder / "trust-root.json", "the trust root", "Name the data folder with --data.")
    root = load(content)
    previous = None
    if after is not None:
        if first:
            raise UsageError("--after says where to begin: leave out --from.")
        first, previous = _end_of(after)
    which: Literal["tenant", "all", "none"] = "tenant" if tenant is not None else "all" if payloads else "none"

    def work(run: Run) -> None:
        done = exports.export(
            run.installation.dsn,
            root,
            content,
            out,
            first=first,
            last=last,
            payloads=which,
            tenant=tenant,
            previous=previous,
            key=manifest_key(folder, root),
            progress=run.installation.progress,
        )
        manifest = done.manifest
        facts = {
            "folder": str(done.folder),
            "origin": manifest.origin,
            "first": manifest.base.seq,
            "last": None if manifest.head is None else manifest.head.seq,
            **manifest.counts,
            "sha256": done.digest,
            "signed": done.signed,
        }
        run.facts.update(facts)

    # Payloads in clear leave the house: who took which, and the hash of what was taken, is on record.
    arguments = {"payloads": which, "tenant": tenant, "from": first, "to": last}
    async with command.installation_of(data) as installation:
        report = await operate(installation, "audit-export", arguments, work)
    if report.exit == 0:
        part = (
            ""
            if first in (None, 0) and last is None
            else f" --from {report.facts['first']} --to {report.facts['last']}"
        )
        render.say(f"judge it anywhere: memoryctl audit verify --export {out}{part} --trust-root YOUR-COPY")
    if as_json:
        render.data(report.facts)
    else:
        render.pairs([(name, render.words(value)) for name, value in report.facts.items()])
    return report.exit


async def _verify_live(
    data: Path | None,
    trust_root: Path | None,
    anchors: list[Checkpoint],
    max_anchor_age: int,
    payloads: bool,
    imported: bool,
    others: tuple[str, ...],
) -> Verdict:
    from memory_layer.audit.trust_root import load
    from memory_layer.ops.audit import judge, verify_live
    from memory_layer.ops.blocking import blocking
    from memory_layer.ops.operate import operate

    path = trust_root or data_folder(data) / "trust-root.json"
    root = load(read_file(path, "the trust root", "Name yours with --trust-root."))
    judged: list[Verdict] = []

    async def work(run: Run) -> None:
        with blocking():
            verdict = verify_live(
                run.installation.dsn,
                root,
                pinned=True,
                payloads=payloads,
                anchors=anchors,
                max_anchor_age=dt.timedelta(seconds=max_anchor_age),
                progress=run.installation.progress,
                imported=imported,
                others=others,
            )
        verdict = await _held_to_what_lies_elsewhere(verdict, run, root, anchors)
        judge(run, verdict)
        judged.append(verdict)

    arguments = {
        "trustRoot": str(path), "anchors": len(anchors), "maxAnchorAge": max_anchor_age, "payloads": payloads,
        "imported": imported, "otherLogs": list(others),
    }  # fmt: skip
    async with command.installation_of(data) as installation:
        await operate(installation, "audit-verify", arguments, work)
    return judged[0]


async def _held_to_what_lies_elsewhere(
    verdict: Verdict, run: Run, root: TrustRoot, anchors: list[Checkpoint]
) -> Verdict:
    """The verdict with checkpoints outside the database that the log does not contain."""
    from memory_layer.ops.rollback import examine

    try:
        found, unread = await examine(run.installation, root, anchors)
    except LogNotOpen:
        # A copy that was brought back from an archive ends where that did; or the log is another one, which is found by itself.
        found, unread = [], ["rollback: the log that is written to is not in this database"]
    except MemoryLayerError as error:
        # An auditor may read entries and seals, and nothing else: that takes nothing from the verdict on those.
        found, unread = [], [f"rollback: checkpoints in the archive and at anchors ({error.message})"]
    return verdict.extended(found, unchecked=unread)


def _verify_export(
    folder: Path,
    trust_root: Path | None,
    anchors: list[Checkpoint],
    max_anchor_age: int,
    first: int | None,
    last: int | None,
    payloads: bool,
) -> Verdict:
    from memory_layer.audit import bundle, offline
    from memory_layer.audit.trust_root import load
    from memory_layer.ops.blocking import blocking

    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name the bundle that `memoryctl audit export` wrote.")
    own = folder / bundle.TRUST_ROOT
    path = trust_root or own
    pinned = path.resolve() != own.resolve()
    if not pinned and not own.is_file():  # what came with the bundle may be a pipe, on which a reader waits for ever
        raise UsageError(f"{own} is no file. Name your own copy of the trust root with --trust-root.")
    root = load(read_file(path, "the trust root", "Name yours with --trust-root."))
    expected = None if first is None and last is None else offline.Range(first or 0, last)
    with render.reporting() as (progress, _say), blocking():
        return offline.verify_bundle(
            folder,
            root,
            pinned=pinned,
            anchors=anchors,
            payloads=payloads,
            expected=expected,
            max_anchor_age=dt.timedelta(seconds=max_anchor_age),
            processes=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            progress=progress,
        )


def _checkpoints(path: Path) -> list[Checkpoint]:
    """The signed notes of a file or of each file in a folder. Raises UsageError when one is none."""
    from memory_layer.audit.checkpoint import MAX_NOTE, parse_checkpoint

    files = _notes(path) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{path} holds no checkpoint.")
    if len(files) > MAX_ANCHORS:
        raise UsageError(
            f"{path} holds {len(files):,} files, and at most {MAX_ANCHORS:,} anchors are compared at once."
        )
    notes = []
    for file in files:
        note = read_file(file, "the anchor", "Name a signed checkpoint with --anchor.", MAX_NOTE)
        try:
            notes.append(parse_checkpoint(note))
        except ValidationError as error:
            raise UsageError(f"The anchor {file} cannot be used. {error.message}") from None
    return notes


def _notes(folder: Path) -> list[Path]:
    """The files of a folder; of one that anchors were pushed to, those of each log below it."""
    pushed = [found for found in folder.rglob("[0-9]" * 15) if found.is_file() and ".git" not in found.parts]
    return sorted(pushed or (found for found in folder.iterdir() if found.is_file()))


def _end_of(earlier: Path) -> tuple[int, str]:
    """The entry after the last one of a bundle, and the hash of its manifest."""
    from memory_layer.audit.bundle import Reader

    data, manifest = Reader(earlier).manifest()
    if manifest is None:
        raise UsageError(f"The manifest of {earlier} cannot be read.")
    return (manifest.base.seq if manifest.head is None else manifest.head.seq + 1), hashlib.sha256(data).hexdigest()
