"""What the log says of its keys: delegated seal keys and retired ones, and every way in which such an entry does not hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_layer.audit import trust_root as trust_roots
from memory_layer.audit.entry import payload_commitment
from memory_layer.audit.report import render
from memory_layer.audit.verdict import Verdict
from memory_layer.errors import ValidationError

ORIGIN = "memory.example/audit/prod/s0/e1"
VECTORS = json.loads((Path(__file__).parent / "golden" / "tree.json").read_text())
PINNED, DELEGATE, LOCAL, OTHER = 1, 6, 7, 8  # seeds of keys
EXPIRY = "2026-01-02T03:04:20.678901Z"  # the time of batch 15; batches are one second apart


def key(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def trusted(seed: int, purpose: trust_roots.Purpose = "seal", from_seq: int = 0, to_seq: int | None = None) -> Any:
    der = key(seed).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return trust_roots.trusted_key("ed25519", der, purpose, from_seq, to_seq)


def root(*keys: trust_roots.TrustedKey) -> trust_roots.TrustRoot:
    return trust_roots.load(trust_roots.dump(ORIGIN, keys))


ROOT = root(trusted(PINNED), trusted(DELEGATE, "delegate"))


def delegation(
    seed: int = LOCAL,
    from_seq: int = 40,
    expiry: str = EXPIRY,
    by: int = DELEGATE,
    signer: int | None = None,
    origin: str = ORIGIN,
) -> bytes:
    """The payload that lets a key seal."""
    local, delegate = trusted(seed, "seal", from_seq), trusted(by, "delegate")
    text = trust_roots.delegation_text(origin, local, expiry=expiry, delegate=delegate)
    signature = key(by if signer is None else signer).sign(text)
    return trust_roots.activation_payload(local, trust_roots.Delegation(delegate.key_id, expiry, signature))


def say(log: Any, seq: int, payload: bytes, what: str = "audit.key.activated") -> None:
    """Make entry ``seq`` say something of a key."""
    one = log.facts[seq // 10][seq % 10]
    commitment = payload_commitment(one.salt, payload)
    one.members = {**one.members, "type": what, "payload": commitment, "node": None, "version": None, "state": None}
    one.payload = payload


Build = Callable[..., Any]


@pytest.fixture
def sealed(log: Any, rebuilt: Build) -> Build:
    """A log whose batches 4 and later are sealed by a delegated key that entry 35 activates."""

    def build(
        payload: bytes | None = None, *, at: int = 35, trust: Any = ROOT, signer: Any = lambda n: LOCAL if n >= 4 else PINNED,
        retired: tuple[int, bytes] | None = None, batches: int = 15,
    ) -> Any:  # fmt: skip
        say(log, at, payload if payload is not None else delegation())
        if retired is not None:
            say(log, retired[0], retired[1], "audit.key.retired")
        return rebuilt(log.facts[:batches], trust, signer=lambda n: key(signer(n)))

    return build


def found(verdict: Verdict) -> list[tuple[str, int | None]]:
    return [(finding.code, finding.seq if finding.seq is not None else finding.batch) for finding in verdict.findings]


def beneath(verdict: Verdict) -> list[tuple[str, int | None, int | None]]:
    return [
        (other.code, other.batch, other.last_batch) for finding in verdict.findings for other in finding.consequences
    ]


def test_golden_payloads_and_statement() -> None:
    vector = VECTORS["delegation"]
    activation = trust_roots.parse_activation(vector["payload"].encode())
    stated = activation.delegation
    assert stated is not None
    trust = trust_roots.load(VECTORS["trustRoot"].encode())
    delegate = next(one for one in trust.keys if one.key_id == stated.delegate)
    text = trust_roots.delegation_text(VECTORS["origin"], activation.key, expiry=stated.expiry, delegate=delegate)
    assert text.decode() == vector["text"]
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS["delegatePrivateKey"]))
    assert private.sign(text) == stated.signature
    assert trust_roots.activation_payload(activation.key, stated).decode() == vector["payload"]
    retirement = trust_roots.parse_retirement(VECTORS["retirement"].encode())
    assert (retirement.key_id, retirement.to_seq) == (activation.key.key_id, 199)


@pytest.mark.parametrize("payloads", [True, False])
def test_a_delegated_key_seals(sealed: Build, payloads: bool) -> None:
    verdict = sealed().verify(payloads=payloads)
    assert (verdict.findings, verdict.exit_code, verdict.counts.delegated_keys) == ((), 10, 1)
    assert verdict.counts.seals_valid == 15
    assert "delegated keys 1" in render(verdict)


def test_a_delegated_key_may_hand_on_and_be_renewed(log: Any, rebuilt: Build) -> None:
    say(log, 35, delegation())
    say(log, 95, delegation(from_seq=100, expiry="2026-01-02T04:00:00.000000Z"))
    say(log, 155, delegation(OTHER, 160, "2026-01-02T04:00:00.000000Z"))
    both = rebuilt(log.facts, ROOT, signer=lambda n: key(PINNED if n < 4 else LOCAL if n < 16 else OTHER))
    verdict = both.verify()
    assert (verdict.findings, verdict.counts.delegated_keys) == ((), 3)


def test_the_pinned_key_may_go_on_sealing(sealed: Build) -> None:
    assert sealed(signer=lambda n: LOCAL if n >= 4 and n % 2 else PINNED).verify().findings == ()


def test_a_delegated_key_before_its_range(sealed: Build) -> None:
    verdict = sealed(delegation(from_seq=60)).verify()
    assert found(verdict) == [("KEY_NOT_AUTHORISED_FOR_EPOCH", 4)]
    assert verdict.findings[0].last_batch == 5


def test_a_delegated_key_before_it_was_activated(sealed: Build) -> None:
    verdict = sealed(signer=lambda n: LOCAL if n >= 2 else PINNED).verify()
    assert found(verdict) == [("KEY_UNKNOWN", 2)]
    assert verdict.findings[0].last_batch == 3


def test_a_delegated_key_after_its_expiry(sealed: Build) -> None:
    verdict = sealed(batches=18).verify()
    assert found(verdict) == [("KEY_EPOCH_CLOSED", 16)]
    assert (verdict.findings[0].last_batch, verdict.exit_code) == (17, 50)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (delegation(signer=OTHER), "KEY_ENTRY_INVALID"),
        (delegation(origin=ORIGIN.replace("prod", "dev")), "KEY_ENTRY_INVALID"),
        (delegation(from_seq=35), "KEY_ENTRY_INVALID"),
        (delegation(expiry="2026-01-02T03:04:08.678901Z"), "KEY_ENTRY_INVALID"),
        (delegation(by=OTHER), "KEY_ENTRY_INVALID"),
        (delegation(by=PINNED), "KEY_ENTRY_INVALID"),
        (b"{}", "KEY_ENTRY_INVALID"),
        (b"not JSON", "NONCANONICAL_ENCODING"),
    ],
)  # fmt: skip
def test_an_activation_that_does_not_hold(sealed: Build, payload: bytes, code: str) -> None:
    verdict = sealed(payload).verify()
    assert found(verdict) == [(code, 35)]
    assert ("KEY_UNKNOWN", 4, 14) in beneath(verdict)
    assert (verdict.exit_code, verdict.counts.delegated_keys) == (50, 0)


@pytest.mark.parametrize("changed", ["from_seq", "expiry", "key"])
def test_what_is_stated_must_be_what_was_signed(sealed: Build, changed: str) -> None:
    document, seed = json.loads(delegation()), LOCAL
    if changed == "from_seq":
        document["from_seq"] = 36
    elif changed == "expiry":
        document["delegation"]["expiry"] = "2026-01-02T04:00:00.000000Z"
    else:
        seed = OTHER
        document |= {name: json.loads(delegation(OTHER))[name] for name in ("key_id", "public_key")}
    verdict = sealed(json.dumps(document).encode(), signer=lambda n: seed if n >= 4 else PINNED).verify()
    assert found(verdict) == [("KEY_ENTRY_INVALID", 35)]
    assert beneath(verdict) == [("KEY_UNKNOWN", 4, 14)]


def test_a_key_that_the_trust_root_has_is_not_delegated(sealed: Build) -> None:
    trust = root(trusted(PINNED), trusted(DELEGATE, "delegate"), trusted(LOCAL, "manifest"))
    assert found(sealed(trust=trust).verify()) == [("KEY_ENTRY_INVALID", 35), ("KEY_NOT_AUTHORISED_FOR_EPOCH", 4)]


def test_the_range_of_the_delegate(sealed: Build) -> None:
    later = sealed(trust=root(trusted(PINNED), trusted(DELEGATE, "delegate", 41))).verify()
    assert found(later) == [("KEY_ENTRY_INVALID", 35)]
    closed = sealed(trust=root(trusted(PINNED), trusted(DELEGATE, "delegate", 0, 39))).verify()
    assert found(closed) == [("KEY_ENTRY_INVALID", 35)]
    ends = sealed(trust=root(trusted(PINNED), trusted(DELEGATE, "delegate", 0, 99))).verify()
    assert found(ends) == [("KEY_EPOCH_CLOSED", 10)]
    assert ends.findings[0].last_batch == 14


def test_an_activation_whose_payload_was_edited_or_is_gone(sealed: Build) -> None:
    edited = sealed()
    edited.edit(35, payload=edited.rows[35].payload.replace(b'"from_seq":40', b'"from_seq":39'))
    verdict = edited.verify()
    assert found(verdict) == [("PAYLOAD_COMMITMENT_MISMATCH", 35)]
    assert ("KEY_UNKNOWN", 4, 14) in beneath(verdict)
    assert found(edited.verify(payloads=False)) == [("PAYLOAD_COMMITMENT_MISMATCH", 35)]
    edited.edit(35, payload=None, salt=None)
    gone = edited.verify()
    assert found(gone) == [("PAYLOAD_MISSING_UNAUTHORISED", 35)]
    assert beneath(gone) == [("KEY_UNKNOWN", 4, 14)]
    unread = edited.verify(payloads=False)
    assert found(unread) == [("KEY_UNKNOWN", 4)]
    assert any(line.startswith("keys") for line in unread.not_checked)


def test_an_activation_without_a_delegation_gives_no_right(sealed: Build) -> None:
    announced = trust_roots.activation_payload(trusted(LOCAL, "seal", 40))
    assert found(sealed(announced).verify()) == [("KEY_UNKNOWN", 4)]
    pinned = root(trusted(PINNED, to_seq=39), trusted(LOCAL, "seal", 40))
    assert sealed(announced, trust=pinned).verify().findings == ()


# --- Retired ---------------------------------------------------------------------------------------------------------


def rotation(sealed: Build, at: int, to_seq: int, **how: Any) -> Any:
    """The pinned key is retired at entry ``at``; a second pinned one seals from batch 4 on."""
    trust = root(trusted(PINNED), trusted(LOCAL, "seal", 40))
    announced = trust_roots.activation_payload(trusted(LOCAL, "seal", 40))
    retired = trust_roots.retirement_payload(trusted(PINNED).key_id, to_seq)
    return sealed(announced, trust=trust, retired=(at, retired), **how)


def test_a_rotation(sealed: Build) -> None:
    assert rotation(sealed, 45, 39).verify().findings == ()


def test_a_retired_key_seals_again(sealed: Build) -> None:
    verdict = rotation(sealed, 45, 39, signer=lambda n: LOCAL if 4 <= n < 8 else PINNED).verify()
    assert found(verdict) == [("KEY_EPOCH_CLOSED", 8)]
    assert verdict.findings[0].last_batch == 14


def test_a_retirement_that_the_log_belies(sealed: Build) -> None:
    assert found(rotation(sealed, 45, 38).verify()) == [("KEY_EPOCH_CLOSED", 45)]
    assert found(rotation(sealed, 45, 46).verify()) == [("KEY_ENTRY_INVALID", 45)]


def test_a_delegated_key_is_retired_too(sealed: Build) -> None:
    retired = trust_roots.retirement_payload(trusted(LOCAL).key_id, 79)
    ended = sealed(retired=(85, retired), signer=lambda n: LOCAL if 4 <= n < 8 else PINNED)
    assert ended.verify().findings == ()
    again = sealed(retired=(85, retired), signer=lambda n: PINNED if n in (0, 1, 2, 3, 8) else LOCAL)
    assert found(again.verify()) == [("KEY_EPOCH_CLOSED", 9)]


def test_retiring_a_key_of_another_purpose_leaves_seals_alone(sealed: Build) -> None:
    retired = trust_roots.retirement_payload(trusted(PINNED).key_id, 39, "checkpoint")
    assert sealed(retired=(45, retired), signer=lambda _n: PINNED).verify().findings == ()


# --- The payloads' one form ------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_payloads_are_read_strictly(data: st.DataObject) -> None:
    document = json.loads(delegation())
    inner = data.draw(st.booleans())
    target = document["delegation"] if inner else document
    name = data.draw(st.sampled_from(sorted(target)))
    action = data.draw(st.sampled_from(["drop", "rename", "null", "number", "text", "list"]))
    value = target.pop(name)
    if action == "rename":
        target[name + "_"] = value
    elif action != "drop":
        target[name] = {"null": None, "number": -1, "text": "A=", "list": []}[action]
    if (name, action) == ("delegation", "null"):
        return
    with pytest.raises(ValidationError):
        trust_roots.parse_activation(json.dumps(document).encode())


@pytest.mark.parametrize(
    "change", [{"key_id": "A" * 64}, {"key_id": 1}, {"purpose": "all"}, {"to_seq": -1}, {"to_seq": "1"}, {"more": 1}]
)
def test_retirements_are_read_strictly(change: dict[str, Any]) -> None:
    document = json.loads(trust_roots.retirement_payload("a" * 64, 7)) | change
    with pytest.raises(ValidationError):
        trust_roots.parse_retirement(json.dumps(document).encode())
    with pytest.raises(ValidationError):
        trust_roots.retirement_payload("a" * 63, 7)


def test_only_seal_keys_are_delegated() -> None:
    stated = trust_roots.Delegation("a" * 64, EXPIRY, bytes(64))
    with pytest.raises(ValidationError, match="seal"):
        trust_roots.activation_payload(trusted(LOCAL, "checkpoint"), stated)
    assert trust_roots.activation_payload(trusted(LOCAL, "checkpoint"))
