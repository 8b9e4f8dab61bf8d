"""`memoryctl provision plan / apply buckets`: the buckets of artifacts and of the audit archive, and their replicas in a second region.

What is missing is made and what was changed is put back; what cannot or must not be (Object Lock on a bucket that was made without, a
lock longer than asked for) is left to a person. What a server does not have is ``unsupported``. Blocking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from memory_layer.config import Settings
from memory_layer.ops.checks import Check, Made, Survey, known
from memory_layer.ops.provision import bucket_documents as documents
from memory_layer.ops.provision import guide
from memory_layer.ops.provision.bucket_documents import Kind, Names, plain
from memory_layer.ops.report import Finding, Level, note
from memory_layer.stores import objects
from memory_layer.stores.objects import s3_control as s3
from memory_layer.stores.objects.s3_client import Login, Refused

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
    """What the policies name. On AWS it asks for the account, unless S3_ROLE_ARN_PREFIX names it."""
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


async def examine(survey: Survey, settings: Settings) -> None:
    """All buckets. Raises UsageError, PolicyRefused, and DependencyUnavailable where S3 does not answer."""
    if not in_s3(settings):
        survey.note(
            "buckets.directory",
            "Artifacts and archive lie in the data folder: there is no bucket to make. A directory enforces no lock against the "
            "account that owns it, knows no lifecycle, no encryption of its own, and is replicated by nobody.",
            "For locks that hold against everybody set S3_BUCKET, S3_REGION or S3_ENDPOINT.",
        )
        return
    names = names_of(settings)
    # Replicas first: a bucket can only be replicated to one that is there. Their findings come last.
    surveys = []
    for bucket in reversed(buckets_of(settings)):
        surveys.append(Survey(survey.make))
        await _bucket(surveys[-1], settings, names, bucket)
        survey.made += surveys[-1].made
    survey.findings += [finding for each in reversed(surveys) for finding in each.findings]
    region = settings.s3_replica_region
    await survey.check(
        known(
            "buckets.replica",
            region is not None,
            f"Replicas are in {region}." if region else "Nothing is replicated to a second region.",
            "Set S3_REPLICA_REGION; apply makes the replicas and the rules.",
            source=guide.REPLICATION,
            level="error" if settings.service_env == "prod" else "warning",
        )
    )
    if not names.tls:
        text = "S3 is reached by plain HTTP, so the policies demand no TLS."
        survey.note("buckets.tls", text, "Use https:// elsewhere.")


async def _bucket(survey: Survey, settings: Settings, names: Names, bucket: Bucket) -> None:
    client = s3.connect(settings, bucket.login)
    name = f"buckets.{bucket.label}.exists"

    def make(_: bool) -> Made[bool]:
        s3.create(client, bucket.name)
        return Made(True, (f"bucket {bucket.name}, with Object Lock",))

    try:
        there = await survey.check(
            Check(
                id=name,
                source=guide.BUCKETS,
                look=lambda: s3.exists(client, bucket.name),
                fits=bool,
                says=lambda there: f"There is {'' if there else 'no bucket '}{bucket.name}.",
                make=make,
                hint=_APPLY.replace("sets", "makes"),
                evidence=lambda there: {"bucket": bucket.name} if there else {},
                failed=lambda error: _refused(name, f"{bucket.name} cannot be looked at or made", error),
            )
        )
        if there:
            for check in _settings(settings, names, bucket, client, survey.make):
                await survey.check(check)
            survey.findings += _statements_of_others(f"buckets.{bucket.label}", bucket, client)
    finally:
        client.close()


def _refused(id: str, what: str, refused: Exception, level: Level = "error") -> Finding | None:
    """The finding that S3's answer is; None where it is something else that went wrong."""
    if not isinstance(refused, Refused):
        return None
    if refused.denied:
        hint = "Give `memoryctl provision` credentials that may: S3_ADMIN_ACCESS_KEY and S3_ADMIN_SECRET."
        return Finding(id, level, "unavailable", f"{what}; the credentials may not.", hint, {"state": "denied"})
    if refused.unknown or refused.status == 400:
        text = f"{what}; the server answered {refused.code or refused.status}."
        hint = "The server does not have this, or not for these values. Protect what it would have protected by other means."
        return Finding(id, level, "fail", text, hint, {"state": "unsupported", "code": refused.code})
    if refused.code in ("BucketAlreadyExists", "BucketNotEmpty"):
        hint = "Another account has a bucket of this name: set BUCKET_PREFIX, S3_BUCKET or ARCHIVE_BUCKET."
        return Finding(id, "error", "fail", f"{what}: the name is taken.", hint, {"state": "drift"})
    return Finding(id, level, "fail", f"{what}: {refused}.", "See the server's own log.", {"state": "drift"})


