"""`memoryctl rotate signing-key`: from some entry on another key seals the log, and all that was sealed before stays verifiable.

The steps, in an order in which a run may be cut off anywhere:

1. key: a local key is made, a file of its own beside the one in use. In KMS and Vault the key must be there already.
2. announce: the next version of ``trust-root.json`` names the new key too, from the first entry that it could seal. Both keys
   count for a moment, so that whatever servers commit from here on verifies with the data folder's own file.
3. activate: ``audit.key.activated`` in the log, sealed by the old key. From the next batch on the new key seals: servers read
   that under the log lock, and open their keys again when they have not got it.
4. close: a version of ``trust-root.json`` with the bounds that are known now: the old key up to the activation, the new one after.
5. retire: ``audit.key.retired`` in the log, sealed by the new key.
6. put away: the old key's file moves to ``keys/retired``, or is destroyed.

Nothing else keeps the state: each step is done when what it leaves behind is not there, and a run goes on where the one before
ended. What goes into the trust root is never taken from the database's word: the new key is one that this machine can seal with,
and its bounds are those of an entry under a seal of the old key. Each version replaced stays as ``trust-root.v<N>.json``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from memory_layer.audit.trust_root import TrustedKey, TrustRoot, trusted_key
from memory_layer.errors import PolicyRefused, SignerUnavailable, UsageError
from memory_layer.model import Caller
from memory_layer.ops.durable_files import destroy, make_key, put_away, write_once
from memory_layer.ops.prod_guard import refuse_copied_key
from memory_layer.ops.report import Finding
from memory_layer.ops.seal_keys import (
    Held,
    Log,
    files_of,
    held_keys,
    prove,
    read_log,
    seal_key,
    write_trust_root,
)
from memory_layer.service.actions.log import ActivateKey, RetireKey
from memory_layer.service.commit import Change, Committer
from memory_layer.service.commit.transaction import SIGNER_TIMEOUT
from memory_layer.service.installation import Installation, open_guard
from memory_layer.service.system import system_caller
from memory_layer.stores.key_ring import KeyRing
from memory_layer.stores.log_guard import LogGuard
from memory_layer.stores.log_writer import LogWriter
from memory_layer.stores.logs import TRUST_ROOT, find_log, read_trust_root
from memory_layer.stores.protocols import Signer
from memory_layer.stores.signers.local import open_local_signer

LOCK: Final = "rotate-signing-key"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rotation is to do. ``new``: None is a local key that is still to be made. ``todo``: the steps left, in words."""

    origin: str
    old: str
    new: Held | None
    old_held: Held | None  # None: this machine has not got it (any more), which matters only before the activation
    activated: bool  # by a run that was cut off: only the rest is to do
    todo: tuple[str, ...]


async def plan(installation: Installation, *, new_key: str | None = None, destroy_old: bool = False) -> Plan:
    """What a rotation would do; changes nothing. ``new_key``: the name or the id of the key, where there are several.

    Raises UsageError (no key to change to, no trust root), PolicyRefused (this machine has not got the log's key, or trust root
    and log do not belong together), and what opening keys raises.
    """
    refuse_copied_key(installation.settings)
    async with held_keys(installation) as held:
        root = read_trust_root(installation.folder)
        log = await read_log(installation.postgres, root.origin)
        return _plan(installation, held, log, root, new_key, destroy_old)


async def steps(
    installation: Installation, *, new_key: str | None = None, destroy_old: bool = False
) -> AsyncIterator[str]:
    """Rotate; after each step what it has done, as a line. Raises like ``plan``, and what a commit raises: run it again then."""
    folder = installation.folder
    refuse_copied_key(installation.settings)
    if (made := await _make_local(installation, new_key)) is not None:
        yield made
    async with held_keys(installation) as held:
        root = read_trust_root(folder)
        log = await read_log(installation.postgres, root.origin)
        found = _plan(installation, held, log, root, new_key, destroy_old)
        new = found.new
        assert new is not None  # noqa: S101 - the key was made above
        if not found.activated:
            assert found.old_held is not None  # noqa: S101 - _plan saw to that
            if (announced := _announce(folder, root, log, new.signer)) is not None:
                yield f"{TRUST_ROOT} is version {announced.version}: it names the new key too"
            async with _committing(installation, found.old_held) as (committer, caller):
                signer = new.signer
                action = ActivateKey(signer.key_id, signer.algorithm, signer.public_key_der)
                await committer.submit(Change(caller, action))
            log = await read_log(installation.postgres, root.origin)
            yield f"activated: the new key seals from entry {log.current.from_seq} on"
        root, written = _close(folder, read_trust_root(folder), log, new)
        if written:
            yield f"{TRUST_ROOT} is version {root.version}: the old key's time ends with entry {log.current.from_seq - 1}"
        if log.retired != found.old:
            async with _committing(installation, new) as (committer, caller):
                await committer.submit(Change(caller, RetireKey(found.old, log.current.from_seq - 1)))
            yield "retired the old key in the log"
        for path in files_of(held, log):
            yield _put_away(folder, path, destroy_old)


