"""The lock probe: it tries what a bucket does instead of reading its settings.

A canary is written with COMPLIANCE for a day, the shortest that S3 has; then its deletion by version id, a shorter date and a weaker
mode must each be refused, with the strongest credentials at hand and with the header that overrides GOVERNANCE. A refusal alone
proves little, for rights may be its reason: so the same is first done to a second canary under GOVERNANCE, which goes away at that, or
the server's text must name the lock. The cost: one object of some 100 bytes in each bucket for a day or two.
"""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from memory_layer.config import Settings
from memory_layer.errors import MemoryLayerError
from memory_layer.model import format_time
from memory_layer.ops.provision.bucket_documents import BOUNDS, PROBES
from memory_layer.ops.provision.buckets import Bucket, admin_login, buckets_of, in_s3, names_of
from memory_layer.ops.report import Finding, Level, finding_of, note, right
from memory_layer.stores.objects import s3_control as s3
from memory_layer.stores.objects.s3_client import Login, Refused

LOCKED: Final = dt.timedelta(days=1, minutes=5)  # S3 counts in days
SHORTER: Final = dt.timedelta(hours=1)
LOOK_EVERY: Final = 2.0  # seconds, for a replica
LATE: Final = dt.timedelta(
    hours=1
)  # a canary of an earlier probe that has not reached its replica by then never will, or far too late
EARLIER: Final = 20  # canaries of earlier probes that are looked at

_BROKEN: Final = "Nothing in this bucket is safe: see docs/runbooks/object-lock.md."
_WEAK: Final = (
    "The refusal may come from the rights of the credentials instead of the lock. Probe as memory-layer-eraser "
    "(S3_ERASER_ACCESS_KEY) or as an administrator (S3_ADMIN_ACCESS_KEY)."
)


@dataclass(frozen=True, slots=True)
class Hands:
    """Who writes canaries, as the service does, and who tries to get rid of them."""

    writer: Any
    strong: Any


@dataclass(slots=True)
class Probed:
    """``lags``: label of a source -> seconds until its canary was in the replica; None: not within the time given."""

    findings: list[Finding]
    lags: dict[str, float | None]
    safe: dict[str, bool]  # label -> whether everything that must be refused was refused


def probe(settings: Settings, wait: float, say: Callable[[str], None] = lambda _: None) -> Probed:
    """Try every bucket. ``wait``: seconds that a canary may take to its replica. Raises UsageError, DependencyUnavailable."""
    done = Probed([], {}, {})
    if not in_s3(settings):
        text = "Artifacts and archive lie in the data folder, and no directory refuses its owner anything: there is no lock to probe."
        done.findings.append(note("buckets.directory", text))
        return done
    clients: dict[Login, Any] = {}

    def connect(login: Login) -> Any:
        if login not in clients:
            clients[login] = s3.connect(settings, login)
        return clients[login]

    try:
        _probe(settings, wait, say, done, connect)
    finally:
        for client in clients.values():
            client.close()
    return done


def _probe(
    settings: Settings, wait: float, say: Callable[[str], None], done: Probed, connect: Callable[[Login], Any]
) -> None:
    dialect = names_of(settings).dialect
    targets = buckets_of(settings)
    by_name = {bucket.name: bucket for bucket in targets}
    for bucket in targets:
        say(f"probing {bucket.name}")
        hands = _hands(settings, bucket, connect)
        try:
            findings = _locks(bucket, hands)
            if bucket.label == "archive" and not findings[0].id.endswith(".put"):
                findings.append(_bound(bucket, hands, "error" if dialect == "aws" else "warning"))
            done.safe[bucket.label] = not any(f.level == "error" and f.status != "pass" for f in findings)
            done.findings += findings
            if bucket.replica is not None:
                replica = by_name[bucket.replica]
                found, lag = _lag(bucket, hands, replica, connect(replica.login), wait)
                done.findings += found
                if not isinstance(lag, bool):
                    done.lags[bucket.label] = lag
        except Refused as refused:
            done.safe[bucket.label] = False
            text = f"{bucket.name} cannot be probed: {refused}."
            done.findings.append(Finding(f"buckets.{bucket.label}.probe", "error", "unavailable", text))
        except MemoryLayerError as error:
            # One bucket that does not answer must not keep the others from being looked at.
            done.safe[bucket.label] = False
            failed = finding_of(error)
            name = f"buckets.{bucket.label}.probe"
            done.findings.append(Finding(name, "error", failed.status, failed.finding, evidence=failed.evidence))


def _hands(settings: Settings, bucket: Bucket, connect: Callable[[Login], Any]) -> Hands:
    admin = admin_login(settings)
    strong = (admin.key, admin.secret)
    if settings.s3_eraser_access_key:
        strong = (settings.s3_eraser_access_key, settings.s3_eraser_secret)
    writer = (settings.s3_access_key, settings.s3_secret) if settings.s3_access_key else (admin.key, admin.secret)
    if bucket.label.endswith("-replica"):
        writer = strong  # the service has no rights there

    def client(pair: tuple[str | None, str | None]) -> Any:
        return connect(Login(bucket.login.endpoint, bucket.login.region, *pair))

    return Hands(client(writer), client(strong))


