"""Vault's transit engine. API: https://developer.hashicorp.com/vault/api-docs/secret/transit.

The token needs ``read`` on ``<mount>/keys/<key>`` and ``update`` on ``<mount>/sign/<key>``; Vault's default policy lets it look
itself up and renew itself. Each version of a key is a signer of its own.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from memory_layer.audit.seal import ecdsa_raw
from memory_layer.config import Settings
from memory_layer.errors import PolicyRefused, SignerUnavailable, UsageError
from memory_layer.installing import install
from memory_layer.stores.protocols import Signer
from memory_layer.stores.remote.faults import Fault
from memory_layer.stores.remote.threads import BUDGET, CONNECT, READ, Connection
from memory_layer.stores.remote.urls import service_url
from memory_layer.stores.signers.remote import RemoteSigner
from memory_layer.telemetry.logs import get_logger

ALGORITHMS: Final = {
    "ed25519": "ed25519",
    "ecdsa-p256": "ecdsa-p256-sha256",
    "rsa-2048": "rsa-pss-sha256",
    "rsa-3072": "rsa-pss-sha256",
    "rsa-4096": "rsa-pss-sha256",
}
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
FIRST_LOOK: Final = 5.0  # seconds until a renewal that failed is tried again; also the shortest time between two logins
_RSA_OPTIONS: Final = {"signature_algorithm": "pss", "salt_length": "hash"}

log = get_logger("memory_layer.signers.vault")


class Lease(NamedTuple):
    """How long a token lives: seconds (0: for ever), and whether it can be renewed."""

    seconds: float
    renewable: bool


class Session:
    """A hvac client with its token: from VAULT_TOKEN, or from an AppRole or Kubernetes login of our own."""

    def __init__(self, client: Any, settings: Settings) -> None:
        self.client = client
        self.own = not settings.vault_token  # a token that we logged in for is ours to give back
        self._settings = settings
        self._lock = threading.Lock()
        self._logged_in = float("-inf")
        self._longest = 0.0

    def start(self) -> Lease:
        """Log in, or look the given token up. Blocks; raises what hvac raises."""
        if self.own:
            return self.login()
        found = self.client.auth.token.lookup_self()["data"]
        return self._lease(found["ttl"], found.get("renewable", False))

    def login(self) -> Lease:
        settings, auth = self._settings, self.client.auth
        if settings.vault_role_id:
            answer = auth.approle.login(settings.vault_role_id, settings.vault_secret_id)
        else:
            answer = auth.kubernetes.login(settings.vault_k8s_role, SERVICE_ACCOUNT.read_text("utf-8").strip())
        self._logged_in = time.monotonic()
        found = answer["auth"]
        return self._lease(found["lease_duration"], found.get("renewable", False))

    def renew(self) -> Lease:
        """A longer life for the token: renewed, or when it nears the longest that it may have, another."""
        from hvac.exceptions import Forbidden, InvalidRequest

        try:
            found = self.client.auth.token.renew_self()["auth"]
            lease = self._lease(found["lease_duration"], found.get("renewable", False))
        except (Forbidden, InvalidRequest):
            if not self.own:
                raise
            return self.login()
        return self.login() if self.own and lease.seconds < self._longest / 2 else lease

    def login_again(self, refused: str | None) -> bool:
        """Whether there is another token now than the one that Vault refused."""
        with self._lock:
            if self.client.token != refused:
                return True
            if not self.own or time.monotonic() - self._logged_in < FIRST_LOOK:
                return False
            self.login()
            return True

    def close(self) -> None:
        from hvac.exceptions import VaultError
        from requests import RequestException

        try:
            if self.own and self.client.token:
                self.client.auth.token.revoke_self()
        except (VaultError, RequestException):
            log.info("the Vault token was not given back; it runs out by itself")
        self.client.adapter.close()

    def _lease(self, seconds: Any, renewable: Any) -> Lease:
        self._longest = max(self._longest, float(seconds))
        return Lease(float(seconds), bool(renewable) or self.own)


async def open_vault_signers(settings: Settings) -> list[Signer]:
    """A signer for each version of the transit key that may sign, newest first. Raises UsageError, PolicyRefused,
    SignerUnavailable."""
    connection, session = await open_session(settings)
    try:
        name, mount = key_name(settings), settings.vault_transit_mount
        what = f"give the public keys of {mount}/{name}"
        key = await connection.ask(what, partial(read_key, session, mount, name))
        if key is None:
            raise UsageError(
                f"Vault has no key {name} in the transit engine at {mount}/. Check AUDIT_VAULT_KEY and VAULT_TRANSIT_MOUNT, or make "
                "it with `memoryctl provision apply keys`."
            )
        guard(settings, mount, name, key, "AUDIT_VAULT_KEY", "rewrite the log")
        return list(_signers(connection, session, mount, name, key))
    except BaseException:
        await connection.close()
        raise


async def open_session(settings: Settings, read: float = READ, budget: float = BUDGET) -> tuple[Connection, Session]:
    """Vault, logged in, its token renewed from now on. Each call gets ``read`` seconds, with all its tries ``budget``."""
    session = Session(await asyncio.to_thread(connect, settings, read), settings)
    from hvac.exceptions import VaultError
    from requests import RequestException

    connection = Connection("Vault", explain, (VaultError, RequestException, OSError), session.close, budget)
    try:
        lease = await connection.ask("accept the login", session.start)
    except BaseException:
        await connection.close()
        raise
    if lease.seconds > 0:
        connection.keeper = asyncio.create_task(_keep(connection, session, lease), name="renew the Vault token")
    return connection, session


def key_name(settings: Settings) -> str:
    """AUDIT_VAULT_KEY, or the key that `memoryctl provision apply keys` makes."""
    return settings.audit_vault_key or f"memory-layer-audit-{settings.service_env}"


def read_key(session: Session, mount: str, name: str) -> dict[str, Any] | None:
    """The key as Vault describes it, or None when the engine has none of that name. Blocks; raises what hvac raises."""
    from hvac.exceptions import InvalidPath

    try:
        return dict(session.client.secrets.transit.read_key(name, mount_point=mount)["data"])
    except InvalidPath as error:
        if error.errors:  # "no handler for route": there is no engine at this mount
            raise
        return None


def connect(settings: Settings, read: float, what: str = "AUDIT_SIGNER=vault") -> Any:
    """A hvac client without a login. ``what``: the setting that wants Vault. Raises UsageError and PolicyRefused."""
    try:
        import hvac
    except ImportError:
        raise UsageError(f"{what} needs hvac, which is not installed. Run: " + install("server", "vault")) from None
    if not settings.vault_addr:
        raise UsageError(f"{what} needs VAULT_ADDR, the URL of Vault.")
    if settings.vault_role_id and not settings.vault_secret_id and not settings.vault_token:
        raise UsageError("VAULT_ROLE_ID needs VAULT_SECRET_ID, or VAULT_SECRET_ID_FILE.")
    if not (settings.vault_token or settings.vault_role_id or settings.vault_k8s_role):
        raise UsageError("Vault needs a login: set VAULT_TOKEN, VAULT_ROLE_ID and VAULT_SECRET_ID, or VAULT_K8S_ROLE.")
    url = service_url("VAULT_ADDR", settings.vault_addr, settings)
    # An empty token, not None: hvac would look for one in the home folder of whoever started this.
    return hvac.Client(
        url=url, token=settings.vault_token or "", namespace=settings.vault_namespace, timeout=(CONNECT, read)
    )


async def _keep(connection: Connection, session: Session, lease: Lease) -> None:
    """Renew the token when two thirds of its life are over, for as long as the connection is open."""
    while lease.renewable and lease.seconds > 0:
        await asyncio.sleep(max(lease.seconds * 2 / 3, 0.2))
        try:
            lease = await connection.call("renew the token", session.renew)
        except SignerUnavailable as error:
            log.warning("the Vault token was not renewed; another try follows", error=error.message)
            lease = Lease(FIRST_LOOK * 3 / 2, True)
    if lease.seconds > 0:
        log.warning("the Vault token ends and cannot be renewed; set a renewable one, or a role", seconds=lease.seconds)


def guard(settings: Settings, mount: str, name: str, key: Mapping[str, Any], setting: str, harm: str) -> None:
    """A key that Vault hands out can be copied, and then anybody can do what only its holder should. Raises PolicyRefused."""
    loose = [flag for flag in ("exportable", "allow_plaintext_backup") if key.get(flag)]
    if not loose:
        return
    text = (
        f"The Vault key {mount}/{name} has {' and '.join(loose)} set: it can be copied out of Vault, and whoever has the copy can {harm}; "
        f"Vault cannot take that back. Make another, and name it in {setting}"
    )
    if settings.guarded:
        raise PolicyRefused(f"{text}; {settings.guarded} forbids this one.")
    log.warning("a Vault key can be copied; replace it before production", reason=text)


def _signers(
    connection: Connection, session: Session, mount: str, name: str, key: Mapping[str, Any]
) -> list[RemoteSigner]:
    algorithm = ALGORITHMS.get(str(key["type"]))
    if algorithm is None or key.get("derived"):
        kind = f"{key['type']}{', derived' if key.get('derived') else ''}"
        raise UsageError(
            f"The Vault key {mount}/{name} is of type {kind}, and seals need one of {', '.join(ALGORITHMS)}, not derived. Name "
            "another in AUDIT_VAULT_KEY; `memoryctl provision apply keys` makes one."
        )
    least = int(key.get("min_encryption_version") or 0)
    versions = sorted((int(v) for v in key["keys"] if int(v) >= least), reverse=True)
    if not versions:
        raise UsageError(f"The Vault key {mount}/{name} has no version that may sign.")
    return [
        RemoteSigner(
            connection,
            f"{mount}/{name} version {version}",
            algorithm,
            _public_key(algorithm, str(key["keys"][str(version)]["public_key"])),
            partial(_sign, session, mount, name, algorithm, version),
        )
        for version in versions
    ]


def _public_key(algorithm: str, text: str) -> bytes:
    """DER SubjectPublicKeyInfo of what Vault gives: the raw key in base64 for Ed25519, PEM for the others."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    try:
        if algorithm == "ed25519":
            key: Any = Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
        else:
            key = load_pem_public_key(text.encode())
        return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    except (ValueError, UnsupportedAlgorithm):
        return b""  # RemoteSigner has the words for a key that is none


