"""`memoryctl provision plan / apply buckets`: the buckets of artifacts and of the audit archive, and their replicas in a second region.

A plan reads only. Apply makes what is missing (``missing``) and puts back what was changed (``changed``); what it cannot or must not
(``drift``: Object Lock on a bucket that was made without, a lock longer than asked for) it tells. What a server does not have is
``unsupported``. Blocking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from memory_layer.config import Settings
from memory_layer.ops.provision import bucket_documents as documents
from memory_layer.ops.provision.bucket_documents import Kind, Names, plain
from memory_layer.ops.provision.outcome import Outcome, drift, note, right
from memory_layer.ops.report import Finding, Level
from memory_layer.stores import objects
from memory_layer.stores.objects import s3_control as s3
from memory_layer.stores.objects.s3_control import Refused
from memory_layer.stores.objects.s3_wire import Login

_APPLY: Final = "memoryctl provision apply buckets sets it."
_NO_LOCK: Final = (
    "Apply does not add it, since what lies there would stay unlocked: name another bucket, which apply makes with Object Lock, and copy "
    "everything over. AWS can also turn it on for a bucket with versioning: aws s3api put-object-lock-configuration."
)


@dataclass(frozen=True, slots=True)
class Bucket:
    """One that is to be. ``label``: ``archive``, ``archive-replica``, ... in ids of findings."""

    kind: Kind
    name: str
    label: str
    login: Login
    key: str | None  # of KMS
    replica: str | None = None  # name of the bucket that this one is replicated to


@dataclass(frozen=True, slots=True)
class Aspect:
    """One setting of a bucket. ``look``: None when there is none. ``make`` is given what there is; None: a person's."""

    name: str
    what: str
    wanted: Any
    look: Callable[[], Any]
    fits: Callable[[Any], bool]
    make: Callable[[Any], None] | None
    level: Level = "error"


def in_s3(settings: Settings) -> bool:
    """Whether artifacts or archive lie in S3, not in a directory."""
    return objects.in_s3(settings) or settings.archive_bucket is not None


def buckets_of(settings: Settings) -> list[Bucket]:
    """The buckets that the settings name, sources first."""
    admin = admin_login(settings)
    there = Login(settings.s3_replica_endpoint, settings.s3_replica_region, admin.key, admin.secret)
    sources, replicas = [], []
    named: dict[Kind, str] = {
        "artifacts": objects.artifact_bucket(settings),
        "archive": objects.archive_bucket(settings),
    }
    if not objects.in_s3(settings):  # the archive alone
        del named["artifacts"]
    for kind, name in named.items():
        replica = f"{name}-replica" if settings.s3_replica_region else None
        sources.append(Bucket(kind, name, kind, admin, settings.s3_kms_key_id, replica))
        if replica is not None:
            replicas.append(Bucket(kind, replica, f"{kind}-replica", there, settings.s3_replica_kms_key_id))
    return sources + replicas


def admin_login(settings: Settings) -> Login:
    key, secret = settings.s3_admin_access_key, settings.s3_admin_secret
    if not key and not secret:
        key, secret = settings.s3_access_key, settings.s3_secret
    return Login(settings.s3_endpoint, settings.s3_region, key, secret)


def service_login(settings: Settings, bucket: Bucket) -> Login:
    """To look at objects: what the service itself has, where it may; replicas are the administrator's."""
    if bucket.label.endswith("-replica") or not settings.s3_access_key:
        return bucket.login
    return Login(bucket.login.endpoint, bucket.login.region, settings.s3_access_key, settings.s3_secret)


def target_names(settings: Settings) -> list[str]:
    """For the record of a run."""
    return [bucket.name for bucket in buckets_of(settings)] if in_s3(settings) else []


