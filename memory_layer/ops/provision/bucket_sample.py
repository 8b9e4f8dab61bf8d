"""Objects taken at random, and whether each is under the lock that it should be: what a probe cannot see, since it writes new ones."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from memory_layer.model import format_time
from memory_layer.ops.provision.bucket_documents import PROBED, SNAPSHOTS
from memory_layer.ops.provision.buckets import Bucket
from memory_layer.ops.report import Finding, note, right
from memory_layer.stores.objects import s3_control as s3
from memory_layer.stores.objects.s3_client import Refused
from memory_layer.stores.objects.s3_control import Line
from memory_layer.stores.protocols import LockMode

MAX_VERSIONS: Final = 100_000  # versions that one sample lists: a hundred calls
NAMED: Final = 10  # objects that a finding names


class Drawn(NamedTuple):
    """``lines``: drawn evenly from ``seen`` versions. ``shadowed``: keys with a delete marker or several versions. ``to``: the key
    after which the next sample begins, None where the whole bucket was listed."""

    lines: list[Line]
    seen: int
    shadowed: list[str]
    to: str | None


class Expected(NamedTuple):
    """An artifact that is to be kept until then, as Postgres has it."""

    key: str
    version_id: str
    until: dt.datetime


def draw(client: Any, bucket: str, size: int, after: str | None = None, most: int = MAX_VERSIONS) -> Drawn:
    """A reservoir over the listing, from behind ``after``, and on from the beginning where the end comes first. Raises Refused."""
    lines: list[Line] = []
    seen, last, whole = 0, after, after is None
    shadowed: list[str] = []
    for page, whole in _around(client, bucket, after):
        for line in page:
            if line.key.startswith(PROBED):
                continue
            last = line.key
            if line.marker or not line.latest:
                if not shadowed or shadowed[-1] != line.key:
                    shadowed.append(line.key)
                if line.marker:
                    continue
            seen += 1
            if len(lines) < size:
                lines.append(line)
            elif (place := random.randrange(seen)) < size:  # noqa: S311 - a sample, no secret
                lines[place] = line
        if seen >= most:
            return Drawn(lines, seen, shadowed, None if whole else last)
    return Drawn(lines, seen, shadowed, None)


def _around(client: Any, bucket: str, after: str | None) -> Iterator[tuple[list[Line], bool]]:
    """Pages; the second says whether it is the last that there is."""
    for page in s3.pages(client, bucket, after):
        yield page, False
    if after is not None:
        for page in s3.pages(client, bucket):
            kept = [line for line in page if line.key <= after]
            yield kept, len(kept) < len(page)
            if len(kept) < len(page):
                return


def archived(
    bucket: Bucket, client: Any, size: int, days: int, after: str | None = None
) -> tuple[list[Finding], str | None]:
    """Whether what lies in the archive is under COMPLIANCE with a date to come; and where the next sample begins."""
    base = f"buckets.{bucket.label}.sample"
    try:
        drawn = draw(client, bucket.name, size, after)
        looked = [(line, s3.head(client, bucket.name, line.key, line.version_id)) for line in drawn.lines]
    except Refused as refused:
        text = f"{bucket.name} cannot be sampled: {refused}."
        return [
            Finding(base, "error", "unavailable", text, "It takes s3:ListBucketVersions and s3:GetObjectVersion.")
        ], after
    now = dt.datetime.now(dt.UTC)
    loose: list[dict[str, Any]] = []
    expired: list[dict[str, Any]] = []
    for line, seen in looked:
        lock = {"key": line.key, "versionId": line.version_id, "mode": None, "until": None}
        if seen is not None and seen.mode is not None and seen.until is not None:
            lock |= {"mode": seen.mode, "until": format_time(seen.until)}
        if seen is None or seen.mode != "COMPLIANCE" or seen.until is None:
            loose.append(lock)
        elif seen.until <= now:
            due = line.key.startswith(SNAPSHOTS) or now - line.modified >= dt.timedelta(days=days)
            (expired if due else loose).append(lock)
    found = []
    evidence: dict[str, Any] = {"sampled": len(looked), "listed": drawn.seen}
    if loose:
        text = f"{len(loose)} of {len(looked)} sampled objects of {bucket.name} are not under COMPLIANCE with a date to come."
        hint = "Lock them (docs/runbooks/object-lock.md), and find out who wrote them."
        found.append(Finding(f"{base}.lock", "error", "fail", text, hint, evidence | {"objects": loose[:NAMED]}))
    elif not looked:
        found.append(note(f"{base}.lock", f"{bucket.name} holds nothing to sample.", evidence=evidence))
    else:
        text = f"{len(looked)} of {drawn.seen} objects of {bucket.name}, taken at random, are under COMPLIANCE."
        found.append(right(f"{base}.lock", text, "error", **evidence))
    if expired:
        text = f"The locks of {len(expired)} sampled objects of {bucket.name} have run out, as they were made to."
        hint = "Extend them if the records must be kept for longer; ARCHIVE_LOCK_DAYS is for new ones."
        found.append(Finding(f"{base}.expired", "warning", "fail", text, hint, {"objects": expired[:NAMED]}))
    if drawn.shadowed:
        text = f"A delete marker or another version stands over {len(drawn.shadowed)} objects of {bucket.name}."
        hint = "What is locked is still there by its version id. Remove the marker, and find out who set it."
        found.append(Finding(f"{base}.shadowed", "error", "fail", text, hint, {"keys": drawn.shadowed[:NAMED]}))
    return found, drawn.to


def artifacts(bucket: Bucket, client: Any, expected: Sequence[Expected], mode: LockMode) -> list[Finding]:
    """Whether artifacts that Postgres says are to be kept until a date are locked until then, in ``mode`` or a stronger one."""
    base = f"buckets.{bucket.label}.sample.lock"
    wrong = []
    try:
        for artifact in expected:
            seen = s3.head(client, bucket.name, artifact.key, artifact.version_id)
            short = (
                seen is None
                or seen.mode not in (mode, "COMPLIANCE")
                or seen.until is None
                or seen.until < artifact.until.replace(microsecond=0)
            )
            if short:
                until = None if seen is None or seen.until is None else format_time(seen.until)
                wrong.append(
                    {
                        "key": artifact.key,
                        "versionId": artifact.version_id,
                        "until": until,
                        "mode": None if seen is None else seen.mode,
                        "wanted": format_time(artifact.until),
                    }
                )
    except Refused as refused:
        return [Finding(base, "error", "unavailable", f"{bucket.name} cannot be sampled: {refused}.")]
    if wrong:
        text = f"{len(wrong)} of {len(expected)} sampled artifacts of {bucket.name} are not locked in {mode} until the date that they are kept to."
        hint = "Lock them (docs/runbooks/object-lock.md), and look why the PUT did not. ARTIFACT_LOCK_MODE is the mode that they must have."
        return [Finding(base, "error", "fail", text, hint, {"sampled": len(expected), "objects": wrong[:NAMED]})]
    if not expected:
        return [note(base, f"No artifact of {bucket.name} that is to be kept until a date was looked at.")]
    text = f"{len(expected)} artifacts of {bucket.name}, taken at random, are locked in {mode} until their dates."
    return [right(base, text, sampled=len(expected))]