def _sign(session: Session, mount: str, name: str, algorithm: str, version: int, message: bytes) -> bytes:
    from hvac.exceptions import Forbidden

    used = session.client.token
    try:
        return _sign_once(session, mount, name, algorithm, version, message)
    except Forbidden:
        if not session.login_again(used):
            raise
    return _sign_once(session, mount, name, algorithm, version, message)


def _sign_once(session: Session, mount: str, name: str, algorithm: str, version: int, message: bytes) -> bytes:
    # Ed25519 signs the text; the others get its hash, so that the text stays here.
    plain = algorithm == "ed25519"
    given = message if plain else hashlib.sha256(message).digest()
    options = {} if plain else {"prehashed": True, "hash_algorithm": "sha2-256"}
    answer = session.client.secrets.transit.sign_data(
        name,
        hash_input=base64.b64encode(given).decode("ascii"),
        key_version=version,
        mount_point=mount,
        **options,
        **(_RSA_OPTIONS if algorithm == "rsa-pss-sha256" else {}),
    )
    prefix, made_by, text = str(answer["data"]["signature"]).split(":")
    if prefix != "vault" or made_by != f"v{version}":
        raise ValueError(made_by)
    signature = base64.b64decode(text, validate=True)
    return ecdsa_raw(signature) if algorithm == "ecdsa-p256-sha256" else signature


