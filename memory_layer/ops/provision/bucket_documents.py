"""How the buckets must be, as data: policies of buckets and roles, lifecycle, replication. Nothing here asks S3 anything.

Two dialects of the policy language. ``aws``: IAM of AWS. ``compatible``: what servers such as Ceph evaluate. They do not know
aws:PrincipalArn, and a condition on a key that a server does not know makes the whole denial void without an error, so there the
excepted principals are named by NotPrincipal; and they refuse a whole policy because of one action that they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["artifacts", "archive"]
Dialect = Literal["aws", "compatible"]
Statement = dict[str, Any]

WRITER: Final = "memory-layer-writer"
READER: Final = "audit-reader"
COMPLIANCE: Final = "compliance"
ERASER: Final = "memory-layer-eraser"
BREAK_GLASS: Final = "break-glass-admin"
REPLICATION: Final = "memory-layer-replication"

VERSION: Final = "2012-10-17"
SID: Final = "MemoryLayer"  # how the Sids of our statements begin; what begins otherwise is somebody else's and stays
PROBED: Final = "probe/"  # what the lock probe writes; it expires with its locks
PROBES: Final = (
    f"{PROBED}lock/"  # canaries: the one place where short locks are allowed, and deletion of what none protects
)
BOUNDS: Final = f"{PROBED}bound/"  # where the probe tries a lock that is too short
SNAPSHOTS: Final = (
    "vectors/"  # of the index, in the archive: no records, with locks of their own length (VECTOR_SNAPSHOT_LOCK_DAYS)
)
HOLD_TAG: Final = "legal_hold"

ARTIFACTS_COLD_DAYS, ARCHIVE_COLD_DAYS, ARCHIVE_DEEP_DAYS, UPLOAD_DAYS = 90, 30, 365, 7

_DELETE: Final = ["s3:DeleteObject", "s3:DeleteObjectVersion"]
_READ_OBJECTS: Final = [
    "s3:GetObject",
    "s3:GetObjectVersion",
    "s3:GetObjectRetention",
    "s3:GetObjectLegalHold",
    "s3:GetObjectTagging",
    "s3:GetObjectVersionTagging",
]
_LIST: Final = ["s3:ListBucket", "s3:ListBucketVersions", "s3:GetBucketLocation"]
_READ_SETTINGS: Final = [
    "s3:GetBucketVersioning",
    "s3:GetBucketObjectLockConfiguration",
    "s3:GetLifecycleConfiguration",
    "s3:GetBucketPolicy",
    "s3:GetReplicationConfiguration",
    "s3:GetBucketPublicAccessBlock",
    "s3:GetBucketTagging",
]
_AWS_SETTINGS: Final = ["s3:GetEncryptionConfiguration"]  # Ceph 16 has not heard of it
_WRITE_SETTINGS: Final = [
    "s3:CreateBucket",
    "s3:PutBucketVersioning",
    "s3:PutBucketObjectLockConfiguration",
    "s3:PutLifecycleConfiguration",
    "s3:PutBucketPolicy",
    "s3:DeleteBucketPolicy",
    "s3:PutReplicationConfiguration",
    "s3:PutBucketPublicAccessBlock",
    "s3:PutBucketTagging",
]


@dataclass(frozen=True, slots=True)
class Names:
    """What the documents name. ``arns``: how ARNs of roles begin, ``keys``: ARNs of KMS keys, where keys are named."""

    artifacts: str
    archive: str
    replicas: Mapping[Kind, str]  # empty without a second region
    arns: str
    lock_days: int
    keys: tuple[str, ...]
    tls: bool  # False: the server is reached by plain HTTP, and a policy that demands TLS would lock everybody out

    @property
    def dialect(self) -> Dialect:
        account = self.arns.split(":")[4]
        return "aws" if len(account) == 12 and account.isdigit() else "compatible"

    def role(self, name: str) -> str:
        return self.arns + name


def _arn(bucket: str, path: str | None = None) -> str:
    return f"arn:aws:s3:::{bucket}" + ("" if path is None else f"/{path}")


def public_access(dialect: Dialect) -> dict[str, bool]:
    """Ceph 16 refuses every PUT into a bucket with BlockPublicAcls, public or not; to ignore such ACLs comes to the same."""
    return {
        "BlockPublicAcls": dialect == "aws",
        "IgnorePublicAcls": True,
        "BlockPublicPolicy": True,
        "RestrictPublicBuckets": True,
    }


# --- policies of buckets


def bucket_policy(names: Names, kind: Kind, bucket: str) -> dict[str, Any]:
    """Who may not, whatever their own policy says; what they may is in the roles' policies."""
    compliance = names.role(COMPLIANCE)
    erasers = [compliance] if kind == "archive" else [compliance, names.role(ERASER)]
    outside_probes = {"NotResource": [_arn(bucket, f"{PROBES}*")]}
    statements = [
        _deny("NoDelete", _DELETE, outside_probes, _except(names, erasers)),
        _deny("NoDeleteBucket", ["s3:DeleteBucket"], {"Resource": [_arn(bucket)]}, _except(names, [])),
        _deny("NoBypass", ["s3:BypassGovernanceRetention"], outside_probes, _except(names, [compliance])),
    ]
    if kind == "archive":
        statements += [
            _deny(
                "NoShortLock",
                ["s3:PutObject", "s3:PutObjectRetention"],
                {"NotResource": [_arn(bucket, f"{PROBES}*"), _arn(bucket, f"{SNAPSHOTS}*")]},
                {
                    "Principal": "*",
                    "Condition": {
                        "NumericLessThan": {"s3:object-lock-remaining-retention-days": str(least_days(names.lock_days))}
                    },
                },
            ),
            _deny("NoHold", ["s3:PutObjectLegalHold"], outside_probes, _except(names, [compliance])),
        ]
    sse = "s3:x-amz-server-side-encryption"
    everything = {"Resource": [_arn(bucket, "*")]}
    statements.append(
        _deny(
            "NoWeakerEncryption",
            ["s3:PutObject"],
            everything,
            # A PUT that names nothing gets the bucket's default, SSE-KMS. The condition names what is weaker, not what is wanted: of
            # a header that is not there servers think differently.
            {"Principal": "*", "Condition": {"StringEquals": {sse: "AES256"}}},
        )
    )
    if names.dialect == "aws":
        statements += [
            _deny(
                "NoCustomerKeys",
                ["s3:PutObject"],
                everything,
                {"Principal": "*", "Condition": {"Null": {f"{sse}-customer-algorithm": "false"}}},
            ),
            _deny(
                "BreakGlassNeedsMfa",
                ["s3:*"],
                {"Resource": [_arn(bucket), _arn(bucket, "*")]},
                {
                    "Principal": "*",
                    "Condition": {
                        "ArnEquals": {"aws:PrincipalArn": names.role(BREAK_GLASS)},
                        "BoolIfExists": {"aws:MultiFactorAuthPresent": "false"},
                    },
                },
            ),
        ]
    if names.tls:
        statements.append(
            _deny(
                "OnlyTls",
                ["s3:*"],
                {"Resource": [_arn(bucket), _arn(bucket, "*")]},
                {"Principal": "*", "Condition": {"Bool": {"aws:SecureTransport": "false"}}},
            )
        )
    return {"Version": VERSION, "Statement": statements}


