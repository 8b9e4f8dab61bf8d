"""AWS KMS. Calls: https://docs.aws.amazon.com/kms/latest/APIReference/API_Sign.html and API_GetPublicKey.html.

The service's credentials need kms:GetPublicKey and kms:Sign on the key, nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from memory_layer.audit.seal import ecdsa_raw
from memory_layer.config import Settings
from memory_layer.errors import UsageError, ValidationError
from memory_layer.stores.protocols import Signer
from memory_layer.stores.remote import aws
from memory_layer.stores.remote.faults import Fault
from memory_layer.stores.remote.threads import BUDGET, CONNECT, READ, THREADS, Connection
from memory_layer.stores.remote.urls import service_url
from memory_layer.stores.signers.remote import RemoteSigner


class Scheme(NamedTuple):
    """How a key of one spec signs: our name, KMS's name, whether KMS is given the text or its SHA-256."""

    algorithm: str
    kms_algorithm: str
    message_type: str


_RSA: Final = Scheme("rsa-pss-sha256", "RSASSA_PSS_SHA_256", "DIGEST")
SCHEMES: Final = {
    "ECC_NIST_P256": Scheme("ecdsa-p256-sha256", "ECDSA_SHA_256", "DIGEST"),
    "RSA_2048": _RSA,
    "RSA_3072": _RSA,
    "RSA_4096": _RSA,
    # KMS's only plain Ed25519 takes the text itself, at most 4,096 bytes; a seal text has fewer than 1,000.
    "ECC_NIST_EDWARDS25519": Scheme("ed25519", "ED25519_SHA_512", "RAW"),
}
RAW_MAX: Final = 4096  # bytes

_FAULTS: Final = {
    "NotFoundException": Fault(
        "there is no such key in this account and region. Check AUDIT_KMS_KEY_ID and KMS_REGION, or make the key with "
        "`memoryctl provision apply keys`",
        False,
    ),
    "InvalidArnException": Fault("AUDIT_KMS_KEY_ID holds no key id, ARN or alias/name", False),
    "ValidationException": Fault("AUDIT_KMS_KEY_ID holds no key id, ARN or alias/name", False),
    "DisabledException": Fault("the key is disabled. Enable it, or name another in AUDIT_KMS_KEY_ID", False),
    "KMSInvalidStateException": Fault(
        "the key is in no state to sign (waiting to be deleted, or for its key material). Cancel the deletion, or name another "
        "key in AUDIT_KMS_KEY_ID",
        False,
    ),
    "InvalidKeyUsageException": Fault("the key is not made for signatures (KeyUsage SIGN_VERIFY)", False),
    "UnsupportedOperationException": Fault(
        "the key is not made for signatures: use one of KeyUsage SIGN_VERIFY and KeySpec ECC_NIST_P256", False
    ),
    "AccessDeniedException": Fault(
        "the AWS credentials may not. Signing needs kms:GetPublicKey and kms:Sign on the key; `memoryctl provision` needs "
        "kms:DescribeKey, kms:CreateKey, kms:CreateAlias, kms:ListResourceTags and kms:TagResource",
        False,
    ),
    "OptInRequired": Fault("the AWS account is not subscribed to KMS in this region", False),
    "ThrottlingException": Fault("AWS throttles the calls. Raise the account's quota of KMS requests", True),
    "LimitExceededException": Fault("a quota of the AWS account is used up", True),
    "KeyUnavailableException": Fault("the key is not available at the moment", True),
}


KMS: Final = aws.Service(
    "kms",
    "KMS",
    needs="AUDIT_SIGNER=kms",
    region="The AWS region is not known. Set KMS_REGION, or the key's ARN as AUDIT_KMS_KEY_ID.",
    place="KMS_REGION or KMS_ENDPOINT is wrong",
    certificate="KMS_ENDPOINT",
    reach="KMS_ENDPOINT and KMS_REGION",
    malformed="AUDIT_KMS_KEY_ID holds no key id, ARN or alias/name",
    faults=_FAULTS,
)


