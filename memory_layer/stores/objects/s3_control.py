"""Buckets of S3 as `memoryctl provision` and the lock probe see them: their settings as plain data, and the few calls on single
versions that a probe needs. Calls: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html.

Every failure is a ``Refused``; nothing here decides what it means. Blocking: from an event loop, in a thread.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from memory_layer.config import Settings
from memory_layer.errors import DependencyUnavailable, UsageError
from memory_layer.stores.objects.s3_client import UNKNOWN_CALLS, Login, Refused, client_of, explain
from memory_layer.stores.remote import aws
from memory_layer.stores.remote.faults import translated

T = TypeVar("T")

READ: Final = 30.0  # seconds until the next bytes of one try
_CREDENTIALS: Final[Mapping[str, str]] = {
    "InvalidAccessKeyId": "S3 does not know the access key of the credentials",
    "InvalidToken": "S3 does not know the session token of the credentials",
    "SignatureDoesNotMatch": "S3 does not accept the signature: the secret is wrong",
    "ExpiredToken": "the credentials have expired. Renew them",
    "RequestTimeTooSkewed": "the clocks of this machine and of S3 differ by more than 15 minutes. Check NTP",
    "PermanentRedirect": "the bucket is in another region. Check S3_REGION and S3_REPLICA_REGION",
    "AuthorizationHeaderMalformed": "S3 expects another region. Check S3_REGION and S3_REPLICA_REGION",
}


def connect(settings: Settings, login: Login) -> Any:
    """A boto3 client of S3. Reads files, asks nothing of the network. Raises UsageError, PolicyRefused."""
    return client_of(settings, login, read=READ, sign_bodies=True)


def account_of(login: Login) -> str:
    """The number of the AWS account that the credentials belong to. Raises UsageError, DependencyUnavailable."""
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.session.Session()
        client = session.client(
            "sts",
            region_name=login.region or session.region_name or "us-east-1",
            aws_access_key_id=login.key,
            aws_secret_access_key=login.secret,
        )
    except (BotoCoreError, ValueError) as error:
        raise UsageError(
            f"AWS cannot be asked for the account ({type(error).__name__}). Set S3_ROLE_ARN_PREFIX."
        ) from None
    try:
        return str(asked("name the account", client.get_caller_identity)["Account"])
    except Refused:
        raise UsageError("AWS did not name the account of the credentials. Set S3_ROLE_ARN_PREFIX.") from None


def asked(what: str, function: Callable[[], T]) -> T:
    """What ``function`` returns. Raises Refused; UsageError where the credentials are wrong, DependencyUnavailable without an answer."""
    return translated(function, aws.errors(), partial(_explained, what))


def _explained(what: str, error: Exception) -> Exception:
    from botocore.exceptions import ClientError, NoCredentialsError, ParamValidationError

    if isinstance(error, NoCredentialsError):
        return UsageError(f"S3 did not {what}: there are no credentials. Set S3_ADMIN_ACCESS_KEY and S3_ADMIN_SECRET.")
    if isinstance(error, ParamValidationError):
        return UsageError(f"S3 cannot {what}: a bucket's name or a setting is no valid one.")
    if not isinstance(error, ClientError):
        return DependencyUnavailable(f"S3 did not {what}: it cannot be reached ({type(error).__name__}).")
    refused = explain(error)
    code, status = refused.code, refused.status
    if code in _CREDENTIALS:
        return UsageError(f"S3 did not {what}: {_CREDENTIALS[code]}.")
    if (status >= 500 and code not in UNKNOWN_CALLS and status != 501) or code in ("SlowDown", "Throttling"):
        return DependencyUnavailable(f"S3 did not {what}: it answered {status}. Repeat the command.")
    return refused


def _or_none(what: str, function: Callable[[], T]) -> T | None:
    try:
        return asked(what, function)
    except Refused as refused:
        if refused.absent:
            return None
        raise


# --- a bucket's settings: each ``get`` is None where there is none


def exists(client: Any, bucket: str) -> bool:
    # A HEAD would be answered without a body, and so without the reason.
    return _or_none("look for the bucket", lambda: client.get_bucket_versioning(Bucket=bucket)) is not None


def create(client: Any, bucket: str) -> None:
    """With Object Lock, which turns versioning on. A bucket that this account has already is fine."""
    region = client.meta.region_name
    more = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}

    def make(more: Mapping[str, Any]) -> None:
        asked("make the bucket", lambda: client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True, **more))

    try:
        make(more)
    except Refused as refused:
        if refused.code == "BucketAlreadyOwnedByYou":
            return
        if refused.code != "InvalidLocationConstraint":
            raise
        make({})  # a server of its own has one place, whatever the region is called


def get_lock(client: Any, bucket: str) -> dict[str, Any] | None:
    """``{"Mode", "Days" or "Years"}`` of the default retention, empty without one; None: no Object Lock."""
    found = _or_none("show Object Lock", lambda: client.get_object_lock_configuration(Bucket=bucket))
    configuration = (found or {}).get("ObjectLockConfiguration") or {}
    if configuration.get("ObjectLockEnabled") != "Enabled":
        return None
    retention = (configuration.get("Rule") or {}).get("DefaultRetention") or {}
    return {key: value for key, value in retention.items() if value}  # some servers name both units, one of them 0


def put_lock(client: Any, bucket: str, retention: Mapping[str, Any]) -> None:
    configuration: dict[str, Any] = {"ObjectLockEnabled": "Enabled"}
    if retention:
        configuration["Rule"] = {"DefaultRetention": dict(retention)}
    asked(
        "set the default retention",
        lambda: client.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration=configuration),
    )


def get_versioning(client: Any, bucket: str) -> str | None:
    """``Enabled`` or ``Suspended``."""
    found = _or_none("show versioning", lambda: client.get_bucket_versioning(Bucket=bucket))
    return (found or {}).get("Status")


def put_versioning(client: Any, bucket: str) -> None:
    wanted = {"Status": "Enabled"}
    asked("turn versioning on", lambda: client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=wanted))


def get_public_access(client: Any, bucket: str) -> dict[str, bool] | None:
    found = _or_none("show public access", lambda: client.get_public_access_block(Bucket=bucket))
    return None if found is None else dict(found.get("PublicAccessBlockConfiguration") or {})


def put_public_access(client: Any, bucket: str, wanted: Mapping[str, bool]) -> None:
    asked(
        "block public access",
        lambda: client.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict(wanted)),
    )


def get_encryption(client: Any, bucket: str) -> dict[str, Any] | None:
    """``SSEAlgorithm``, and ``KMSMasterKeyID`` where a key is named."""
    found = _or_none("show the encryption", lambda: client.get_bucket_encryption(Bucket=bucket))
    rules = ((found or {}).get("ServerSideEncryptionConfiguration") or {}).get("Rules") or []
    return dict(rules[0].get("ApplyServerSideEncryptionByDefault") or {}) if rules else None


def put_encryption(client: Any, bucket: str, wanted: Mapping[str, Any]) -> None:
    rule = {"ApplyServerSideEncryptionByDefault": dict(wanted), "BucketKeyEnabled": True}
    asked(
        "set the encryption",
        lambda: client.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]}),
    )


def get_lifecycle(client: Any, bucket: str) -> list[dict[str, Any]] | None:
    found = _or_none("show the lifecycle", lambda: client.get_bucket_lifecycle_configuration(Bucket=bucket))
    return None if found is None else [dict(rule) for rule in found.get("Rules") or []]


def put_lifecycle(client: Any, bucket: str, rules: list[dict[str, Any]]) -> None:
    wanted = {"Rules": rules}
    asked(
        "set the lifecycle",
        lambda: client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=wanted),
    )


def get_policy(client: Any, bucket: str) -> dict[str, Any] | None:
    found = _or_none("show the policy", lambda: client.get_bucket_policy(Bucket=bucket))
    if found is None:
        return None
    policy = json.loads(found["Policy"])
    return policy if isinstance(policy, dict) else {}


def put_policy(client: Any, bucket: str, policy: Mapping[str, Any]) -> None:
    asked("set the policy", lambda: client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy)))


def get_tags(client: Any, bucket: str) -> dict[str, str]:
    found = _or_none("show the tags", lambda: client.get_bucket_tagging(Bucket=bucket))
    return {tag["Key"]: tag["Value"] for tag in (found or {}).get("TagSet") or []}


def put_tags(client: Any, bucket: str, tags: Mapping[str, str]) -> None:
    wanted = {"TagSet": [{"Key": key, "Value": value} for key, value in tags.items()]}
    asked("set the tags", lambda: client.put_bucket_tagging(Bucket=bucket, Tagging=wanted))


def get_replication(client: Any, bucket: str) -> dict[str, Any] | None:
    found = _or_none("show the replication", lambda: client.get_bucket_replication(Bucket=bucket))
    configuration = dict((found or {}).get("ReplicationConfiguration") or {})
    return configuration if configuration.get("Rules") else None


def put_replication(client: Any, bucket: str, wanted: Mapping[str, Any]) -> None:
    asked(
        "set the replication",
        lambda: client.put_bucket_replication(Bucket=bucket, ReplicationConfiguration=dict(wanted)),
    )


# --- single versions


class Seen(NamedTuple):
    """A version as a HEAD shows it."""

    mode: str | None
    until: dt.datetime | None
    replication: str | None  # PENDING, COMPLETED, FAILED, REPLICA


class Line(NamedTuple):
    """A line of a listing of versions."""

    key: str
    version_id: str
    modified: dt.datetime
    latest: bool
    marker: bool


def put(client: Any, bucket: str, key: str, body: bytes, mode: str, until: dt.datetime) -> str:
    """The version id of what was written, locked on the PUT itself."""
    import base64
    import hashlib

    made = asked(
        "take a canary",
        lambda: client.put_object(
            Bucket=bucket,
            Key=key,
            Body=body,
            # S3 demands one of a PUT with a lock; every server checks this one.
            ContentMD5=base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode(),
            ObjectLockMode=mode,
            ObjectLockRetainUntilDate=until,
        ),
    )
    return str(made.get("VersionId") or "null")


def head(client: Any, bucket: str, key: str, version_id: str) -> Seen | None:
    """None where there is no such version."""
    found = _or_none("show an object", lambda: client.head_object(Bucket=bucket, Key=key, VersionId=version_id))
    if found is None:
        return None
    return Seen(found.get("ObjectLockMode"), found.get("ObjectLockRetainUntilDate"), found.get("ReplicationStatus"))


def read(client: Any, bucket: str, key: str, version_id: str, limit: int) -> bytes:
    """The first ``limit`` bytes."""

    def get() -> bytes:
        answer = client.get_object(Bucket=bucket, Key=key, VersionId=version_id)
        with answer["Body"] as body:
            return bytes(body.read(limit))

    return asked("give an object", get)


def erase(client: Any, bucket: str, key: str, version_id: str, *, bypass: bool) -> None:
    more = {"BypassGovernanceRetention": True} if bypass else {}
    asked("delete a version", lambda: client.delete_object(Bucket=bucket, Key=key, VersionId=version_id, **more))


def retain(client: Any, bucket: str, key: str, version_id: str, mode: str, until: dt.datetime, *, bypass: bool) -> None:
    more = {"BypassGovernanceRetention": True} if bypass else {}
    asked(
        "change a retention",
        lambda: client.put_object_retention(
            Bucket=bucket, Key=key, VersionId=version_id, Retention={"Mode": mode, "RetainUntilDate": until}, **more
        ),
    )


def pages(client: Any, bucket: str, after: str | None = None, prefix: str = "") -> Iterator[list[Line]]:
    """Every version and delete marker, page by page, by key, from behind the key ``after``."""
    marks: dict[str, str] = {} if after is None else {"KeyMarker": after}
    while True:
        ask = dict(marks)
        found = asked("list versions", lambda: client.list_object_versions(Bucket=bucket, Prefix=prefix, **ask))  # noqa: B023 - called at once
        yield sorted(
            [_line(entry, marker=False) for entry in found.get("Versions") or []]
            + [_line(entry, marker=True) for entry in found.get("DeleteMarkers") or []]
        )
        if not found.get("IsTruncated"):
            return
        marks = {"KeyMarker": found["NextKeyMarker"], "VersionIdMarker": found["NextVersionIdMarker"]}


def _line(entry: Mapping[str, Any], *, marker: bool) -> Line:
    return Line(entry["Key"], str(entry["VersionId"]), entry["LastModified"], bool(entry["IsLatest"]), marker)