def least_days(lock_days: int) -> int:
    """The remaining days that a lock must have: a day less, since S3 counts whole days from when the request arrives."""
    return max(lock_days - 1, 1)


def _deny(name: str, actions: Sequence[str], on: Mapping[str, Any], whom: Mapping[str, Any]) -> Statement:
    return {"Sid": SID + name, "Effect": "Deny", **whom, "Action": list(actions), **on}


def _except(names: Names, arns: Sequence[str]) -> dict[str, Any]:
    """Everybody but these."""
    if not arns:
        return {"Principal": "*"}
    if names.dialect == "compatible":
        return {"NotPrincipal": {"AWS": list(arns)}}
    return {"Principal": "*", "Condition": {"ArnNotEquals": {"aws:PrincipalArn": list(arns)}}}


# --- policies of roles


def role_policies(names: Names) -> dict[str, dict[str, Any]]:
    """Name of a file without ``.json`` -> document: what each role may, and for AWS who may take break-glass on, and how."""
    aws = names.dialect == "aws"
    both = [names.artifacts, names.archive]
    all_ = [*both, *names.replicas.values()]
    settings = _READ_SETTINGS + (_AWS_SETTINGS if aws else [])
    uploads = ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    tagging = ["s3:PutObjectTagging", "s3:PutObjectVersionTagging"]
    documents = {
        WRITER: [
            _allow("Look", [*_LIST, "s3:ListBucketMultipartUploads", *settings], both),
            _allow("Read", [*_READ_OBJECTS, "s3:RestoreObject"], both, "*"),
            _allow("Write", [*uploads, *tagging, "s3:PutObjectRetention"], both, "*"),
            _allow("Hold", ["s3:PutObjectLegalHold"], [names.artifacts], "*"),
            *_keys(names, ["kms:GenerateDataKey", "kms:Decrypt"]),
        ],
        READER: [
            _allow("Look", [*_LIST, *settings], [names.archive, *_replica(names, "archive")]),
            _allow("Read", _READ_OBJECTS, [names.archive, *_replica(names, "archive")], "*"),
            *_keys(names, ["kms:Decrypt"]),
        ],
        COMPLIANCE: [
            _allow("Look", [*_LIST, *settings], all_),
            _allow(
                "Override",
                [
                    *_READ_OBJECTS,
                    *_DELETE,
                    "s3:PutObjectRetention",
                    "s3:PutObjectLegalHold",
                    "s3:BypassGovernanceRetention",
                    *tagging,
                ],
                all_,
                "*",
            ),
            *_keys(names, ["kms:Decrypt"]),
        ],
        ERASER: [
            _allow("Look", _LIST, all_),
            _allow("Erase", [*_READ_OBJECTS, "s3:DeleteObjectVersion"], [names.artifacts], "*"),
            _allow(
                "Probe",
                [
                    *_READ_OBJECTS,
                    "s3:DeleteObjectVersion",
                    "s3:PutObject",
                    "s3:PutObjectRetention",
                    "s3:BypassGovernanceRetention",
                ],
                all_,
                f"{PROBES}*",
            ),
            *_keys(names, ["kms:GenerateDataKey", "kms:Decrypt"]),
        ],
        BREAK_GLASS: [
            _with_mfa(
                _allow(
                    "Repair",
                    [*_LIST, *settings, *_WRITE_SETTINGS, *(["s3:PutEncryptionConfiguration"] if aws else [])],
                    all_,
                )
            ),
            _with_mfa(_allow("Read", _READ_OBJECTS, all_, "*")),
        ],
    }
    if aws and names.replicas:
        documents[REPLICATION] = _replication_role(names, both)
    made: dict[str, dict[str, Any]] = {
        name: {"Version": VERSION, "Statement": found} for name, found in documents.items()
    }
    if aws:
        account = names.arns.split(":")[4]
        trusted = {
            "Sid": f"{SID}OnlyWithMfa",
            "Effect": "Allow",
            "Principal": {"AWS": f"arn:aws:iam::{account}:root"},
            "Action": "sts:AssumeRole",
            "Condition": {
                "Bool": {"aws:MultiFactorAuthPresent": "true"},
                "NumericLessThan": {"aws:MultiFactorAuthAge": "3600"},
            },
        }
        made[f"{BREAK_GLASS}.trust"] = {"Version": VERSION, "Statement": [trusted]}
    return made