def names_of(settings: Settings) -> Names:
    """What the policies speak of. On AWS it asks for the account, unless S3_ROLE_ARN_PREFIX names it."""
    arns = settings.s3_role_arn_prefix
    if arns is None and settings.s3_endpoint is None:
        arns = f"arn:aws:iam::{s3.account_of(admin_login(settings))}:role/"
    arns = arns or "arn:aws:iam:::user/"
    account = arns.split(":")[4]
    keys = (
        _key_arn(settings.s3_kms_key_id, settings.s3_region, account),
        _key_arn(settings.s3_replica_kms_key_id, settings.s3_replica_region, account),
    )
    endpoints = (settings.s3_endpoint, settings.s3_replica_endpoint)
    return Names(
        artifacts=objects.artifact_bucket(settings),
        archive=objects.archive_bucket(settings),
        replicas={b.kind: b.name for b in buckets_of(settings) if b.label.endswith("-replica")},
        arns=arns,
        lock_days=settings.archive_lock_days,
        keys=tuple(key for key in keys if key),
        tls=not any(url and url.startswith("http://") for url in endpoints),
    )


def _key_arn(key: str | None, region: str | None, account: str) -> str | None:
    """None for an alias, which no policy can name."""
    if key is None or key.startswith("arn:"):
        return key
    return None if key.startswith("alias/") or region is None else f"arn:aws:kms:{region}:{account}:key/{key}"


def plan(settings: Settings) -> Outcome:
    """How the buckets stand. Raises UsageError, PolicyRefused, and DependencyUnavailable where S3 does not answer."""
    return _run(settings, make=False)


def apply(settings: Settings) -> Outcome:
    """Make what is missing, put back what was changed. Repeating it makes nothing."""
    return _run(settings, make=True)


def repairable(outcome: Outcome) -> list[Finding]:
    """What apply would make or put back."""
    return [found for found in outcome.findings if found.evidence.get("state") in ("missing", "changed")]


def _run(settings: Settings, *, make: bool) -> Outcome:
    outcome = Outcome()
    if not in_s3(settings):
        outcome.findings.append(
            note(
                "buckets.directory",
                "Artifacts and archive lie in the data folder: there is no bucket to make. A directory enforces no lock against the "
                "account that owns it, knows no lifecycle, no encryption of its own, and is replicated by nobody.",
                "For locks that hold against everybody set S3_BUCKET, S3_REGION or S3_ENDPOINT.",
            )
        )
        return outcome
    names = names_of(settings)
    # Replicas first: a bucket can only be replicated to one that is there.
    for bucket in reversed(buckets_of(settings)):
        _bucket(settings, names, bucket, outcome, make=make)
    outcome.findings.reverse()
    if not settings.s3_replica_region:
        level: Level = "error" if settings.service_env == "prod" else "warning"
        hint = "Set S3_REPLICA_REGION; apply makes the replicas and the rules."
        outcome.findings.append(drift("buckets.replica", "Nothing is replicated to a second region.", hint, level))
    if not names.tls:
        outcome.findings.append(
            note(
                "buckets.tls", "S3 is reached by plain HTTP, so the policies demand no TLS.", "Use https:// elsewhere."
            )
        )
    return outcome


def _bucket(settings: Settings, names: Names, bucket: Bucket, outcome: Outcome, *, make: bool) -> None:
    client = s3.connect(settings, bucket.login)
    base = f"buckets.{bucket.label}"
    found: list[Finding] = []
    try:
        if not s3.exists(client, bucket.name):
            if not make:
                told = f"There is no bucket {bucket.name}."
                outcome.findings.append(
                    Finding(
                        f"{base}.exists", "error", "fail", told, _APPLY.replace("sets", "makes"), {"state": "missing"}
                    )
                )
                return
            s3.create(client, bucket.name)
            outcome.made.append(f"bucket {bucket.name}, with Object Lock")
        found.append(right(f"{base}.exists", f"There is {bucket.name}.", bucket=bucket.name))
        found += [
            _settle(f"{base}.{aspect.name}", bucket, aspect, outcome.made, make=make)
            for aspect in _aspects(settings, names, bucket, client)
        ]
        found += _strangers(base, bucket, client)
    except Refused as refused:
        found.append(_refused(f"{base}.exists", f"{bucket.name} cannot be looked at or made", refused))
    finally:
        client.close()
    outcome.findings += reversed(found)


