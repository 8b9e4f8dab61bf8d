"""A stand-in for AWS KMS: the JSON protocol that boto3 speaks, SigV4 checked, true signatures.

Shapes: https://docs.aws.amazon.com/kms/latest/APIReference/. In a process of its own:
``python -m tests.support.kms_server --delay-ms 10`` prints its URL; the key is ``alias/memory-layer-audit-dev``, the credentials
are ACCESS_KEY and SECRET_KEY below.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import hmac
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from tests.support import stand_in

ACCESS_KEY, SECRET_KEY = "AKIAMEMORYLAYER00001", "stand-in/secret+KEY+that+must+never+be+shown"
REGION, ACCOUNT = "eu-central-1", "111122223333"
ALIAS = "alias/memory-layer-audit-dev"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": REGION,
               "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
PSS = padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=32)
PREHASHED = utils.Prehashed(SHA256())


@dataclass
class Key:
    """``private`` is None for keys that do not sign."""

    id: str
    spec: str
    usage: str
    private: Any
    state: str = "Enabled"
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def arn(self) -> str:
        return f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{self.id}"


class Refused(Exception):
    """An error as KMS answers it."""

    def __init__(self, code: str, message: str = "", status: int = 400) -> None:
        super().__init__(code)
        self.code, self.message, self.status = code, message, status


def generate(spec: str) -> Any:
    if spec == "ECC_NIST_P256":
        return ec.generate_private_key(ec.SECP256R1())
    if spec == "ECC_NIST_P384":
        return ec.generate_private_key(ec.SECP384R1())
    if spec.startswith("RSA_"):
        return rsa.generate_private_key(65537, int(spec.removeprefix("RSA_")))
    if spec == "ECC_NIST_EDWARDS25519":
        return ed25519.Ed25519PrivateKey.generate()
    if spec == "SYMMETRIC_DEFAULT":
        return None
    raise Refused("ValidationException", f"1 validation error detected: Value '{spec}' at 'keySpec'")


def sign(key: Key, algorithm: str, message: bytes, kind: str) -> bytes:
    """Raises Refused as KMS does."""
    _check_signing(key, algorithm, message, kind)
    if algorithm == "ED25519_SHA_512":
        return bytes(key.private.sign(message))
    digest = message if kind == "DIGEST" else hashlib.sha256(message).digest()
    if algorithm == "ECDSA_SHA_256":
        return bytes(key.private.sign(digest, ec.ECDSA(PREHASHED)))
    return bytes(key.private.sign(digest, PSS, PREHASHED))


def _check_signing(key: Key, algorithm: str, message: bytes, kind: str) -> None:
    if key.state == "Disabled":
        raise Refused("DisabledException", f"{key.arn} is disabled.")
    if key.state != "Enabled":
        raise Refused("KMSInvalidStateException", f"{key.arn} is pending deletion.")
    if key.usage != "SIGN_VERIFY":
        raise Refused("InvalidKeyUsageException", f"{key.arn} key usage is {key.usage} which is not valid for Sign.")
    fits = {"ECC_NIST_P256": ["ECDSA_SHA_256"], "ECC_NIST_EDWARDS25519": ["ED25519_SHA_512"]}
    if algorithm not in fits.get(key.spec, ["RSASSA_PSS_SHA_256"]):
        raise Refused("InvalidKeyUsageException", f"Algorithm {algorithm} is incompatible with key spec {key.spec}.")
    if not 1 <= len(message) <= 4096:
        raise Refused("ValidationException", "Value at 'message' failed to satisfy constraint: length 1 to 4096")
    if kind == "DIGEST" and (len(message) != 32 or algorithm == "ED25519_SHA_512"):
        raise Refused("ValidationException", f"Digest is invalid length for algorithm {algorithm}.")


class KmsServer(stand_in.StandIn):
    """Keys, aliases and what strikes next. ``skew`` seconds are added to the service's clock."""

    def __init__(self, port: int = 0, delay: float = 0.0, state: Path | None = None) -> None:
        super().__init__(_Handler, port, delay)
        self.keys: dict[str, Key] = {}
        self.aliases: dict[str, str] = {}
        self.skew = 0.0
        self.denied: set[str] = set()  # actions that the credentials may not use
        self.old = False  # answer as before 2021, when a key's spec had another name alone
        self._state = state
        if state is not None and state.exists():
            saved = json.loads(state.read_text("utf-8"))
            self.aliases = saved["aliases"]
            for facts in saved["keys"]:
                pem = facts.pop("pem")
                self.keys[facts["id"]] = Key(**facts, private=pem and load_pem_private_key(pem.encode(), None))

    def make(self, spec: str = "ECC_NIST_P256", usage: str = "SIGN_VERIFY", alias: str | None = None) -> Key:
        """A key, as CreateKey makes it."""
        with self.lock:
            key = Key(str(uuid.uuid4()), spec, usage, generate(spec))
            self.keys[key.id] = key
            if alias is not None:
                self.aliases[alias] = key.id
            self.save()
            return key

    def save(self) -> None:
        if self._state is None:
            return
        rows = []
        for key in self.keys.values():
            facts = {name: value for name, value in vars(key).items() if name != "private"}
            pem = key.private and key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
            rows.append(facts | {"pem": pem})
        draft = self._state.with_suffix(".draft")
        draft.write_text(json.dumps({"keys": rows, "aliases": self.aliases}), "utf-8")
        draft.replace(self._state)

    def find(self, name: str) -> Key:
        """By id, ARN or alias."""
        if re.fullmatch(r"arn:aws:kms:[^:]+:[^:]+:(key|alias)/.+", name):
            name = name.split(":", 5)[5].removeprefix("key/")
        if name.startswith("alias/"):
            if name not in self.aliases:
                raise Refused("NotFoundException", f"Alias arn:aws:kms:{REGION}:{ACCOUNT}:{name} is not found.")
            name = self.aliases[name]
        if name not in self.keys:
            raise Refused("NotFoundException", f"Key 'arn:aws:kms:{REGION}:{ACCOUNT}:key/{name}' does not exist")
        return self.keys[name]