async def open_kms_signers(settings: Settings) -> list[Signer]:
    """A signer for each key that AUDIT_KMS_KEY_ID names, in its order. Raises UsageError, PolicyRefused, SignerUnavailable."""
    client = await asyncio.to_thread(connect, settings)
    connection = open_connection(client)
    try:
        return list(await asyncio.gather(*(_open(connection, client, key) for key in key_ids(settings))))
    except BaseException:
        await connection.close()
        raise


def key_ids(settings: Settings) -> list[str]:
    """What AUDIT_KMS_KEY_ID names, or the alias that `memoryctl provision apply keys` makes."""
    named = [part.strip() for part in (settings.audit_kms_key_id or "").split(",")]
    return [key for key in named if key] or [f"alias/memory-layer-audit-{settings.service_env}"]


def connect(settings: Settings, read: float = READ) -> Any:
    """A boto3 client of KMS, with AWS's own chain of credentials; it waits ``read`` seconds for an answer.

    Reads files. Raises UsageError and PolicyRefused.
    """
    endpoint = service_url("KMS_ENDPOINT", settings.kms_endpoint, settings) if settings.kms_endpoint else None
    return aws.open_client(
        KMS,
        endpoint=endpoint,
        region=settings.kms_region or _region(key_ids(settings)[0]),
        connect_timeout=CONNECT,
        read_timeout=read,
        # One try: a Connection has the budget for more, for all of them together.
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=THREADS,
    )


def open_connection(client: Any, budget: float = BUDGET) -> Connection:
    """The client behind a Connection, whose close it is closed with."""
    return Connection("KMS", partial(aws.explain, KMS), aws.errors(), client.close, budget)


def _region(key: str) -> str | None:
    """The region of an ARN: arn:aws:kms:REGION:account:key/id."""
    parts = key.split(":")
    return parts[3] if len(parts) >= 6 and parts[0] == "arn" and parts[2] == "kms" and parts[3] else None


async def _open(connection: Connection, client: Any, key: str) -> RemoteSigner:
    answer = await connection.ask(f"give the public key of {key}", _public_key(client, key))
    spec, usage, arn, der = answer
    scheme = SCHEMES.get(spec)
    if usage != "SIGN_VERIFY" or scheme is None:
        raise UsageError(
            f"The KMS key {key} has KeyUsage {usage} and KeySpec {spec}, and seals need SIGN_VERIFY and one of "
            f"{', '.join(SCHEMES)}. Name another in AUDIT_KMS_KEY_ID; `memoryctl provision apply keys` makes one."
        )
    # The ARN, not the alias: an alias that is moved to another key must not change who signs under this public key.
    return RemoteSigner(connection, key, scheme.algorithm, der, partial(_sign, client, arn, scheme))


def _public_key(client: Any, key: str) -> Callable[[], tuple[str, str, str, bytes]]:
    def ask() -> tuple[str, str, str, bytes]:
        answer = client.get_public_key(KeyId=key)
        # KMS-compatible servers may know the spec by the name that it had until 2021 alone; AWS answers with both.
        spec = answer.get("KeySpec") or answer["CustomerMasterKeySpec"]
        return str(spec), str(answer["KeyUsage"]), str(answer["KeyId"]), bytes(answer["PublicKey"])

    return ask


def _sign(client: Any, arn: str, scheme: Scheme, message: bytes) -> bytes:
    given = hashlib.sha256(message).digest() if scheme.message_type == "DIGEST" else message
    if not 1 <= len(given) <= RAW_MAX:
        raise ValidationError(f"With an Ed25519 key KMS signs 1 to {RAW_MAX} bytes, and these are {len(given)}.")
    answer = client.sign(
        KeyId=arn, Message=given, MessageType=scheme.message_type, SigningAlgorithm=scheme.kms_algorithm
    )
    signature = bytes(answer["Signature"])
    return ecdsa_raw(signature) if scheme.algorithm == "ecdsa-p256-sha256" else signature