async def result(installation: Installation) -> dict[str, Any]:
    """How the keys stand, as facts for a report; to be asked when a rotation is through."""
    folder = installation.folder
    root = read_trust_root(folder)
    await installation.need("postgres")
    log = await read_log(installation.postgres, root.origin)
    return {
        "origin": log.origin,
        "sealedBy": log.current.key_id,
        "fromSeq": log.current.from_seq,
        "keyBefore": log.epochs[-2].key_id if len(log.epochs) > 1 else None,
        "trustRoot": str(folder / TRUST_ROOT),
        "version": root.version,
        "sha256": root.digest,
    }


def finding_of(facts: dict[str, Any]) -> Finding:
    """What is left to people after a rotation."""
    text = f"Whoever pinned an older {TRUST_ROOT} finds KEY_UNKNOWN from entry {facts['fromSeq']} on."
    hint = f"Give them {facts['trustRoot']}, sha256:{facts['sha256']}. Copy it to the data folder of every other server too."
    return Finding("rotate.trust-root", "info", "pass", text, hint)


# --- the plan


def _plan(
    installation: Installation, keys: list[Held], log: Log, root: TrustRoot, wanted: str | None, destroy_old: bool
) -> Plan:
    held = {key.key_id: key for key in reversed(keys)}
    current = log.current
    if _unfinished(keys, log, root):
        old, new = log.epochs[-2].key_id, held.get(current.key_id)
        if new is None:
            raise _without_key(current.key_id, root)
        todo = _words(new, log, root, destroy_old)
        return Plan(log.origin, old, new, held.get(old), True, todo)
    known = seal_key(root, current.key_id)
    if known is None or known.to_seq is not None:
        problem = "does not name" if known is None else f"ends the time at entry {known.to_seq} of"
        raise PolicyRefused(
            f"{installation.folder / TRUST_ROOT} {problem} the key {current.key_id[:16]}... that seals the log. Put back the trust root that "
            "belongs to this log; after a restored backup, that of its time."
        )
    if current.key_id not in held:
        raise _without_key(current.key_id, root)
    new = _candidate(installation.settings.signer, keys, log, root, wanted)
    todo = _words(new, log, root, destroy_old)
    return Plan(log.origin, current.key_id, new, held[current.key_id], False, todo)


def _without_key(key: str, root: TrustRoot) -> PolicyRefused:
    elsewhere = "" if seal_key(root, key) is not None else f" Then copy its {TRUST_ROOT} here."
    return PolicyRefused(
        f"The log is sealed by the key {key[:16]}..., and this machine has not got it: only who has it can change it. Run this where "
        "that key is: the data folder (--data) with its keys, or the AUDIT_KMS_KEY_ID or AUDIT_VAULT_KEY that the servers run with."
        + elsewhere
    )


def _unfinished(held: list[Held], log: Log, root: TrustRoot) -> bool:
    """Whether the log has changed its key, and what follows from that is not all done."""
    if len(log.epochs) < 2:
        return False
    old, new = seal_key(root, log.epochs[-2].key_id), seal_key(root, log.current.key_id)
    if old is None and new is not None:
        return False  # the trust root began after that
    bounds = (old.to_seq if old else None, new.from_seq if new else None)
    done = bounds == (log.current.from_seq - 1, log.current.from_seq) and log.retired == log.epochs[-2].key_id
    return not done or bool(files_of(held, log))


def _candidate(kind: str, held: list[Held], log: Log, root: TrustRoot, wanted: str | None) -> Held | None:
    """The key to change to; None: one that is to be made. A key that has sealed once is never taken again, for it was retired."""
    used = {epoch.key_id for epoch in log.epochs} | {
        key.key_id for key in root.keys if key.purpose != "seal" or key.to_seq is not None
    }
    own = [key for key in held if key.kind == kind]
    if kind == "vault":  # the versions, newest first: an older one than that in use is no step forward
        ids = [key.key_id for key in own]
        own = own[: ids.index(log.current.key_id)] if log.current.key_id in ids else own
    free = [key for key in own if key.key_id not in used]
    if wanted is not None:
        chosen = [key for key in free if wanted == key.name or (len(wanted) >= 12 and key.key_id.startswith(wanted))]
        if len(chosen) != 1:
            there = ", ".join(f"{key.name} ({key.key_id[:12]})" for key in free) or "none"
            raise UsageError(
                f"--new-key {wanted} is none of the keys that the log can change to: {there}. {_PREPARE[kind]}"
            )
        return chosen[0]
    if kind == "kms" and len(free) > 1:
        raise UsageError(
            f"AUDIT_KMS_KEY_ID names several keys that have not sealed yet: {', '.join(key.name for key in free)}. Say which with --new-key."
        )
    if not free and kind != "local":
        raise UsageError(f"There is no key to change to. {_PREPARE[kind]}")
    return free[0] if free else None