def explain(error: Exception) -> Fault:
    """What a failed call means, in words that repeat nothing of what was sent."""
    import requests
    from hvac import exceptions as vault

    if isinstance(error, vault.VaultError):
        return _refused(error)
    if isinstance(error, requests.exceptions.SSLError):
        return Fault("its TLS certificate is not valid for VAULT_ADDR. Set VAULT_CACERT to the file of its CA", False)
    if isinstance(error, requests.Timeout):
        return Fault("it did not answer in time", True)
    if isinstance(error, requests.RequestException):
        return Fault(f"it cannot be reached ({type(error).__name__}). Check VAULT_ADDR", True)
    return Fault(f"{SERVICE_ACCOUNT} cannot be read. VAULT_K8S_ROLE is for pods with a service account", False)


def _refused(error: Any) -> Fault:
    from hvac import exceptions as vault

    text = " ".join(str(line) for line in error.errors or ()).lower()
    if isinstance(error, vault.VaultDown):
        return Fault("it is sealed or in maintenance. Unseal it", True)
    if isinstance(error, vault.VaultNotInitialized):
        return Fault("it is not initialised", False)
    if isinstance(error, vault.RateLimitExceeded):
        return Fault("it limits the rate of calls", True)
    if isinstance(error, (vault.Forbidden, vault.Unauthorized)):
        return Fault(
            "permission denied. The login is wrong or has ended, or its policy lacks read on <mount>/keys/<key> or update on "
            "<mount>/sign/<key> (to provision: update on <mount>/keys/<key>, read on sys/mounts, update on sys/mounts/<mount>)",
            False,
        )
    if isinstance(error, vault.InvalidPath):
        return Fault("there is no such engine. Check VAULT_TRANSIT_MOUNT and VAULT_ADDR", False)
    if isinstance(error, vault.InvalidRequest):
        if "role" in text or "secret" in text:
            return Fault("it does not accept the role or its secret. Check VAULT_ROLE_ID and VAULT_SECRET_ID", False)
        if "not found" in text:
            return Fault("the key is gone. Check AUDIT_VAULT_KEY", False)
        return Fault("it refuses the request as invalid", False)
    return Fault(f"it failed ({type(error).__name__})", True)
