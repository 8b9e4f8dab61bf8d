"""A client of S3 and what its failures mean. Codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html.

A body's SHA-256 goes with it twice where S3_ENDPOINT is set: as x-amz-checksum-sha256, which is kept, and in the signature
(x-amz-content-sha256), which is what older servers check (Ceph before 19 does not know the former). AWS checks the former.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from memory_layer.config import Settings
from memory_layer.errors import MemoryLayerError, ObjectStoreUnavailable, UsageError
from memory_layer.stores.remote import aws
from memory_layer.stores.remote.faults import Fault, translated
from memory_layer.stores.remote.urls import service_url

T = TypeVar("T")

CONNECTIONS: Final = 16  # and threads that wait for S3, in one process and bucket
CONNECT, READ = 5.0, 60.0  # seconds that one try may take; READ: until the next bytes
TRIES: Final = 3  # of one request, with the pauses of botocore's standard mode between them

_CODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.]{0,63}")
_ABSENT: Final = frozenset({
    "NoSuchBucket", "NoSuchBucketPolicy", "NoSuchLifecycleConfiguration", "NoSuchTagSet", "NoSuchPublicAccessBlockConfiguration",
    "ObjectLockConfigurationNotFoundError", "ReplicationConfigurationNotFoundError", "NoSuchKey", "NoSuchVersion",
    "ServerSideEncryptionConfigurationNotFoundError", "NoSuchObjectLockConfiguration",
})  # fmt: skip
_DENIALS: Final = frozenset({"AccessDenied", "AllAccessDisabled", "Forbidden", "UnauthorizedAccess"})
UNKNOWN_CALLS: Final = frozenset({"NotImplemented", "MethodNotAllowed", "XNotImplemented", "UnsupportedOperation"})
_EXPIRED: Final = Fault("the credentials have expired. Renew them", True)
_SKEW: Final = Fault("the clocks of this machine and of S3 differ by more than 15 minutes. Check NTP", True)
_UNKNOWN_KEY: Final = Fault("S3 does not know the access key. Check S3_ACCESS_KEY", False)
_SIGNATURE: Final = Fault(
    "S3 does not accept the signature. Check S3_SECRET, and that S3_ENDPOINT is reached without a proxy that changes requests",
    False,
)
_DENIED: Final = Fault(
    "the credentials may not. The role memory-layer-writer needs s3:GetObject, s3:GetObjectVersion, s3:PutObject, s3:PutObjectTagging, "
    "s3:ListBucket, s3:ListBucketVersions, s3:AbortMultipartUpload, s3:ListBucketMultipartUploads and the Get and Put of ObjectRetention, "
    "ObjectLegalHold and ObjectVersionTagging; `memoryctl provision plan buckets --policies DIR` writes its policy",
    False,
)
_THROTTLED: Final = Fault("S3 throttles the calls", True)
_CORRUPT: Final = Fault("the bytes were changed on the way to S3, which refused them", True)
_COLD: Final = Fault("the object is in a cold storage class. Restore it first", False)
FAULTS: Final = {
    "NoSuchBucket": Fault(
        "there is no bucket of this name. Check S3_BUCKET or ARCHIVE_BUCKET, or make it with `memoryctl provision apply buckets`",
        False,
    ),
    "PermanentRedirect": Fault("the bucket is in another region. Check S3_REGION", False),
    "AuthorizationHeaderMalformed": Fault("S3 expects another region. Check S3_REGION", False),
    "IllegalLocationConstraintException": Fault("the bucket is in another region. Check S3_REGION", False),
    "InvalidBucketName": Fault("S3_BUCKET or ARCHIVE_BUCKET is no name of a bucket", False),
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "InvalidToken": _UNKNOWN_KEY,
    "SignatureDoesNotMatch": _SIGNATURE,
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": _SKEW,
    "RequestExpired": _SKEW,
    "SlowDown": _THROTTLED,
    "503": _THROTTLED,  # an answer to HEAD has no body
    "Throttling": _THROTTLED,
    "ThrottlingException": _THROTTLED,
    "TooManyRequests": _THROTTLED,
    "BadDigest": _CORRUPT,
    "InvalidDigest": _CORRUPT,
    "XAmzContentSHA256Mismatch": _CORRUPT,
    "XAmzContentChecksumMismatch": _CORRUPT,
    "IncompleteBody": Fault("the connection was cut before all bytes were sent", True),
    "RequestTimeout": Fault("the connection stood still for too long", True),
    "QuotaExceeded": Fault("the quota of the bucket or user is used up", True),
    "InvalidObjectState": _COLD,
    "MissingUploadObjectWithObjectLockHeaders": Fault(
        "the bucket has no Object Lock; only one made with it can", False
    ),
    "ObjectLockConfigurationNotFoundError": Fault("the bucket has no Object Lock; only one made with it can", False),
    "KMS.NotFoundException": Fault("there is no KMS key as in S3_KMS_KEY_ID", False),
    "KMS.DisabledException": Fault("the KMS key in S3_KMS_KEY_ID is disabled", False),
}


S3: Final = aws.Service(
    "s3",
    "S3",
    needs="What lies in S3",
    region="The region of S3 is not known. Set S3_REGION.",
    place="S3_REGION or S3_ENDPOINT is wrong",
    certificate="S3_ENDPOINT",
    reach="S3_ENDPOINT and S3_REGION",
    malformed="the bucket's or the object's name cannot be one of S3",
    credentials="there are no credentials. Set S3_ACCESS_KEY and S3_SECRET, or give this process a role",
    faults=FAULTS,
)


class Refused(Exception):
    """A call of S3 that failed, without S3's own text: that may repeat what it was sent. ``status``: 0 without an answer. ``locks``: the
    text named a lock as the reason."""

    def __init__(self, code: str, status: int, fault: Fault, *, locks: bool = False) -> None:
        # An answer to HEAD has no body: boto3 then gives the status as the code.
        super().__init__(
            f"S3 answered {status} {'' if code == str(status) else code}".rstrip() if status else fault.text
        )
        self.code, self.status, self.fault, self.locks = code, status, fault, locks

    @property
    def absent(self) -> bool:
        """There is no such bucket, object, version or setting."""
        return self.code in _ABSENT or (self.status == 404 and self.code in ("404", "NotFound"))

    @property
    def denied(self) -> bool:
        return self.code in _DENIALS or (self.status == 403 and self.code == "403")

    @property
    def unknown(self) -> bool:
        """The server has no such feature."""
        return self.code in UNKNOWN_CALLS or self.status in (405, 501)


class Login(NamedTuple):
    """Where and as whom. Without a key: AWS's own chain. For errors: ``settings``, where its key and secret are set, and ``neither``,
    what it means that neither is."""

    endpoint: str | None
    region: str | None
    key: str | None
    secret: str | None
    settings: str = "an access key of S3 and its secret"
    neither: str = "for AWS's own chain"


def connect(settings: Settings, *, eraser: bool = False) -> Any:
    """A boto3 client of S3 for objects. Reads files, asks nothing of the network. Raises UsageError and PolicyRefused."""
    endpoint, region = settings.s3_endpoint, settings.s3_region
    if eraser:
        pair, names = (
            (settings.s3_eraser_access_key, settings.s3_eraser_secret),
            "S3_ERASER_ACCESS_KEY and S3_ERASER_SECRET",
        )
        login = Login(endpoint, region, *pair, names, "and nothing is deleted from S3")
    else:
        login = Login(endpoint, region, settings.s3_access_key, settings.s3_secret, "S3_ACCESS_KEY and S3_SECRET")
    # Over AWS's own https a body's checksum is enough; other servers may not know it, and check what is signed.
    return client_of(settings, login, read=READ, sign_bodies=settings.s3_endpoint is not None)


def client_of(settings: Settings, login: Login, *, read: float, sign_bodies: bool) -> Any:
    """A boto3 client of S3; ``read``: seconds that one try waits for the next bytes. Raises UsageError and PolicyRefused."""
    if bool(login.key) != bool(login.secret):
        raise UsageError(f"Of {login.settings} one is set alone. Set both, or neither {login.neither}.")
    endpoint = service_url("S3_ENDPOINT", login.endpoint, settings) if login.endpoint else None
    return aws.open_client(
        S3,
        endpoint=endpoint,
        region=login.region,
        fallback="us-east-1" if endpoint else None,
        key=login.key,
        secret=login.secret,
        connect_timeout=CONNECT,
        read_timeout=read,
        retries={"total_max_attempts": TRIES, "mode": "standard"},
        max_pool_connections=CONNECTIONS,
        signature_version="s3v4",
        # The checksums are given with each request, in headers: older servers cannot read the trailers that botocore would add.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"payload_signing_enabled": sign_bodies, "addressing_style": "path" if endpoint else "auto"},
    )


def asked(function: Callable[[], T]) -> T:
    """What ``function`` returns. Raises Refused alone, whatever the library raised."""
    return translated(function, (*aws.errors(), KeyError), explain)


def unavailable(what: str, refused: Refused) -> MemoryLayerError:
    return ObjectStoreUnavailable(f"S3 did not {what}: {refused.fault.text}.")


def explain(error: Exception) -> Refused:
    """What a failed call means, in words that repeat nothing of what was sent."""
    if isinstance(error, KeyError):
        return Refused("", 0, Fault("its answer cannot be understood", True))
    code, status, message = aws.answer_of(error)
    fault = aws.explain(S3, error)
    if code.startswith("KMS.") and code not in FAULTS:
        fault = Fault("KMS refused the key in S3_KMS_KEY_ID", False)
    # Two words, since a denial may quote the ARN of the object, which has no blanks.
    locks = "object lock" in message.lower()
    return Refused(code if _CODE.fullmatch(code) else "", status, fault, locks=locks)