def _settle(id: str, bucket: Bucket, aspect: Aspect, made: list[str], *, make: bool) -> Finding:
    """Look at one setting, set it where that is to be done, and say how it stands."""
    told = f"{bucket.name}: {aspect.what}"
    try:
        found = aspect.look()
        if not aspect.fits(found) and make and aspect.make is not None:
            aspect.make(found)
            made.append(told)
            found = aspect.look()
    except Refused as refused:
        return _refused(id, f"{told}: it cannot be {'set' if make else 'seen'}", refused, aspect.level)
    if aspect.fits(found):
        return right(id, f"{told}: as it should be.", aspect.level)
    state = "drift" if aspect.make is None else "changed" if found else "missing"
    text = f"{told}: not as it should be." if found else f"{told}: missing."
    hint = _APPLY
    if state == "drift":
        hint = _NO_LOCK if aspect.name == "lock" else "Apply leaves it to a person."
    elif make:  # it was set, and is not there
        state, hint = "unsupported", "The server took the setting and does not show it: it may not have such a feature."
    return Finding(id, aspect.level, "fail", text, hint, {"state": state, "found": found, "wanted": aspect.wanted})


def _refused(id: str, what: str, refused: Refused, level: Level = "error") -> Finding:
    if refused.denied:
        hint = "Give `memoryctl provision` credentials that may: S3_ADMIN_ACCESS_KEY and S3_ADMIN_SECRET."
        return Finding(id, level, "unavailable", f"{what}; the credentials may not.", hint, {"state": "denied"})
    if refused.unknown or refused.status == 400:
        hint = "The server does not have this, or not for these values. Protect what it would have protected by other means."
        evidence = {"state": "unsupported", "code": refused.code}
        return Finding(
            id, level, "fail", f"{what}; the server answered {refused.code or refused.status}.", hint, evidence
        )
    if refused.code in ("BucketAlreadyExists", "BucketNotEmpty"):
        hint = "Another account has a bucket of this name: set BUCKET_PREFIX, S3_BUCKET or ARCHIVE_BUCKET."
        return drift(id, f"{what}: the name is taken.", hint)
    return drift(id, f"{what}: {refused}.", "See the server's own log.", level)