def _metadata(key: Key) -> dict[str, Any]:
    return {"AWSAccountId": ACCOUNT, "KeyId": key.id, "Arn": key.arn, "Enabled": key.state == "Enabled", "KeyState": key.state,
            "KeyUsage": key.usage, "KeySpec": key.spec, "CustomerMasterKeySpec": key.spec, "KeyManager": "CUSTOMER",
            "Origin": "AWS_KMS", "MultiRegion": False, "Description": key.description}  # fmt: skip


def _tags(given: Any) -> dict[str, str]:
    return {tag["TagKey"]: tag["TagValue"] for tag in given or []}


def _create_key(server: KmsServer, request: dict[str, Any]) -> dict[str, Any]:
    key = server.make(request.get("KeySpec", "SYMMETRIC_DEFAULT"), request.get("KeyUsage", "ENCRYPT_DECRYPT"))
    key.description, key.tags = request.get("Description", ""), _tags(request.get("Tags"))
    server.save()
    return {"KeyMetadata": _metadata(key)}


def _create_alias(server: KmsServer, request: dict[str, Any]) -> None:
    name, key = request["AliasName"], server.find(request["TargetKeyId"])
    if not re.fullmatch(r"alias/[a-zA-Z0-9/_-]+", name) or name.startswith("alias/aws/"):
        raise Refused("InvalidAliasNameException")
    if name in server.aliases:
        raise Refused("AlreadyExistsException", f"An alias with the name {name} already exists")
    server.aliases[name] = key.id
    server.save()


def _update_alias(server: KmsServer, request: dict[str, Any]) -> None:
    key = server.find(request["TargetKeyId"])
    server.find(request["AliasName"])
    server.aliases[request["AliasName"]] = key.id
    server.save()


def _public_key(server: KmsServer, request: dict[str, Any]) -> dict[str, Any]:
    key = server.find(request["KeyId"])
    if key.private is None:
        raise Refused("UnsupportedOperationException")
    if key.state != "Enabled":
        raise Refused("DisabledException" if key.state == "Disabled" else "KMSInvalidStateException", f"{key.arn} is.")
    der = key.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    spec = {"CustomerMasterKeySpec": key.spec} | ({} if server.old else {"KeySpec": key.spec})
    return {"KeyId": key.arn, **spec, "KeyUsage": key.usage, "PublicKey": base64.b64encode(der).decode()}


def _sign(server: KmsServer, request: dict[str, Any], fault: str | None = None) -> dict[str, Any]:
    key, algorithm = server.find(request["KeyId"]), request["SigningAlgorithm"]
    signer = Key("x", key.spec, key.usage, generate(key.spec)) if fault == "another key" else key
    signature = sign(signer, algorithm, base64.b64decode(request["Message"]), request.get("MessageType", "RAW"))
    if fault == "wrong signature":
        signature = signature[:-1] + bytes([signature[-1] ^ 1])
    return {"KeyId": key.arn, "Signature": base64.b64encode(signature).decode(), "SigningAlgorithm": algorithm}


def _verify(server: KmsServer, request: dict[str, Any]) -> dict[str, Any]:
    key, algorithm = server.find(request["KeyId"]), request["SigningAlgorithm"]
    message, kind = base64.b64decode(request["Message"]), request.get("MessageType", "RAW")
    _check_signing(key, algorithm, message, kind)
    signature, public = base64.b64decode(request["Signature"]), key.private.public_key()
    digest = message if kind == "DIGEST" else hashlib.sha256(message).digest()
    try:
        if algorithm == "ED25519_SHA_512":
            public.verify(signature, message)
        elif algorithm == "ECDSA_SHA_256":
            public.verify(signature, digest, ec.ECDSA(PREHASHED))
        else:
            public.verify(signature, digest, PSS, PREHASHED)
    except InvalidSignature:
        raise Refused("KMSInvalidSignatureException") from None
    return {"KeyId": key.arn, "SignatureValid": True, "SigningAlgorithm": algorithm}


