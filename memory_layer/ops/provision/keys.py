"""`memoryctl provision plan / apply keys`: the key that seals the log, in AWS KMS or in Vault's transit engine.

A plan reads only. What is missing is made; what is there and differs is a finding for a person: a key cannot be changed into
another, and one that somebody disabled is not enabled behind their back.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, NamedTuple

from memory_layer.config import Settings
from memory_layer.errors import Conflict, UsageError
from memory_layer.ops.report import Finding
from memory_layer.stores.signers import kms, vault
from memory_layer.stores.signers.remote import Connection

VISIBLE_TRIES, VISIBLE_PAUSE = 30, 0.3  # seconds: KMS shows a new alias to everybody a moment after it was made
READ, BUDGET = 15.0, 20.0  # seconds: a long RSA key takes its time


class Keys(NamedTuple):
    """How things stand, and what was made to get there, a line each.

    A finding that fails has the evidence ``state``: ``missing`` is what apply makes, ``drift`` what it leaves to a person.
    """

    findings: list[Finding]
    made: list[str]


def is_missing(finding: Finding) -> bool:
    """Whether apply makes it."""
    return finding.evidence.get("state") == "missing"


async def plan(settings: Settings, spec: str | None = None) -> Keys:
    """How the keys that the settings name stand. ``spec``: the kind of key, in the service's words; None takes any that seals.

    Raises UsageError, and SignerUnavailable where the service does not answer.
    """
    return await _run(settings, spec, make=False)


async def apply(settings: Settings, spec: str | None = None) -> Keys:
    """Make what is missing. Repeating it makes nothing."""
    return await _run(settings, spec, make=True)


def check(settings: Settings, spec: str | None) -> None:
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


async def _run(settings: Settings, spec: str | None, *, make: bool) -> Keys:
    check(settings, spec)
    return await (_kms if settings.signer == "kms" else _vault)(settings, spec, make)


# --- AWS KMS


async def _kms(settings: Settings, spec: str | None, make: bool) -> Keys:
    client = await asyncio.to_thread(kms.connect, settings, READ)
    connection = kms.open_connection(client, BUDGET)
    made: list[str] = []
    findings: list[Finding] = []
    wanted = {"application": "memory-layer", "purpose": "audit-seal", "service-env": settings.service_env}
    try:
        for name in kms.key_ids(settings):
            key = await connection.ask(f"describe {name}", partial(_describe, client, name))
            if key is None and make and name.startswith("alias/"):
                key = await _make_kms(connection, client, name, spec or "ECC_NIST_P256", wanted)
                made.append(f"KMS key {key['Arn']} ({key['KeySpec']}) with {name}")
            if key is None:
                findings.append(_absent(name))
                continue
            lacking = await _lacking_tags(connection, client, key, wanted)
            if lacking and make:
                tags = [{"TagKey": tag, "TagValue": wanted[tag]} for tag in lacking]
                await connection.ask(f"tag {name}", partial(client.tag_resource, KeyId=key["KeyId"], Tags=tags))
                made.append(f"tags of {name}: {', '.join(lacking)}")
                lacking = []
            findings += _judge_kms(name, key, spec, lacking)
    finally:
        await connection.close()
    return Keys(findings, made)


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


def _absent(name: str) -> Finding:
    if name.startswith("alias/"):
        return _missing("keys.kms.exists", f"There is no {name}.", "memoryctl provision apply keys makes it.")
    hint = "Correct AUDIT_KMS_KEY_ID, or unset it: apply makes keys that have an alias, and names none by itself."
    return _check("keys.kms.exists", False, f"There is no KMS key {name}.", hint)


def _judge_kms(name: str, key: dict[str, Any], spec: str | None, lacking: list[str]) -> list[Finding]:
    another = "A key cannot be changed: make another under another alias, and rotate to it."
    return [
        _right("keys.kms.exists", f"{name} is {key['Arn']}."),
        _check(
            "keys.kms.spec",
            key["KeySpec"] == spec if spec else key["KeySpec"] in kms.SCHEMES,
            f"{name} is a key of spec {key['KeySpec']}"
            + (f", not {spec}." if spec and key["KeySpec"] != spec else "."),
            another,
        ),
        _check("keys.kms.usage", key["KeyUsage"] == "SIGN_VERIFY", f"{name} is made for {key['KeyUsage']}.", another),
        _check(
            "keys.kms.state",
            key["KeyState"] == "Enabled",
            f"{name} is {key['KeyState']}.",
            "Enable it, or cancel its deletion: with it nothing can be written, and nobody but you knows why it is so.",
        ),
        _right("keys.kms.tags", f"{name} has its tags.")
        if not lacking
        else _missing("keys.kms.tags", f"{name} lacks the tags {', '.join(lacking)}.", "apply adds them."),
    ]


def _check(id: str, right: bool, finding: str, hint: str) -> Finding:
    return _right(id, finding) if right else Finding(id, "error", "fail", finding, hint, {"state": "drift"})


def _right(id: str, finding: str) -> Finding:
    return Finding(id, "error", "pass", finding)


def _missing(id: str, finding: str, hint: str) -> Finding:
    return Finding(id, "error", "fail", finding, hint, {"state": "missing"})


# --- Vault


async def _vault(settings: Settings, spec: str | None, make: bool) -> Keys:
    mount, name = settings.vault_transit_mount.strip("/"), vault.key_name(settings)
    connection, session = await vault.open_session(settings, READ, BUDGET)
    made: list[str] = []
    try:
        mounted = await connection.ask("list its engines", partial(_mounted, session, mount))
        if mounted is None and make:
            enable = partial(session.client.sys.enable_secrets_engine, "transit", path=mount)
            await connection.ask(f"mount transit at {mount}/", enable)
            made.append(f"transit engine at {mount}/")
            mounted = "transit"
        key = None
        if mounted == "transit":
            read = partial(vault.read_key, session, mount, name)
            key = await connection.ask(f"describe {mount}/{name}", read)
            if key is None and make:
                transit = session.client.secrets.transit
                create = partial(
                    transit.create_key,
                    name,
                    key_type=spec or "ed25519",
                    exportable=False,
                    allow_plaintext_backup=False,
                    mount_point=mount,
                )
                await connection.ask(f"make {mount}/{name}", create)
                key = await connection.ask(f"describe {mount}/{name}", read)
                made.append(f"Vault key {mount}/{name} ({spec or 'ed25519'})")
    finally:
        await connection.close()
    return Keys(_judge_vault(mount, name, mounted, key, spec), made)


def _mounted(session: vault.Session, mount: str) -> str | None:
    engine = session.client.sys.list_mounted_secrets_engines()["data"].get(f"{mount}/")
    return None if engine is None else str(engine["type"])


def _judge_vault(
    mount: str, name: str, mounted: str | None, key: dict[str, Any] | None, spec: str | None
) -> list[Finding]:
    makes = "memoryctl provision apply keys makes it."
    if mounted is None:
        engine = _missing("keys.vault.mount", f"There is no engine at {mount}/.", makes)
    else:
        engine = _check(
            "keys.vault.mount",
            mounted == "transit",
            f"The engine at {mount}/ is {mounted}.",
            "Name a place that is free, or the transit engine's, in VAULT_TRANSIT_MOUNT.",
        )
    if key is None:
        if mounted not in (None, "transit"):
            return [engine]
        return [engine, _missing("keys.vault.exists", f"There is no key {mount}/{name}.", makes)]
    another = "A key cannot be changed back: make another under another name, and rotate to it."
    kind = str(key["type"])
    loose = [flag for flag in ("exportable", "allow_plaintext_backup") if key.get(flag)]
    return [
        engine,
        _right("keys.vault.exists", f"{mount}/{name} has {len(key['keys'])} versions."),
        _check(
            "keys.vault.spec",
            (kind == spec if spec else kind in vault.ALGORITHMS) and not key.get("derived"),
            f"{mount}/{name} is of type {kind}{', derived' if key.get('derived') else ''}"
            + (f", not {spec}." if spec and kind != spec else "."),
            another,
        ),
        _check(
            "keys.vault.copies",
            not loose,
            f"{mount}/{name} has {' and '.join(loose)} set: it can be copied."
            if loose
            else f"{mount}/{name} stays in Vault.",
            another,
        ),
        _check(
            "keys.vault.deletion",
            not key.get("deletion_allowed"),
            f"{mount}/{name} can{' ' if key.get('deletion_allowed') else 'not '}be deleted.",
            f"Run: vault write {mount}/keys/{name}/config deletion_allowed=false",
        ),
    ]