_PREPARE: Final = {
    "local": "Without --new-key one is made.",
    "kms": "Make one (`memoryctl provision apply keys` with another alias in AUDIT_KMS_KEY_ID), set AUDIT_KMS_KEY_ID=<old>,<new> for "
    "every server and worker and start them again, and run this with the same setting. A key that has sealed before cannot come back.",
    "vault": "Make a new version of the transit key: vault write -f <mount>/keys/<key>/rotate. Servers find it by themselves.",
}


def _words(new: Held | None, log: Log, root: TrustRoot, destroy_old: bool) -> tuple[str, ...]:
    """The steps left. What a new local key's id will be is not known before it is made."""
    old = log.current.key_id
    if new is None or new.key_id != old:
        first = ["make a key in a file of its own (keys/seal-<id>.pem)"] if new is None else []
        return (
            *first,
            f"{TRUST_ROOT} version {root.version + 1}: names the new key too",
            f"audit.key.activated in the log, sealed by the old key {old[:16]}...; the new one seals from the next batch on",
            f"{TRUST_ROOT} version {root.version + 2}: the old key up to that entry, the new key after it",
            "audit.key.retired in the log, sealed by the new key",
            "the old key's file, where it is one: destroyed"
            if destroy_old
            else "the old key's file, where it is one: to keys/retired",
        )
    return (
        f"finish the change to the key {old[:16]}..., sealing from entry {log.current.from_seq} on: {TRUST_ROOT}, retirement, old file",
    )


# --- the steps


async def _make_local(installation: Installation, wanted: str | None) -> str | None:
    """Step 1. A file in ``keys`` whose key the log does not know yet is taken instead of another: a run was cut off after it."""
    if (await plan(installation, new_key=wanted)).new is not None:
        return None
    folder = installation.folder
    pem, draft = make_key(), folder / "keys" / "seal-new"
    # The file is named after its key, which is known once it is opened.
    write_once(draft, pem, 0o600)
    path = folder / "keys" / f"seal-{open_local_signer(draft).key_id[:12]}.pem"
    put_away(draft, path, 0o600)
    return f"made {path}"


def _announce(folder: Path, root: TrustRoot, log: Log, new: Signer) -> TrustRoot | None:
    """Step 2. The activation is entry ``last_seq`` + 1 at the earliest, so the new key seals from the one after at the earliest."""
    if seal_key(root, new.key_id) is not None:
        return None
    key = trusted_key(new.algorithm, new.public_key_der, "seal", log.last_seq + 2)
    return write_trust_root(folder, root, (*root.keys, key))


def _close(folder: Path, root: TrustRoot, log: Log, new: Held) -> tuple[TrustRoot, bool]:
    """Step 4: the trust root, and whether it had to be written. Raises PolicyRefused when no seal proves the activation."""
    old = seal_key(root, log.epochs[-2].key_id)
    if old is None:
        raise PolicyRefused(
            f"{folder / TRUST_ROOT} does not know the key {log.epochs[-2].key_id[:16]}... that sealed before the one in use, so it "
            f"cannot tell that this change was meant. Copy {TRUST_ROOT} from the machine where the key was changed."
        )
    prove(log, old, new.signer)
    after = trusted_key(new.signer.algorithm, new.signer.public_key_der, "seal", log.current.from_seq)
    sealed = {epoch.key_id for epoch in log.epochs}
    keys: list[TrustedKey] = []
    for key in root.keys:
        if key.purpose == "seal" and key.key_id == old.key_id:
            keys.append(replace(key, to_seq=log.current.from_seq - 1))
        elif key.purpose != "seal" or (key.key_id != after.key_id and (key.key_id in sealed or key.to_seq is not None)):
            # Not one that an earlier run announced and nobody activated: its time would never end.
            keys.append(key)
    keys.append(after)
    if sorted(keys, key=_order) == sorted(root.keys, key=_order):
        return root, False
    return write_trust_root(folder, root, keys), True


def _order(key: TrustedKey) -> tuple[str, str]:
    return key.purpose, key.key_id


def _put_away(folder: Path, path: Path, destroyed: bool) -> str:
    """Step 6. Kept by default: a database restored to a time before the change is sealed by that key again."""
    if destroyed:
        destroy(path)
        return f"destroyed {path}"
    target = folder / "keys" / "retired" / f"seal-{open_local_signer(path).key_id[:12]}.pem"
    put_away(path, target, 0o400)
    return f"the old key is in {target}"


@contextlib.asynccontextmanager
async def _committing(installation: Installation, key: Held) -> AsyncIterator[tuple[Committer, Caller]]:
    """A committer that seals with this key and no other: nothing is written when another key has to seal."""

    async def reopen() -> list[Signer]:
        raise SignerUnavailable("the log has changed its key meanwhile")

    root = read_trust_root(installation.folder)  # which the steps change
    guard = await open_guard(installation, root, await find_log(installation.postgres, root.origin))
    writer = LogWriter(installation.dsn, SIGNER_TIMEOUT, LogGuard(root, installation.folder))
    committer = Committer(writer, KeyRing([key.signer], reopen), rollback_guard=guard)
    try:
        yield committer, await system_caller(installation, "memoryctl")
    finally:
        await committer.close()