def _list_aliases(server: KmsServer, request: dict[str, Any]) -> dict[str, Any]:
    wanted = server.find(request["KeyId"]).id if "KeyId" in request else None
    rows = [{"AliasName": name, "AliasArn": f"arn:aws:kms:{REGION}:{ACCOUNT}:{name}", "TargetKeyId": key}
            for name, key in sorted(server.aliases.items()) if wanted in (None, key)]  # fmt: skip
    return {"Aliases": rows, "Truncated": False}


def _tag(server: KmsServer, request: dict[str, Any]) -> None:
    server.find(request["KeyId"]).tags.update(_tags(request["Tags"]))
    server.save()


def _list_tags(server: KmsServer, request: dict[str, Any]) -> dict[str, Any]:
    tags = server.find(request["KeyId"]).tags
    return {"Tags": [{"TagKey": k, "TagValue": v} for k, v in sorted(tags.items())], "Truncated": False}


ACTIONS: dict[str, Callable[[KmsServer, dict[str, Any]], dict[str, Any] | None]] = {
    "CreateKey": _create_key,
    "CreateAlias": _create_alias,
    "UpdateAlias": _update_alias,
    "DescribeKey": lambda server, request: {"KeyMetadata": _metadata(server.find(request["KeyId"]))},
    "GetPublicKey": _public_key,
    "Sign": _sign,
    "Verify": _verify,
    "ListAliases": _list_aliases,
    "ListResourceTags": _list_tags,
    "TagResource": _tag,
}


class _Handler(stand_in.Handler):
    server: KmsServer

    def handle_call(self, method: str) -> None:
        body = self.body()
        action = self.headers.get("X-Amz-Target", "").removeprefix("TrentService.")
        self.server.calls.append(action)
        try:
            self._authenticate(body)
            if action in self.server.denied:
                raise Refused("AccessDeniedException", f"User {ACCESS_KEY} is not authorized to perform: kms:{action}")
            fault = None
            if action == "Sign":
                fault = self.server.take_fault()
                time.sleep(self.server.delay)
                if self.fail_on_the_wire(fault):
                    return
                _raise_fault(fault)
            if action not in ACTIONS:
                raise Refused("UnknownOperationException")
            request = json.loads(body)
            found = _sign(self.server, request, fault) if action == "Sign" else ACTIONS[action](self.server, request)
        except Refused as error:
            refusal = {"__type": error.code, "message": error.message}
            self.answer(error.status, refusal, "application/x-amz-json-1.1")
            return
        self.answer(200, b"" if found is None else found, "application/x-amz-json-1.1")

    def _authenticate(self, body: bytes) -> None:
        """Signature Version 4: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html."""
        pattern = r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/kms/aws4_request, SignedHeaders=([^,]+), Signature=(\w+)"
        match = re.fullmatch(pattern, self.headers.get("Authorization", ""))
        if match is None:
            raise Refused("MissingAuthenticationTokenException", "Missing Authentication Token")
        access_key, day, region, names, given = match.groups()
        if access_key != ACCESS_KEY:
            raise Refused("UnrecognizedClientException", "The security token included in the request is invalid.")
        stamp = self.headers["X-Amz-Date"]
        sent = dt.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
        now = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self.server.skew)
        if abs(now - sent) > dt.timedelta(minutes=5):
            early = "expired" if now > sent else "not yet current"
            raise Refused(
                "InvalidSignatureException", f"Signature {early}: {stamp} is now earlier than {now:%Y%m%dT%H%M%SZ}"
            )
        headers = "".join(f"{name}:{self.headers[name].strip()}\n" for name in names.split(";"))
        canonical = f"POST\n/\n\n{headers}\n{names}\n{hashlib.sha256(body).hexdigest()}"
        scope = f"{day}/{region}/kms/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = f"AWS4{SECRET_KEY}".encode()
        for part in (day, region, "kms", "aws4_request", text):
            key = hmac.digest(key, part.encode(), "sha256")
        if not hmac.compare_digest(key.hex(), given):
            raise Refused(
                "InvalidSignatureException", f"The request signature we calculated ({canonical}) does not match."
            )


def _raise_fault(fault: str | None) -> None:
    if fault == "500":
        raise Refused("KMSInternalException", "", 500)
    if fault == "throttle":
        raise Refused("ThrottlingException", "You have exceeded the rate at which you may call KMS.")
    if fault is not None and fault.endswith(("Exception", "Token")):
        raise Refused(fault, f"{fault} of {ACCESS_KEY}, {SECRET_KEY}")


@contextlib.contextmanager
def running_kms(delay: float = 0.0) -> Iterator[KmsServer]:
    """An empty KMS on a free port of loopback."""
    with stand_in.running(KmsServer(delay=delay)) as server:
        yield server


def main() -> None:
    chosen = stand_in.options(
        "A stand-in for AWS KMS.", None, ["ECC_NIST_P256", "RSA_2048", "RSA_4096", "ECC_NIST_EDWARDS25519"]
    )
    server = KmsServer(chosen.port, chosen.delay_ms / 1000, chosen.state)
    if ALIAS not in server.aliases:
        server.make(chosen.key, alias=ALIAS)
    stand_in.run_until_killed(server)


if __name__ == "__main__":
    main()
