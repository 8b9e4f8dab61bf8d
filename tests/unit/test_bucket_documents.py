"""Who may do what with the buckets: the documents that `memoryctl provision plan buckets --policies` writes, evaluated as AWS would."""

from __future__ import annotations

import json

import pytest

from memory_layer.ops.provision import bucket_documents as documents
from memory_layer.ops.provision.bucket_documents import BREAK_GLASS, COMPLIANCE, ERASER, READER, WRITER, Kind, Names
from tests.support.policy_language import allowed

ARNS = "arn:aws:iam::123456789012:role/"
KEY = "arn:aws:kms:eu-central-1:123456789012:key/1"
NAMES = Names(
    artifacts="x-memory-prod",
    archive="x-audit-archive-prod",
    replicas={"artifacts": "x-memory-prod-replica", "archive": "x-audit-archive-prod-replica"},
    arns=ARNS,
    lock_days=365,
    keys=(KEY,),
    tls=True,
)
MFA = {"aws:MultiFactorAuthPresent": "true"}
YEAR = {"s3:object-lock-remaining-retention-days": "365"}
DAY = {"s3:object-lock-remaining-retention-days": "1"}
KMS = {"s3:x-amz-server-side-encryption": "aws:kms"}
AES = {"s3:x-amz-server-side-encryption": "AES256"}
OBJECT, CANARY = "audit/1", "probe/lock/1"


