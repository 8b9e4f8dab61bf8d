"""What the verifier of the live log adds: checkpoints kept outside the database that the log does not contain."""

from __future__ import annotations

from collections.abc import Iterable

from memory_layer.audit.checkpoint import Checkpoint, check_checkpoint
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import Finding
from memory_layer.service.installation import Installation
from memory_layer.service.rollback import difference
from memory_layer.service.tiles import snapshot
from memory_layer.service.witnesses import FOLDER, Witness, Witnesses
from memory_layer.sql import queries
from memory_layer.stores.logs import find_log

_SQL = queries("log")


async def examine(
    installation: Installation, trust_root: TrustRoot, anchors: Iterable[Checkpoint]
) -> tuple[list[Finding], list[str]]:
    """ROLLBACK_DETECTED for each checkpoint that the log lacks: of the anchors given, of the archive, of the places of AUDIT_ANCHORS and
    of what the data folder remembers; and a line for each place that could not be looked at."""
    given = [
        Witness("the anchor that was given", anchor)
        for anchor in anchors
        if check_checkpoint(anchor, trust_root) is None
    ]
    await installation.need("outside", "anchors", "postgres")
    keeps = Witnesses(trust_root, installation.outside, installation.anchors, installation.folder / FOLDER)
    gathered = await keeps.gather()
    fetch, number = snapshot(installation.postgres), await find_log(installation.postgres, trust_root.origin)
    (row,) = await fetch((_SQL["grown"], {"log": number}))
    findings = []
    for source, checkpoint, _ in (*given, *gathered.witnesses):
        what = await difference(fetch, number, row["entries"], checkpoint)
        if what is not None:
            expected = f"a log that contains the {checkpoint.size} entries with the root {checkpoint.root.hex()}"
            findings.append(
                Finding("ROLLBACK_DETECTED", expected, what, seq=min(checkpoint.size, row["entries"]), file=source)
            )
    return findings, [f"rollback: {line}" for line in (*gathered.unread, *gathered.doubtful)]
