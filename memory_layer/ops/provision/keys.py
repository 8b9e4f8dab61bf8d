"""`memoryctl provision plan / apply keys`: the key that seals the log, in AWS KMS or in Vault's transit engine.

What is missing is made; what is there and differs is a finding for a person: a key cannot be changed into another, and one that
somebody disabled is not enabled behind their back.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

from memory_layer.config import Settings
from memory_layer.errors import Conflict, UsageError
from memory_layer.ops.checks import Check, Made, Survey, known, present
from memory_layer.ops.provision.guide import SIGNING_KEY
from memory_layer.stores.remote.threads import Connection
from memory_layer.stores.signers import kms, vault

VISIBLE_TRIES, VISIBLE_PAUSE = 30, 0.3  # seconds: KMS shows a new alias to everybody a moment after it was made
READ, BUDGET = 15.0, 20.0  # seconds: a long RSA key takes its time

_MAKES: Final = "memoryctl provision apply keys makes it."


def refuse_unfit(settings: Settings, spec: str | None) -> None:
    """Raises UsageError where there is nothing to provision, or ``spec`` is no key that seals."""
    kind = settings.signer
    if kind == "local":
        raise UsageError(
            "The settings name the local signer, whose key `memoryctl up` makes by itself. For a key in AWS KMS or Vault: "
            "--signer kms, or --signer vault."
        )
    known = kms.SCHEMES if kind == "kms" else vault.ALGORITHMS
    if spec is not None and spec not in known:
        raise UsageError(f"--key-spec {spec}: seals are made with {', '.join(known)} in {kind}.")


async def examine(survey: Survey, settings: Settings, spec: str | None = None) -> None:
    """The keys that the settings name. ``spec``: the kind of key, in the service's words; None takes any that seals.

    Raises UsageError, and SignerUnavailable where the service does not answer.
    """
    refuse_unfit(settings, spec)
    await (_kms if settings.signer == "kms" else _vault)(survey, settings, spec)


# --- AWS KMS


async def _kms(survey: Survey, settings: Settings, spec: str | None) -> None:
    client = await asyncio.to_thread(kms.connect, settings, READ)
    connection = kms.open_connection(client, BUDGET)
    tags = {"application": "memory-layer", "purpose": "audit-seal", "service-env": settings.service_env}
    try:
        for name in kms.key_ids(settings):
            await _kms_key(survey, connection, client, name, spec, tags)
    finally:
        await connection.close()


async def _kms_key(
    survey: Survey, connection: Connection, client: Any, name: str, spec: str | None, tags: dict[str, str]
) -> None:
    alias = name.startswith("alias/")

    async def make(_: Any) -> Made[dict[str, Any] | None]:
        made = await _make_kms(connection, client, name, spec or "ECC_NIST_P256", tags)
        return Made(made, (f"KMS key {made['Arn']} ({made['KeySpec']}) with {name}",))

    key = await survey.check(
        Check[dict[str, Any] | None](
            id="keys.kms.exists",
            source=SIGNING_KEY,
            look=lambda: connection.ask(f"describe {name}", partial(_describe, client, name)),
            fits=present,
            says=lambda key: f"{name} is {key['Arn']}." if key else f"There is no {'' if alias else 'KMS key '}{name}.",
            make=make if alias else None,
            hint=_MAKES
            if alias
            else "Correct AUDIT_KMS_KEY_ID, or unset it: apply makes keys that have an alias, and names none by itself.",
        )
    )
    if key is None:
        return
    key_id = key["KeyId"]

    async def add_tags(lacking: list[str]) -> Made[list[str]]:
        added = [{"TagKey": tag, "TagValue": tags[tag]} for tag in lacking]
        await connection.ask(f"tag {name}", partial(client.tag_resource, KeyId=key_id, Tags=added))
        return Made([], (f"tags of {name}: {', '.join(lacking)}",))

    for check in _kms_checks(name, key, spec):
        await survey.check(check)
    await survey.check(
        Check(
            id="keys.kms.tags",
            look=lambda: _lacking_tags(connection, client, key, tags),
            fits=lambda lacking: not lacking,
            says=lambda lacking: f"{name} lacks the tags {', '.join(lacking)}." if lacking else f"{name} has its tags.",
            make=add_tags,
            hint="apply adds them.",
        )
    )


def _kms_checks(name: str, key: dict[str, Any], spec: str | None) -> list[Check[bool]]:
    """What a key that is there must be."""
    another = "A key cannot be changed: make another under another alias, and rotate to it."
    has, usage, state = str(key["KeySpec"]), str(key["KeyUsage"]), str(key["KeyState"])
    right_spec = has == spec if spec else has in kms.SCHEMES
    differs = f", not {spec}" if spec and has != spec else ""
    enable = "Enable it, or cancel its deletion: with it nothing can be written, and nobody but you knows why it is so."
    text = f"{name} is a key of spec {has}{differs}."
    return [
        known("keys.kms.spec", right_spec, text, another, source=SIGNING_KEY),
        known("keys.kms.usage", usage == "SIGN_VERIFY", f"{name} is made for {usage}.", another, source=SIGNING_KEY),
        known("keys.kms.state", state == "Enabled", f"{name} is {state}.", enable, source=SIGNING_KEY),
    ]


def _describe(client: Any, name: str) -> dict[str, Any] | None:
    try:
        return dict(client.describe_key(KeyId=name)["KeyMetadata"])
    except client.exceptions.NotFoundException:
        return None


async def _make_kms(connection: Connection, client: Any, alias: str, spec: str, tags: dict[str, str]) -> dict[str, Any]:
    create = partial(
        client.create_key,
        KeySpec=spec,
        KeyUsage="SIGN_VERIFY",
        Description=f"Memory Layer: seals the audit log of {tags['service-env']}",
        Tags=[{"TagKey": name, "TagValue": value} for name, value in tags.items()],
    )
    key = (await connection.ask("make a key", create, once=True))["KeyMetadata"]

    def name_it() -> bool:
        try:
            client.create_alias(AliasName=alias, TargetKeyId=key["KeyId"])
        except client.exceptions.AlreadyExistsException:
            # A first try whose answer was lost has made it; another run would have made it for another key.
            found = _describe(client, alias)
            return found is not None and found["KeyId"] == key["KeyId"]
        return True

    if not await connection.ask(f"make {alias}", name_it):
        raise Conflict(
            f"{alias} was made by another run at the same moment. The key {key['Arn']} of this run is used by nobody: schedule its "
            "deletion, and run `memoryctl provision plan keys` again."
        )
    for _ in range(VISIBLE_TRIES):
        if await connection.ask(f"describe {alias}", partial(_describe, client, alias)) is not None:
            break
        await asyncio.sleep(VISIBLE_PAUSE)
    return dict(key)


async def _lacking_tags(connection: Connection, client: Any, key: dict[str, Any], wanted: dict[str, str]) -> list[str]:
    answer = await connection.ask("list the tags", partial(client.list_resource_tags, KeyId=key["KeyId"], Limit=50))
    found = {tag["TagKey"]: tag["TagValue"] for tag in answer["Tags"]}
    return [name for name, value in wanted.items() if found.get(name) != value]


# --- Vault


async def _vault(survey: Survey, settings: Settings, spec: str | None) -> None:
    mount, name = settings.vault_transit_mount.strip("/"), vault.key_name(settings)
    connection, session = await vault.open_session(settings, READ, BUDGET)
    try:
        await _vault_key(survey, connection, session, mount, name, spec)
    finally:
        await connection.close()


async def _vault_key(
    survey: Survey, connection: Connection, session: vault.Session, mount: str, name: str, spec: str | None
) -> None:
    async def mount_transit(_: Any) -> Made[str | None]:
        enable = partial(session.client.sys.enable_secrets_engine, "transit", path=mount)
        await connection.ask(f"mount transit at {mount}/", enable)
        return Made("transit", (f"transit engine at {mount}/",))

    mounted = await survey.check(
        Check[str | None](
            id="keys.vault.mount",
            source=SIGNING_KEY,
            look=lambda: connection.ask("list its engines", partial(_mounted, session, mount)),
            fits=lambda found: found == "transit",
            says=lambda found: f"The engine at {mount}/ is {found}." if found else f"There is no engine at {mount}/.",
            make=mount_transit,
            makes=lambda found: found is None,
            hint=lambda found: (
                "Name a place that is free, or the transit engine's, in VAULT_TRANSIT_MOUNT." if found else _MAKES
            ),
        )
    )
    if mounted not in (None, "transit"):
        return

    async def read() -> dict[str, Any] | None:
        if mounted is None:
            return None
        found: dict[str, Any] | None = await connection.ask(
            f"describe {mount}/{name}", partial(vault.read_key, session, mount, name)
        )
        return found

    async def make(_: Any) -> Made[dict[str, Any] | None]:
        create = partial(
            session.client.secrets.transit.create_key,
            name,
            key_type=spec or "ed25519",
            exportable=False,
            allow_plaintext_backup=False,
            mount_point=mount,
        )
        await connection.ask(f"make {mount}/{name}", create)
        return Made(await read(), (f"Vault key {mount}/{name} ({spec or 'ed25519'})",))

    key = await survey.check(
        Check[dict[str, Any] | None](
            id="keys.vault.exists",
            source=SIGNING_KEY,
            look=read,
            fits=present,
            says=lambda key: (
                f"{mount}/{name} has {len(key['keys'])} versions." if key else f"There is no key {mount}/{name}."
            ),
            make=make,
            hint=_MAKES,
        )
    )
    if key is not None:
        for check in _vault_checks(mount, name, key, spec):
            await survey.check(check)


def _mounted(session: vault.Session, mount: str) -> str | None:
    engine = session.client.sys.list_mounted_secrets_engines()["data"].get(f"{mount}/")
    return None if engine is None else str(engine["type"])


def _vault_checks(mount: str, name: str, key: dict[str, Any], spec: str | None) -> list[Check[bool]]:
    """What a key that is there must be."""
    another = "A key cannot be changed back: make another under another name, and rotate to it."
    where, kind, derived = f"{mount}/{name}", str(key["type"]), bool(key.get("derived"))
    right_spec = (kind == spec if spec else kind in vault.ALGORITHMS) and not derived
    differs = f", not {spec}" if spec and kind != spec else ""
    text = f"{where} is of type {kind}{', derived' if derived else ''}{differs}."
    loose = [flag for flag in ("exportable", "allow_plaintext_backup") if key.get(flag)]
    stays = f"{where} has {' and '.join(loose)} set: it can be copied." if loose else f"{where} stays in Vault."
    allowed = bool(key.get("deletion_allowed"))
    can = f"{where} can{' ' if allowed else 'not '}be deleted."
    forbid = f"Run: vault write {mount}/keys/{name}/config deletion_allowed=false"
    return [
        known("keys.vault.spec", right_spec, text, another, source=SIGNING_KEY),
        known("keys.vault.copies", not loose, stays, another),
        known("keys.vault.deletion", not allowed, can, forbid),
    ]