def _allow(name: str, actions: Sequence[str], buckets: Sequence[str], path: str | None = None) -> Statement:
    return {
        "Sid": SID + name,
        "Effect": "Allow",
        "Action": list(actions),
        "Resource": [_arn(bucket, path) for bucket in buckets],
    }


def _with_mfa(statement: Statement) -> Statement:
    return {**statement, "Condition": {"Bool": {"aws:MultiFactorAuthPresent": "true"}}}


def _keys(names: Names, actions: Sequence[str]) -> list[Statement]:
    if names.dialect != "aws" or not names.keys:
        return []
    return [{"Sid": f"{SID}Keys", "Effect": "Allow", "Action": list(actions), "Resource": list(names.keys)}]


def _replica(names: Names, kind: Kind) -> list[str]:
    return [names.replicas[kind]] if kind in names.replicas else []


def _replication_role(names: Names, sources: Sequence[str]) -> list[Statement]:
    read = [
        "s3:GetObjectVersionForReplication",
        "s3:GetObjectVersionAcl",
        "s3:GetObjectVersionTagging",
        "s3:GetObjectRetention",
        "s3:GetObjectLegalHold",
    ]
    write = ["s3:ReplicateObject", "s3:ReplicateTags"]  # not ReplicateDelete: nothing that is deleted here goes there
    return [
        _allow("Look", ["s3:ListBucket", "s3:GetReplicationConfiguration"], sources),
        _allow("Read", read, sources, "*"),
        _allow("Write", write, list(names.replicas.values()), "*"),
        *_keys(names, ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"]),
    ]


# --- lifecycle and replication


def lifecycle(kind: Kind) -> list[dict[str, Any]]:
    """S3's rules can ask for a tag's value and not for its absence: artifacts go to a cold class by ``legal_hold=false``, which the
    product sets on every PUT. What carries no such tag stays where it is: that costs money, and buries nothing that is held."""
    if kind == "artifacts":
        cold = {
            "ID": "artifacts-cold",
            "Filter": {"Tag": {"Key": HOLD_TAG, "Value": "false"}},
            **_moves((ARTIFACTS_COLD_DAYS, "GLACIER")),
        }
    else:
        moves = _moves((ARCHIVE_COLD_DAYS, "GLACIER_IR"), (ARCHIVE_DEEP_DAYS, "DEEP_ARCHIVE"))
        cold = {"ID": "archive-cold", "Filter": {"Prefix": ""}, **moves}
    rules = [
        cold,
        {
            "ID": "unfinished-uploads",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": UPLOAD_DAYS},
        },
        {
            "ID": "probes",
            "Filter": {"Prefix": PROBED},
            "Expiration": {"Days": 2},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
        },
        {"ID": "probe-markers", "Filter": {"Prefix": PROBED}, "Expiration": {"ExpiredObjectDeleteMarker": True}},
    ]
    return [{"Status": "Enabled", **rule} for rule in rules]


def _moves(*steps: tuple[int, str]) -> dict[str, Any]:
    """The same for versions that a newer one stands over: they are records too."""
    return {
        "Transitions": [{"Days": days, "StorageClass": name} for days, name in steps],
        "NoncurrentVersionTransitions": [{"NoncurrentDays": days, "StorageClass": name} for days, name in steps],
    }


def replication(role: str, replica: str, key: str | None) -> dict[str, Any]:
    """Every object, its lock and its tags; no delete markers, so that hiding an object here hides no replica."""
    destination: dict[str, Any] = {"Bucket": _arn(replica)}
    rule: dict[str, Any] = {
        "ID": "second-region",
        "Priority": 1,
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "DeleteMarkerReplication": {"Status": "Disabled"},
        "Destination": destination,
    }
    if key is not None:
        rule["SourceSelectionCriteria"] = {"SseKmsEncryptedObjects": {"Status": "Enabled"}}
        destination["EncryptionConfiguration"] = {"ReplicaKmsKeyID": key}
    return {"Role": role, "Rules": [rule]}


def plain(value: Any) -> Any:
    """A document so that two that mean the same are equal: S3 gives lists in an order of its own, one item as itself, and the
    prefix of a rule in one of two places."""
    if isinstance(value, Mapping):
        made = {key: plain(part) for key, part in value.items() if part not in ({}, [], None)}
        if "Filter" not in made and "Prefix" in made and "Status" in made:
            made["Filter"] = {"Prefix": made.pop("Prefix")}
        if set(made) & {"Action", "Resource", "NotResource", "AWS"}:
            for key in ("Action", "Resource", "NotResource", "AWS"):
                if isinstance(made.get(key), str):
                    made[key] = [made[key]]
        return made
    if isinstance(value, (list, tuple)):
        return sorted((plain(part) for part in value), key=lambda part: json.dumps(part, sort_keys=True))
    return value
