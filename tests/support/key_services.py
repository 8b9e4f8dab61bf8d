"""Signers against the stand-ins for KMS and Vault: their settings, their credentials, and what must never be shown."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from memory_layer import config
from memory_layer.config import Settings
from memory_layer.stores.protocols import Signer
from memory_layer.stores.signers import open_signers
from tests.support import kms_server, vault_server
from tests.support.kms_server import KmsServer
from tests.support.vault_server import VaultServer

SECRETS = (kms_server.SECRET_KEY, vault_server.ROOT_TOKEN, vault_server.SECRET_ID, vault_server.K8S_JWT, "hvs.")


def set_aws_environment(monkeypatch: pytest.MonkeyPatch, nowhere: Path) -> None:
    """Credentials that the stand-in knows, and none from elsewhere."""
    for name, value in kms_server.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(nowhere))


def kms_settings(server: KmsServer, key: str | None, **more: object) -> Settings:
    return config.load({}, **{"audit_signer": "kms", "kms_endpoint": server.url, "audit_kms_key_id": key} | more)


def vault_settings(server: VaultServer, **more: object) -> Settings:
    plain = {"audit_signer": "vault", "vault_addr": server.url, "vault_token": vault_server.ROOT_TOKEN}
    return config.load({}, **plain | more)


@contextlib.asynccontextmanager
async def opened_signers(settings: Settings, data: Path = Path("/nowhere")) -> AsyncIterator[list[Signer]]:
    signers = await open_signers(settings, data)
    try:
        yield signers
    finally:
        for signer in signers:
            await signer.close()


def assert_no_secrets(text: str) -> None:
    assert [secret for secret in SECRETS if secret in text] == []