def _aspects(settings: Settings, names: Names, bucket: Bucket, client: Any) -> Iterator[Aspect]:
    """In the order in which they are set: without a lock there is no point in the rest, and replication needs versions."""
    name, archive = bucket.name, bucket.kind == "archive"
    # What servers other than AWS may not have is a warning there.
    softly: Level = "error" if names.dialect == "aws" else "warning"
    yield Aspect("lock", "Object Lock", "Enabled", lambda: s3.get_lock(client, name) is not None, bool, None)
    yield Aspect(
        "versioning",
        "versioning",
        "Enabled",
        lambda: s3.get_versioning(client, name),
        lambda found: bool(found == "Enabled"),
        lambda _: s3.put_versioning(client, name),
    )
    retention = {"Mode": "COMPLIANCE", "Days": settings.archive_lock_days} if archive else {}

    def retain(_: Any) -> None:
        if s3.get_lock(client, name) is not None:  # else the finding on Object Lock says what is to be done
            s3.put_lock(client, name, retention)

    yield Aspect(
        "retention",
        "the default retention",
        retention or None,
        lambda: s3.get_lock(client, name),
        lambda found: _long_enough(found, settings.archive_lock_days) if archive else not found,
        retain if archive else None,
        "error" if archive else "warning",
    )
    public = documents.public_access(names.dialect)
    yield Aspect(
        "public",
        "the block of public access",
        public,
        lambda: s3.get_public_access(client, name),
        lambda found: bool(found == public),
        lambda _: s3.put_public_access(client, name, public),
        softly,
    )
    encryption = {"SSEAlgorithm": "aws:kms"} | ({"KMSMasterKeyID": bucket.key} if bucket.key else {})
    yield Aspect(
        "encryption",
        "the default encryption (SSE-KMS)",
        encryption,
        lambda: s3.get_encryption(client, name),
        lambda found: bool(found and encryption.items() <= found.items()),
        lambda _: s3.put_encryption(client, name, encryption),
        softly,
    )
    rules = documents.lifecycle(bucket.kind)
    yield Aspect(
        "lifecycle",
        "the lifecycle",
        rules,
        lambda: s3.get_lifecycle(client, name),
        lambda found: bool(plain(found or []) == plain(rules)),
        lambda _: s3.put_lifecycle(client, name, rules),
    )
    policy = documents.bucket_policy(names, bucket.kind, name)
    yield Aspect(
        "policy",
        "the policy",
        policy,
        lambda: s3.get_policy(client, name),
        lambda found: bool(plain(_ours(found)) == plain(policy["Statement"])),
        lambda found: s3.put_policy(client, name, {**policy, "Statement": policy["Statement"] + foreign(found)}),
    )
    tags = {"application": "memory-layer", "purpose": bucket.kind, "service-env": settings.service_env}
    yield Aspect(
        "tags",
        "the tags",
        tags,
        lambda: s3.get_tags(client, name),
        lambda found: bool(tags.items() <= (found or {}).items()),
        lambda found: s3.put_tags(client, name, {**(found or {}), **tags}),
        "warning",
    )
    if bucket.replica is not None:
        role = settings.s3_replication_role or names.role(documents.REPLICATION)
        # Objects that SSE-KMS encrypts are replicated only where the rule names a key for the replicas.
        key = settings.s3_replica_kms_key_id or (
            f"arn:aws:kms:{settings.s3_replica_region}:{names.arns.split(':')[4]}:alias/aws/s3"
            if names.dialect == "aws"
            else None
        )
        wanted = documents.replication(role, bucket.replica, key)
        yield Aspect(
            "replication",
            f"the replication to {bucket.replica}",
            wanted,
            lambda: s3.get_replication(client, name),
            lambda found: bool(found and plain(found) == plain(wanted)),
            lambda _: s3.put_replication(client, name, wanted),
            softly,
        )


def _long_enough(found: Mapping[str, Any] | None, days: int) -> bool:
    """A longer one is fine, and is never shortened."""
    if not found or found.get("Mode") != "COMPLIANCE":
        return False
    return int(found.get("Days") or 0) + 365 * int(found.get("Years") or 0) >= days


def _ours(policy: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    found = (policy or {}).get("Statement") or []
    return [s for s in found if str(s.get("Sid", "")).startswith(documents.SID)]


def foreign(policy: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Statements that are not ours."""
    found = (policy or {}).get("Statement") or []
    return [s for s in found if not str(s.get("Sid", "")).startswith(documents.SID)]


def _strangers(id: str, bucket: Bucket, client: Any) -> list[Finding]:
    """Statements of the policy that others have put there, which apply keeps."""
    try:
        found = foreign(s3.get_policy(client, bucket.name))
    except Refused:
        return []
    if not found:
        return []
    open_ = [
        s for s in found if s.get("Effect") == "Allow" and s.get("Principal") in ("*", {"AWS": "*"}, {"AWS": ["*"]})
    ]
    evidence = {"statements": found}
    if open_:
        told = f"The policy of {bucket.name} lets everybody do something."
        hint = "Remove these statements, unless a condition narrows them."
        return [drift(f"{id}.policy.others", told, hint, statements=open_)]
    told = f"The policy of {bucket.name} has {len(found)} statements of others, which apply keeps."
    return [note(f"{id}.policy.others", told, "Check that they are meant.", evidence)]
