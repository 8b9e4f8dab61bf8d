"""A stand-in for Vault: the transit engine, AppRole, Kubernetes and token logins, the sealed state; true signatures.

Shapes: https://developer.hashicorp.com/vault/api-docs/secret/transit and .../api-docs/auth/approle. In a process of its own:
``python -m tests.support.vault_server --delay-ms 10`` prints its URL; the key is ``transit/memory-layer-audit-dev``, the token
ROOT_TOKEN below.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from tests.support import stand_in

ROOT_TOKEN = "hvs.stand-in-root-token-never-to-be-shown"
ROLE_ID, SECRET_ID = "stand-in-role", "stand-in-secret-id-never-to-be-shown"
K8S_ROLE, K8S_JWT = "memory-layer", "stand-in.service-account.token-never-to-be-shown"
KEY = "memory-layer-audit-dev"
PREHASHED = utils.Prehashed(SHA256())


@dataclass
class Key:
    """``versions``: private keys, from version 1."""

    type: str
    versions: list[Any]
    exportable: bool = False
    allow_plaintext_backup: bool = False
    derived: bool = False
    deletion_allowed: bool = False
    min_encryption_version: int = 0


@dataclass
class Token:
    """``ends`` on the monotonic clock; None: never."""

    ttl: float
    ends: float | None
    renewable: bool
    last: float = field(default=float("inf"))


class Refused(Exception):
    """An error as Vault answers it."""

    def __init__(self, status: int, *errors: str) -> None:
        super().__init__(status)
        self.status, self.errors = status, list(errors)


def generate(kind: str) -> Any:
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind in ("ecdsa-p256", "ecdsa-p384"):
        return ec.generate_private_key(ec.SECP256R1() if kind == "ecdsa-p256" else ec.SECP384R1())
    if kind.startswith("rsa-"):
        return rsa.generate_private_key(65537, int(kind.removeprefix("rsa-")))
    if kind == "aes256-gcm96":
        return secrets.token_bytes(32)
    raise Refused(400, f"unknown key type {kind}")


class VaultServer(stand_in.StandIn):
    """Mounts with their keys, tokens, and what strikes next."""

    def __init__(self, port: int = 0, delay: float = 0.0, state: Path | None = None) -> None:
        super().__init__(_Handler, port, delay)
        self.mounts: dict[str, dict[str, Key]] = {}
        self.tokens = {ROOT_TOKEN: Token(0, None, False)}
        self.token_ttl, self.token_max_ttl = 3600.0, 7200.0
        self.sealed = False
        self.denied: set[str] = set()  # beginnings of paths that tokens may not use
        self._state = state
        if state is not None and state.exists():
            for mount, keys in json.loads(state.read_text("utf-8")).items():
                self.mounts[mount] = {name: _loaded(facts) for name, facts in keys.items()}

    def make(self, name: str = KEY, kind: str = "ed25519", mount: str = "transit", **facts: Any) -> Key:
        with self.lock:
            key = Key(kind, [generate(kind)], **facts)
            self.mounts.setdefault(mount, {})[name] = key
            self.save()
            return key

    def issue(self, ttl: float, *, renewable: bool = True) -> str:
        """A token that lives for ``ttl`` seconds, at the longest for ``token_max_ttl``."""
        name, now = f"hvs.{secrets.token_hex(12)}", time.monotonic()
        self.tokens[name] = Token(ttl, now + ttl, renewable, now + self.token_max_ttl)
        return name

    def save(self) -> None:
        if self._state is None:
            return
        dumped = {mount: {name: _dumped(key) for name, key in keys.items()} for mount, keys in self.mounts.items()}
        draft = self._state.with_suffix(".draft")
        draft.write_text(json.dumps(dumped), "utf-8")
        draft.replace(self._state)


def _dumped(key: Key) -> dict[str, Any]:
    if key.type == "aes256-gcm96":
        return vars(key) | {"versions": [v.hex() for v in key.versions]}
    pems = [v.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode() for v in key.versions]
    return vars(key) | {"versions": pems}


def _loaded(facts: dict[str, Any]) -> Key:
    if facts["type"] == "aes256-gcm96":
        return Key(**facts | {"versions": [bytes.fromhex(v) for v in facts["versions"]]})
    return Key(**facts | {"versions": [load_pem_private_key(pem.encode(), None) for pem in facts["versions"]]})


def _public(key: Key, version: Any) -> str:
    public = version.public_key()
    if key.type == "ed25519":
        return base64.b64encode(public.public_bytes_raw()).decode()
    return str(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def _describe(name: str, key: Key) -> dict[str, Any]:
    facts = {k: v for k, v in vars(key).items() if k != "versions"}
    symmetric = key.type == "aes256-gcm96"
    keys: dict[str, Any] = {
        str(number): 1767225600
        if symmetric
        else {"name": key.type, "public_key": _public(key, version), "creation_time": "2026-01-01T00:00:00Z"}
        for number, version in enumerate(key.versions, 1)
    }
    return facts | {"name": name, "keys": keys, "latest_version": len(key.versions), "min_available_version": 0,
                    "min_decryption_version": 1, "supports_signing": not symmetric,
                    "supports_encryption": symmetric or key.type.startswith("rsa-")}  # fmt: skip


def _digest(key: Key, request: dict[str, Any]) -> bytes:
    given = base64.b64decode(request["input"])
    if key.type == "ed25519":
        if request.get("prehashed"):
            raise Refused(400, "prehashed is not supported for ed25519 keys")
        return given
    if request.get("hash_algorithm", "sha2-256") != "sha2-256":
        raise Refused(400, "unsupported hash algorithm")
    if request.get("prehashed"):
        if len(given) != 32:
            raise Refused(400, "unable to sign: input is not a SHA-256 hash")
        return given
    return hashlib.sha256(given).digest()


def _padding(request: dict[str, Any]) -> Any:
    if request.get("signature_algorithm", "pss") == "pkcs1v15":
        return padding.PKCS1v15()
    salts = {"auto": padding.PSS.MAX_LENGTH, "hash": 32, "-1": 32}
    salt = request.get("salt_length", "auto")
    return padding.PSS(padding.MGF1(SHA256()), salts[salt] if salt in salts else int(salt))


def sign(key: Key, request: dict[str, Any], fault: str | None = None) -> str:
    version = int(request.get("key_version") or len(key.versions))
    if not max(1, key.min_encryption_version) <= version <= len(key.versions):
        raise Refused(400, "requested version for signing is not available")
    private = generate(key.type) if fault == "another key" else key.versions[version - 1]
    digest = _digest(key, request)
    jws = request.get("marshaling_algorithm", "asn1") == "jws"
    if key.type == "ed25519":
        signature = private.sign(digest)
    elif key.type.startswith("ecdsa"):
        signature = private.sign(digest, ec.ECDSA(PREHASHED))
        if jws:
            r, s = utils.decode_dss_signature(signature)
            signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    else:
        signature = private.sign(digest, _padding(request), PREHASHED)
    if fault == "wrong signature":
        signature = signature[:-1] + bytes([signature[-1] ^ 1])
    text = base64.urlsafe_b64encode(signature).rstrip(b"=") if jws else base64.b64encode(signature)
    return f"vault:v{version}:{text.decode()}"


def verify(key: Key, request: dict[str, Any]) -> bool:
    _, version, text = request["signature"].split(":")
    public, signature = key.versions[int(version[1:]) - 1].public_key(), base64.b64decode(text)
    digest = _digest(key, request)
    try:
        if key.type == "ed25519":
            public.verify(signature, digest)
        elif key.type.startswith("ecdsa"):
            public.verify(signature, digest, ec.ECDSA(PREHASHED))
        else:
            public.verify(signature, digest, _padding(request), PREHASHED)
    except InvalidSignature:
        return False
    return True


def encrypt(key: Key, request: dict[str, Any]) -> str:
    """AES-256-GCM alone, as Vault lays it out: nonce, ciphertext, tag."""
    if key.type != "aes256-gcm96":
        raise Refused(400, f"message: key type {key.type} is not supported here")
    nonce = secrets.token_bytes(12)
    made = nonce + AESGCM(key.versions[-1]).encrypt(nonce, base64.b64decode(request["plaintext"]), _associated(request))
    return f"vault:v{len(key.versions)}:{base64.b64encode(made).decode()}"


def _associated(request: dict[str, Any]) -> bytes | None:
    given = request.get("associated_data")
    return None if given is None else base64.b64decode(given)


def decrypt(key: Key, request: dict[str, Any]) -> str:
    try:
        prefix, version, text = request["ciphertext"].split(":")
        data, number = base64.b64decode(text, validate=True), int(version.removeprefix("v"))
        if prefix != "vault" or not 1 <= number <= len(key.versions):
            raise ValueError(version)
    except ValueError:
        raise Refused(400, "invalid ciphertext: no prefix") from None
    try:
        return base64.b64encode(
            AESGCM(key.versions[number - 1]).decrypt(data[:12], data[12:], _associated(request))
        ).decode()
    except InvalidTag:
        raise Refused(400, "cipher: message authentication failed") from None


class _Handler(stand_in.Handler):
    server: VaultServer

    def handle_call(self, method: str) -> None:
        raw = self.body()
        path = self.path.removeprefix("/v1/")
        self.server.calls.append(f"{method} {path}")
        fault = None
        try:
            if self.server.sealed:
                raise Refused(503, "Vault is sealed")
            if re.fullmatch(r".+/sign/[^/]+", path):
                fault = self.server.take_fault()
                time.sleep(self.server.delay)
                if self.fail_on_the_wire(fault):
                    return
                _raise_fault(fault)
            found = self._route(method, path, json.loads(raw or b"{}"), fault)
        except Refused as error:
            self.answer(error.status, {"errors": error.errors})
            return
        if found is None:
            self.send_response(204)
            self.end_headers()
            self.wfile.flush()
        else:
            self.answer(200, {"request_id": "r", "lease_id": "", "data": None, "auth": None, "warnings": None} | found)

    def _route(self, method: str, path: str, request: dict[str, Any], fault: str | None) -> dict[str, Any] | None:
        if path.startswith("auth/") and path.endswith("/login"):
            return self._login(path, request)
        token = self._token()
        if any(path.startswith(start) for start in self.server.denied):
            raise Refused(403, "1 error occurred:\n\t* permission denied\n\n")
        if path.startswith("auth/token/"):
            return self._own_token(path, token)
        if path == "sys/mounts":
            data = {f"{mount}/": {"type": "transit"} for mount in self.server.mounts} | {"sys/": {"type": "system"}}
            return {"data": data}
        if path.startswith("sys/mounts/"):
            mount = path.removeprefix("sys/mounts/")
            if mount in self.server.mounts:
                raise Refused(400, f"path is already in use at {mount}/")
            self.server.mounts[mount] = {}
            return None
        match = re.fullmatch(r"(.+?)/(keys|sign|verify|encrypt|decrypt)/([^/]+)(/rotate|/config)?", path)
        if match is None or match[1] not in self.server.mounts:
            raise Refused(404, f'no handler for route "{path}". route entry not found.')
        return self._transit(method, match, request, fault)

    def _transit(self, method: str, match: re.Match[str], request: dict[str, Any], fault: str | None) -> Any:
        mount, what, name, change = match.groups()
        keys = self.server.mounts[mount]
        if what == "keys" and method != "GET" and not change:
            if name not in keys:
                facts = {k: request[k] for k in ("exportable", "allow_plaintext_backup", "derived") if k in request}
                self.server.make(name, request.get("type", "aes256-gcm96"), mount, **facts)
            return {"data": _describe(name, keys[name])}
        if name not in keys:
            if what == "keys" and method == "GET":
                raise Refused(404)
            raise Refused(400, "signing key not found")
        key = keys[name]
        if change == "/rotate":
            key.versions.append(generate(key.type))
            self.server.save()
        if change == "/config":
            for flag in ("exportable", "allow_plaintext_backup", "min_encryption_version", "deletion_allowed"):
                setattr(key, flag, request.get(flag, getattr(key, flag)))
            self.server.save()
        if what == "sign":
            return {"data": {"signature": sign(key, request, fault), "key_version": len(key.versions)}}
        if what == "encrypt":
            return {"data": {"ciphertext": encrypt(key, request), "key_version": len(key.versions)}}
        if what == "decrypt":
            return {"data": {"plaintext": decrypt(key, request)}}
        if what == "verify":
            return {"data": {"valid": verify(key, request)}}
        return {"data": _describe(name, key)}

    def _login(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        if path == "auth/approle/login":
            if (request.get("role_id"), request.get("secret_id")) != (ROLE_ID, SECRET_ID):
                raise Refused(400, f"invalid role or secret ID {request.get('secret_id')}")
        elif path == "auth/kubernetes/login":
            if (request.get("role"), request.get("jwt")) != (K8S_ROLE, K8S_JWT):
                raise Refused(403, f"permission denied {request.get('jwt')}")
        else:
            raise Refused(404, "no handler for route")
        name = self.server.issue(self.server.token_ttl)
        return {"auth": {"client_token": name, "lease_duration": self.server.token_ttl, "renewable": True}}

    def _token(self) -> str:
        name = self.headers.get("X-Vault-Token", "")
        token = self.server.tokens.get(name)
        if token is None or (token.ends is not None and time.monotonic() > token.ends):
            raise Refused(403, f"permission denied: {name}")
        return name

    def _own_token(self, path: str, name: str) -> dict[str, Any] | None:
        token, now = self.server.tokens[name], time.monotonic()
        left = 0 if token.ends is None else token.ends - now
        if path == "auth/token/lookup-self":
            return {"data": {"ttl": left, "renewable": token.renewable, "id": name}}
        if path == "auth/token/revoke-self":
            del self.server.tokens[name]
            return None
        if path == "auth/token/renew-self":
            if not token.renewable:
                raise Refused(400, "lease is not renewable")
            token.ends = min(now + token.ttl, token.last)
            return {"auth": {"client_token": name, "lease_duration": token.ends - now, "renewable": True}}
        raise Refused(404, "unsupported path")


def _raise_fault(fault: str | None) -> None:
    refusals = {
        "500": (500, f"internal error, token {ROOT_TOKEN}"),
        "throttle": (429, 'request path "transit/sign": rate limit quota exceeded'),
        "forbidden": (403, f"permission denied {ROOT_TOKEN}"),
        "sealed": (503, "Vault is sealed"),
    }
    if fault in refusals:
        raise Refused(*refusals[fault])


@contextlib.contextmanager
def running_vault(delay: float = 0.0) -> Iterator[VaultServer]:
    """A Vault without mounts on a free port of loopback."""
    with stand_in.running(VaultServer(delay=delay)) as server:
        yield server


def main() -> None:
    chosen = stand_in.options("A stand-in for Vault.", None, ["ed25519", "ecdsa-p256", "rsa-2048", "rsa-4096"])
    server = VaultServer(chosen.port, chosen.delay_ms / 1000, chosen.state)
    if KEY not in server.mounts.get("transit", {}):
        server.make(KEY, chosen.key)
    stand_in.run_until_killed(server)


if __name__ == "__main__":
    main()