def may(role: str, action: str, kind: Kind, key: str | None, context: dict[str, str] | None = None) -> bool:
    bucket = NAMES.archive if kind == "archive" else NAMES.artifacts
    resource = f"arn:aws:s3:::{bucket}" + ("" if key is None else f"/{key}")
    # An administrator's own policy allows everything: what the bucket denies him is denied to everybody.
    everything = {"Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["*"]}]}
    own = everything if role == "admin" else documents.role_policies(NAMES)[role]
    policy = documents.bucket_policy(NAMES, kind, bucket)
    asked = {"aws:SecureTransport": "true"} | (context or {})
    return allowed(ARNS + role, f"s3:{action}", resource, [own], policy, asked)


ALLOWED: list[tuple[str, str, Kind, str | None, dict[str, str]]] = [
    (WRITER, "PutObject", "artifacts", OBJECT, {}),
    (WRITER, "PutObject", "artifacts", OBJECT, KMS),
    (WRITER, "PutObject", "archive", OBJECT, YEAR),
    (WRITER, "PutObject", "archive", OBJECT, {}),  # the bucket's default locks it
    (WRITER, "PutObjectRetention", "archive", OBJECT, YEAR),
    (WRITER, "PutObjectRetention", "artifacts", OBJECT, DAY),
    (WRITER, "PutObjectLegalHold", "artifacts", OBJECT, {}),
    (WRITER, "PutObject", "archive", CANARY, DAY),
    (WRITER, "PutObject", "archive", "vectors/nightly-1/MANIFEST", DAY),
    (WRITER, "GetObjectVersion", "archive", OBJECT, {}),
    (WRITER, "ListBucketVersions", "archive", None, {}),
    (READER, "GetObjectVersion", "archive", OBJECT, {}),
    (READER, "GetObjectRetention", "archive", OBJECT, {}),
    (READER, "ListBucketVersions", "archive", None, {}),
    (COMPLIANCE, "BypassGovernanceRetention", "artifacts", OBJECT, {}),
    (COMPLIANCE, "DeleteObjectVersion", "artifacts", OBJECT, {}),
    (COMPLIANCE, "DeleteObjectVersion", "archive", OBJECT, {}),  # what COMPLIANCE locks S3 itself keeps
    (COMPLIANCE, "PutObjectLegalHold", "archive", OBJECT, {}),
    (ERASER, "DeleteObjectVersion", "artifacts", OBJECT, {}),
    (ERASER, "DeleteObjectVersion", "archive", CANARY, {}),
    (ERASER, "BypassGovernanceRetention", "archive", CANARY, {}),
    (BREAK_GLASS, "PutBucketPolicy", "archive", None, MFA),
    (BREAK_GLASS, "GetObjectVersion", "archive", OBJECT, MFA),
    ("admin", "DeleteObjectVersion", "archive", CANARY, {}),
]
DENIED: list[tuple[str, str, Kind, str | None, dict[str, str]]] = [
    (WRITER, "DeleteObject", "artifacts", OBJECT, {}),
    (WRITER, "DeleteObjectVersion", "artifacts", OBJECT, {}),
    (WRITER, "DeleteObjectVersion", "archive", CANARY, {}),
    (WRITER, "BypassGovernanceRetention", "artifacts", OBJECT, {}),
    (WRITER, "PutObject", "archive", OBJECT, DAY),
    (WRITER, "PutObjectRetention", "archive", OBJECT, DAY),
    (WRITER, "PutObject", "archive", "probe/bound/1", DAY),
    (WRITER, "PutObjectLegalHold", "archive", OBJECT, {}),
    (WRITER, "PutBucketPolicy", "archive", None, {}),
    (WRITER, "PutLifecycleConfiguration", "artifacts", None, {}),
    (WRITER, "PutBucketObjectLockConfiguration", "archive", None, {}),
    (WRITER, "PutObject", "artifacts", OBJECT, AES),
    (WRITER, "PutObject", "artifacts", OBJECT, {"s3:x-amz-server-side-encryption-customer-algorithm": "AES256"}),
    (WRITER, "PutObject", "artifacts", OBJECT, {"aws:SecureTransport": "false"}),
    (READER, "PutObject", "archive", OBJECT, YEAR),
    (READER, "DeleteObjectVersion", "archive", OBJECT, {}),
    (READER, "GetObject", "artifacts", OBJECT, {}),
    (COMPLIANCE, "PutObject", "archive", OBJECT, YEAR),
    (COMPLIANCE, "PutObjectRetention", "archive", OBJECT, DAY),
    (COMPLIANCE, "DeleteBucket", "archive", None, {}),
    (ERASER, "DeleteObject", "artifacts", OBJECT, {}),  # which would only hide it under a marker
    (ERASER, "DeleteObjectVersion", "archive", OBJECT, {}),
    (ERASER, "BypassGovernanceRetention", "artifacts", OBJECT, {}),
    (ERASER, "PutObject", "artifacts", OBJECT, {}),
    (BREAK_GLASS, "PutBucketPolicy", "archive", None, {}),
    (BREAK_GLASS, "PutBucketPolicy", "archive", None, {"aws:MultiFactorAuthPresent": "false"}),
    (BREAK_GLASS, "DeleteObjectVersion", "archive", OBJECT, MFA),
    (BREAK_GLASS, "BypassGovernanceRetention", "archive", OBJECT, MFA),
    (BREAK_GLASS, "DeleteBucket", "archive", None, MFA),
    ("admin", "DeleteObjectVersion", "archive", OBJECT, {}),
    ("admin", "DeleteObject", "artifacts", OBJECT, {}),
    ("admin", "BypassGovernanceRetention", "artifacts", OBJECT, {}),
    ("admin", "DeleteBucket", "archive", None, {}),
    ("admin", "PutObject", "archive", OBJECT, DAY),
    ("admin", "GetObject", "archive", OBJECT, {"aws:SecureTransport": "false"}),
]


@pytest.mark.parametrize(("role", "action", "kind", "key", "context"), ALLOWED)
def test_a_role_may(role: str, action: str, kind: Kind, key: str | None, context: dict[str, str]) -> None:
    assert may(role, action, kind, key, context)


@pytest.mark.parametrize(("role", "action", "kind", "key", "context"), DENIED)
def test_a_role_may_not(role: str, action: str, kind: Kind, key: str | None, context: dict[str, str]) -> None:
    assert not may(role, action, kind, key, context)


def test_who_takes_on_break_glass_needs_a_second_factor() -> None:
    (trust,) = documents.role_policies(NAMES)[f"{BREAK_GLASS}.trust"]["Statement"]
    assert trust["Condition"]["Bool"] == {"aws:MultiFactorAuthPresent": "true"}
    assert all(
        s["Condition"]["Bool"] == {"aws:MultiFactorAuthPresent": "true"}
        for s in documents.role_policies(NAMES)[BREAK_GLASS]["Statement"]
    )


def test_replication_may_delete_nothing() -> None:
    actions = [
        a
        for s in documents.role_policies(NAMES)[documents.REPLICATION]["Statement"]
        for a in s["Action"]
        if "elete" in a
    ]
    assert actions == []


def test_the_documents_fit_what_aws_takes() -> None:
    for kind, name in (("artifacts", NAMES.artifacts), ("archive", NAMES.archive)):
        policy = json.dumps(documents.bucket_policy(NAMES, kind, name))  # type: ignore[arg-type]
        assert len(policy) < 20 * 1024
    for document in documents.role_policies(NAMES).values():
        assert len(json.dumps(document, separators=(",", ":"))) < 6144


@pytest.mark.parametrize("kind", ["artifacts", "archive"])
def test_an_order_of_its_own_is_no_difference(kind: Kind) -> None:
    rules = documents.lifecycle(kind)
    other = [dict(reversed(rule.items())) for rule in reversed(rules)]
    for rule in other:
        if rule["Filter"] == {"Prefix": ""}:
            rule["Prefix"] = rule.pop("Filter")["Prefix"]  # as Ceph gives it
    assert documents.plain(other) == documents.plain(rules)
    other[0]["Status"] = "Disabled"
    assert documents.plain(other) != documents.plain(rules)