def _key(prefix: str) -> str:
    return f"{prefix}{_now():%Y-%m-%d}-{uuid.uuid4()}"


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


# --- what must be refused


def _locks(bucket: Bucket, hands: Hands) -> list[Finding]:
    base, name = f"buckets.{bucket.label}.probe", bucket.name
    key, until = _key(PROBES), _now() + LOCKED
    body = f"Canary of the Memory Layer's lock probe, locked until {format_time(until)}.\n".encode()
    try:
        version = s3.put(hands.writer, name, key, body, "COMPLIANCE", until)
    except Refused as refused:
        if refused.absent:
            hint = "memoryctl provision apply buckets makes it."
            return [Finding(f"{base}.put", "error", "fail", f"There is no bucket {name}.", hint, {"state": "missing"})]
        text = f"{name} does not take an object with a COMPLIANCE lock: {refused}."
        hint = "The role that writes needs s3:PutObject and s3:PutObjectRetention, and the bucket Object Lock."
        return [Finding(f"{base}.put", "error", "fail", text, hint, {"code": refused.code, "status": refused.status})]
    may, evidence = _control(bucket, hands), {"key": key, "versionId": version, "until": format_time(until)}
    found: list[Finding] = []

    def trial(what: str, outcome: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Refused as refused:
            more = evidence | {
                "code": refused.code,
                "status": refused.status,
                "control": may,
                "lockNamed": refused.locks,
            }
            if refused.status not in (400, 403, 409):
                text = f"{name}: whether a canary under COMPLIANCE can be {outcome} is not known: {refused}."
                found.append(Finding(f"{base}.{what}", "error", "unavailable", text, "Repeat the command.", more))
            elif may or refused.locks:
                found.append(
                    right(
                        f"{base}.{what}",
                        f"{name} refused that a canary under COMPLIANCE be {outcome}.",
                        "error",
                        **more,
                    )
                )
            else:
                text = (
                    f"{name} refused that a canary under COMPLIANCE be {outcome}, and perhaps would without a lock too."
                )
                found.append(
                    Finding(f"{base}.{what}", "warning", "fail", text, _WEAK, more | {"state": "inconclusive"})
                )
        else:
            text = f"{name} let a canary under COMPLIANCE be {outcome}."
            found.append(Finding(f"{base}.{what}", "error", "fail", text, _BROKEN, evidence | {"state": "broken"}))

    strong = hands.strong
    trial(
        "shorten",
        "locked for a shorter time",
        lambda: s3.retain(strong, name, key, version, "COMPLIANCE", _now() + SHORTER, bypass=True),
    )
    trial(
        "weaken",
        "put under GOVERNANCE",
        lambda: s3.retain(strong, name, key, version, "GOVERNANCE", until, bypass=True),
    )
    if all(finding.status == "pass" for finding in found):
        trial("delete", "deleted", lambda: s3.erase(strong, name, key, version, bypass=True))
    else:
        # What was weakened may be deleted, which would say nothing about a lock: another canary, untouched.
        again = _key(PROBES)
        other = s3.put(hands.writer, name, again, body, "COMPLIANCE", until)
        evidence |= {"key": again, "versionId": other}
        trial("delete", "deleted", lambda: s3.erase(strong, name, again, other, bypass=True))
        key, version = again, other
    found.append(_kept(base, bucket, hands, key, version, body, until))
    return found


def _control(bucket: Bucket, hands: Hands) -> bool:
    """Whether these credentials may do all that to what only GOVERNANCE protects: a refusal under COMPLIANCE then comes from the lock."""
    key, until = _key(PROBES), _now() + LOCKED
    try:
        version = s3.put(hands.writer, bucket.name, key, b"Control of the lock probe.\n", "GOVERNANCE", until)
        s3.retain(hands.strong, bucket.name, key, version, "GOVERNANCE", _now() + SHORTER, bypass=True)
        s3.erase(hands.strong, bucket.name, key, version, bypass=True)
        return s3.head(hands.writer, bucket.name, key, version) is None
    except Refused:
        return False


def _kept(id: str, bucket: Bucket, hands: Hands, key: str, version: str, body: bytes, until: dt.datetime) -> Finding:
    """After all that, the canary must be what it was: an answer is not yet a deed."""
    evidence: dict[str, Any] = {"key": key, "versionId": version}
    try:
        seen = s3.head(hands.writer, bucket.name, key, version)
        same = seen is not None and s3.read(hands.writer, bucket.name, key, version, len(body) + 1) == body
    except Refused as refused:
        text = f"{bucket.name}: the canary cannot be looked at: {refused}."
        return Finding(
            f"{id}.kept", "error", "unavailable", text, "The role that writes needs s3:GetObjectVersion.", evidence
        )
    if seen is None or not same:
        text = f"{bucket.name}: the canary is gone, or holds other bytes."
        return Finding(f"{id}.kept", "error", "fail", text, _BROKEN, evidence | {"state": "broken"})
    if seen.mode != "COMPLIANCE" or seen.until is None or seen.until < until:
        shown = f"{seen.mode or 'no lock'} until {'-' if seen.until is None else format_time(seen.until)}"
        text = f"{bucket.name}: the canary is under {shown}, not COMPLIANCE until {format_time(until)}."
        return Finding(f"{id}.kept", "error", "fail", text, _BROKEN, evidence | {"state": "broken"})
    return right(f"{id}.kept", f"{bucket.name}: the canary is there, unchanged and locked as it was.", **evidence)


def _bound(bucket: Bucket, hands: Hands, level: Level) -> Finding:
    """Whoever writes to the archive must not choose a lock shorter than the default: an explicit one goes before it."""
    base = f"buckets.{bucket.label}.probe.bound"
    try:
        version = s3.put(hands.writer, bucket.name, _key(BOUNDS), b"Too short.\n", "COMPLIANCE", _now() + LOCKED)
    except Refused as refused:
        if refused.denied:
            return right(base, f"{bucket.name} refused a lock of a day.", level)
        return Finding(base, level, "unavailable", f"{bucket.name}: a lock of a day cannot be tried: {refused}.")
    text = f"{bucket.name} took an object with a lock of a day: whoever writes may choose a shorter lock than the archive's."
    hint = (
        "Apply the policy. Where it is applied, the server does not evaluate s3:object-lock-remaining-retention-days: keep the writer's "
        "key in the archiving process alone, and watch the weekly sample."
    )
    return Finding(base, level, "fail", text, hint, {"state": "drift", "versionId": version})


# --- replication


def _lag(
    bucket: Bucket, hands: Hands, replica: Bucket, there: Any, wait: float
) -> tuple[list[Finding], float | bool | None]:
    """How long a canary takes to the replica; False where nothing is replicated."""
    base = f"buckets.{bucket.label}.replication"
    try:
        if s3.get_replication(hands.strong, bucket.name) is None:
            text = f"{bucket.name} is not replicated."
            return [
                Finding(
                    f"{base}.lag", "warning", "fail", text, "memoryctl provision apply buckets", {"state": "missing"}
                )
            ], False
    except Refused:
        pass  # the eraser need not see settings: the canary tells
    try:
        stuck = _stuck(bucket, hands)
        key, until = _key(PROBES), _now() + LOCKED
        version = s3.put(hands.writer, bucket.name, key, b"Canary of the replication.\n", "COMPLIANCE", until)
        began = time.monotonic()
        while (seen := s3.head(there, replica.name, key, version)) is None:
            if (lag := time.monotonic() - began) >= wait:
                break
            time.sleep(min(LOOK_EVERY, wait - lag))
        lag = time.monotonic() - began
        here = s3.head(hands.writer, bucket.name, key, version)
    except Refused as refused:
        return [
            Finding(
                f"{base}.lag", "error", "unavailable", f"{bucket.name}: its replication cannot be probed: {refused}."
            )
        ], False
    status = None if here is None else here.replication
    evidence = {"key": key, "versionId": version, "seconds": round(lag, 1), "replicationStatus": status}
    if seen is None:
        failed = status == "FAILED"
        text = f"A canary of {bucket.name} is not in {replica.name} after {lag:.0f} s" + (
            ": S3 says FAILED." if failed else "."
        )
        hint = "Check the role that replicates, its rights on both KMS keys, and versioning and Object Lock of the replica."
        level: Level = "error" if failed else "warning"
        return [*stuck, Finding(f"{base}.lag", level, "fail", text, hint, evidence)], None
    found = [
        *stuck,
        right(
            f"{base}.lag", f"A canary of {bucket.name} was in {replica.name} after {lag:.0f} s.", "warning", **evidence
        ),
    ]
    if seen.mode == "COMPLIANCE" and seen.until is not None and seen.until >= until:
        found.append(right(f"{base}.lock", f"{replica.name} holds the canary under the same lock."))
    else:
        text = f"{replica.name} holds the canary under {seen.mode or 'no lock'}, not under the source's."
        hint = "The replica needs Object Lock, and the role that replicates s3:GetObjectRetention on the source."
        found.append(Finding(f"{base}.lock", "error", "fail", text, hint, evidence))
    return found, lag


def _stuck(bucket: Bucket, hands: Hands) -> list[Finding]:
    """Canaries of earlier probes that have still not reached the replica."""
    now, late, looked = _now(), [], 0
    for lines in s3.pages(hands.writer, bucket.name, prefix=PROBES):
        for line in lines:
            if line.marker or now - line.modified < LATE or looked >= EARLIER:
                continue
            looked += 1
            seen = s3.head(hands.writer, bucket.name, line.key, line.version_id)
            if seen is not None and seen.replication in ("PENDING", "FAILED"):
                late.append({"key": line.key, "replicationStatus": seen.replication})
        break  # a page is enough: canaries expire
    if not late:
        return []
    text = f"{len(late)} canaries of earlier probes of {bucket.name} have not reached the replica within an hour."
    hint = "Replicate them with S3 Batch Replication when the cause is removed."
    return [Finding(f"buckets.{bucket.label}.replication.stuck", "error", "fail", text, hint, {"canaries": late})]