def _settings(settings: Settings, names: Names, bucket: Bucket, client: Any, make: bool) -> Iterator[Check[Any]]:
    """In the order in which they are set: without a lock there is no point in the rest, and replication needs versions."""

    def setting(
        name: str,
        what: str,
        wanted: Any,
        look: Callable[[], Any],
        fits: Callable[[Any], bool],
        put: Callable[[Any], None] | None,
        source: str = "",
        level: Level = "error",
    ) -> Check[Any]:
        """``look``: None when there is none. ``put`` is given what there is; None: a person's."""
        check, about = f"buckets.{bucket.label}.{name}", f"{bucket.name}: {what}"

        def says(found: Any) -> str:
            if fits(found):
                return f"{about}: as it should be."
            return f"{about}: not as it should be." if found else f"{about}: missing."

        def restore(found: Any) -> Made[Any]:
            assert put is not None  # noqa: S101 - narrows the type
            put(found)
            return Made(look(), (about,))

        return Check(
            id=check,
            source=source,
            level=level,
            look=look,
            fits=fits,
            says=says,
            make=None if put is None else restore,
            restores=True,
            hint=_APPLY if put is not None else _NO_LOCK if name == "lock" else "Apply leaves it to a person.",
            evidence=lambda found: {} if fits(found) else {"found": found, "wanted": wanted},
            failed=lambda error: _refused(check, f"{about}: it cannot be {'set' if make else 'seen'}", error, level),
        )

    name, archive = bucket.name, bucket.kind == "archive"
    # What servers other than AWS may not have is a warning there.
    softly: Level = "error" if names.dialect == "aws" else "warning"
    yield setting(
        "lock", "Object Lock", "Enabled", lambda: s3.get_lock(client, name) is not None, bool, None, guide.LOCK
    )
    yield setting(
        "versioning",
        "versioning",
        "Enabled",
        lambda: s3.get_versioning(client, name),
        lambda found: bool(found == "Enabled"),
        lambda _: s3.put_versioning(client, name),
        guide.LOCK,
    )
    retention = {"Mode": "COMPLIANCE", "Days": settings.archive_lock_days} if archive else {}

    def retain(_: Any) -> None:
        if s3.get_lock(client, name) is not None:  # else the finding on Object Lock says what is to be done
            s3.put_lock(client, name, retention)

    yield setting(
        "retention",
        "the default retention",
        retention or None,
        lambda: s3.get_lock(client, name),
        lambda found: _long_enough(found, settings.archive_lock_days) if archive else not found,
        retain if archive else None,
        guide.RETENTION if archive else "",
        "error" if archive else "warning",
    )
    public = documents.public_access(names.dialect)
    yield setting(
        "public",
        "the block of public access",
        public,
        lambda: s3.get_public_access(client, name),
        lambda found: bool(found == public),
        lambda _: s3.put_public_access(client, name, public),
        level=softly,
    )
    encryption = {"SSEAlgorithm": "aws:kms"} | ({"KMSMasterKeyID": bucket.key} if bucket.key else {})
    yield setting(
        "encryption",
        "the default encryption (SSE-KMS)",
        encryption,
        lambda: s3.get_encryption(client, name),
        lambda found: bool(found and encryption.items() <= found.items()),
        lambda _: s3.put_encryption(client, name, encryption),
        guide.ENCRYPTION,
        softly,
    )
    rules = documents.lifecycle(bucket.kind)
    yield setting(
        "lifecycle",
        "the lifecycle",
        rules,
        lambda: s3.get_lifecycle(client, name),
        lambda found: bool(plain(found or []) == plain(rules)),
        lambda _: s3.put_lifecycle(client, name, rules),
        guide.LIFECYCLE,
    )
    policy = documents.bucket_policy(names, bucket.kind, name)
    yield setting(
        "policy",
        "the policy",
        policy,
        lambda: s3.get_policy(client, name),
        lambda found: bool(plain(_ours(found)) == plain(policy["Statement"])),
        lambda found: s3.put_policy(client, name, {**policy, "Statement": policy["Statement"] + foreign(found)}),
        guide.POLICY,
    )
    tags = {"application": "memory-layer", "purpose": bucket.kind, "service-env": settings.service_env}
    yield setting(
        "tags",
        "the tags",
        tags,
        lambda: s3.get_tags(client, name),
        lambda found: bool(tags.items() <= (found or {}).items()),
        lambda found: s3.put_tags(client, name, {**(found or {}), **tags}),
        level="warning",
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
        yield setting(
            "replication",
            f"the replication to {bucket.replica}",
            wanted,
            lambda: s3.get_replication(client, name),
            lambda found: bool(found and plain(found) == plain(wanted)),
            lambda _: s3.put_replication(client, name, wanted),
            guide.REPLICATION,
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


def _statements_of_others(id: str, bucket: Bucket, client: Any) -> list[Finding]:
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
        text = f"The policy of {bucket.name} lets everybody do something."
        hint = "Remove these statements, unless a condition narrows them."
        return [Finding(f"{id}.policy.others", "error", "fail", text, hint, {"state": "drift", "statements": open_})]
    text = f"The policy of {bucket.name} has {len(found)} statements of others, which apply keeps."
    return [note(f"{id}.policy.others", text, "Check that they are meant.", evidence)]
