"""`memoryctl audit checkpoint` and `audit proof` as an auditor uses them, against a running product and alone with the files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from memory_layer.audit import trust_root
from memory_layer.audit.checkpoint import parse_checkpoint
from memory_layer.audit.proof import build_proof, parse_proof
from memory_layer.cli import main
from memory_layer.client import MemoryClient
from tests.support.product import Product, clean_environment, run_ctl


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture(scope="module")
def made(product: Product) -> dict[str, Any]:
    with MemoryClient(product.url, product.token) as memory:
        return memory.remember("proven", owner="ann")


@pytest.fixture(scope="module")
def evidence(product: Product, made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a proof, the entry that it proves, and the trust root."""
    folder = tmp_path_factory.mktemp("evidence")
    done = product.ctl("audit", "proof", made["auditId"], "--out", str(folder / "proof.txt"))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "memoryctl audit proof --verify" in done.stderr
    (folder / "trust-root.json").write_bytes((product.data / "trust-root.json").read_bytes())
    proof = parse_proof((folder / "proof.txt").read_bytes())
    assert proof.entry is not None
    (folder / "entry.json").write_bytes(proof.entry)
    return folder


def check(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> tuple[int, str, str]:
    root = str(folder / "trust-root.json")
    return run(capsys, "audit", "proof", "--verify", str(folder / "proof.txt"), "--trust-root", root, *words)


def test_the_checkpoint_is_printed_byte_for_byte(product: Product, made: dict[str, Any], tmp_path: Path) -> None:
    with MemoryClient(product.url, product.token) as memory:
        memory.proof(made["auditId"])  # so that there is one
    printed = product.ctl("audit", "checkpoint")
    assert printed.returncode == 0, printed.stderr
    note = parse_checkpoint(printed.stdout.encode())
    told = json.loads(product.ctl("audit", "checkpoint", "--json").stdout)
    assert (told["origin"], told["size"] >= note.size) == (note.origin, True)
    assert parse_checkpoint(told["note"].encode()).root.hex() == told["root"]
    # Without an API, from the database; not by the trust root of a product that was started on this machine before.
    environment = clean_environment() | {"DATABASE_URL": product.database, "MEMORY_DATA": str(tmp_path)}
    alone = run_ctl("audit", "checkpoint", env=environment)
    assert alone.returncode == 0, alone.stderr
    assert parse_checkpoint(alone.stdout.encode()).origin == note.origin


def test_a_checkpoint_that_was_kept_anchors_the_log(product: Product, made: dict[str, Any], tmp_path: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        printed = product.ctl("audit", "checkpoint")
        if printed.returncode == 0 and parse_checkpoint(printed.stdout.encode()).size > made["audit"]["seq"]:
            break
        assert time.monotonic() < deadline, printed.stderr
    (tmp_path / "anchor").write_text(printed.stdout)
    judged = product.ctl("audit", "verify", "--data", str(product.data), "--anchor", str(tmp_path / "anchor"), "--json")
    verdict = json.loads(judged.stdout)
    assert (judged.returncode, verdict["findings"]) == (0, []), judged.stdout


def test_a_proof_is_printed_as_text_or_as_json(product: Product, made: dict[str, Any]) -> None:
    printed = product.ctl("audit", "proof", made["auditId"])
    assert (printed.returncode, printed.stderr) == (0, "")
    assert parse_proof(printed.stdout.encode()).index == made["audit"]["seq"]
    told = json.loads(product.ctl("audit", "proof", made["auditId"], "--json").stdout)
    assert told["index"] == made["audit"]["seq"]
    assert parse_proof(told["proof"].encode()).checkpoint.size == told["size"]


def test_a_true_proof_is_described_in_words(
    evidence: Path, made: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--entry", str(evidence / "entry.json")]):
        code, out, err = check(capsys, evidence, *more)
        assert (code, err) == (0, "")
        assert out.startswith(f"PROVEN: entry {made['audit']['seq']} is in the log ")
        assert "memory.node.created" in out
        assert made["auditId"] in out
    code, out, _ = check(capsys, evidence, "--json")
    told = json.loads(out)
    assert (code, told["proven"], told["exitCode"], told["finding"]) == (0, True, 0, None)
    assert json.loads(told["entry"])["id"] == made["auditId"]


def test_a_proof_needs_no_server(evidence: Path) -> None:
    words = ["--verify", str(evidence / "proof.txt"), "--trust-root", str(evidence / "trust-root.json")]
    alone = run_ctl("audit", "proof", *words, env=clean_environment() | {"MEMORY_URL": "http://127.0.0.1:9"})
    assert (alone.returncode, alone.stderr) == (0, "")


def another_root(evidence: Path, **changes: Any) -> bytes:
    """The trust root with another key for checkpoints, or another origin."""
    known = trust_root.load((evidence / "trust-root.json").read_bytes())
    der = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    keys = [key for key in known.keys if key.purpose != "checkpoint"]
    keys.append(trust_root.trusted_key("ed25519", der, "checkpoint"))
    return trust_root.dump(changes.get("origin", known.origin), keys)


def test_what_is_not_proven_is_reported_with_its_exit_code(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (evidence / "proof.txt").read_bytes()
    proof = parse_proof(text)
    assert proof.entry is not None
    good, note = (evidence / "trust-root.json").read_bytes(), proof.checkpoint.note
    origin = trust_root.load(good).origin
    other = proof.entry.replace(b'"outcome":"ok"', b'"outcome":"denied"')
    resized = note.replace(f"\n{proof.checkpoint.size}\n".encode(), f"\n{proof.checkpoint.size + 1}\n".encode())
    cases = [
        (build_proof(proof.index, proof.path, note, entry=other), good, 40, "PROOF_INVALID"),
        (build_proof(proof.index + 1, proof.path, note, entry=proof.entry), good, 40, "PROOF_INVALID"),
        (build_proof(proof.index, proof.path, note, entry=b"{}"), good, 40, "NONCANONICAL_ENCODING"),
        (build_proof(proof.index, proof.path, resized, entry=proof.entry), good, 40, "CHECKPOINT_INVALID"),
        (text, another_root(evidence, origin=origin.replace("/dev/", "/prod/")), 40, "ORIGIN_MISMATCH"),
        (text, another_root(evidence), 50, "KEY_UNKNOWN"),
    ]
    for number, (content, root, code, finding) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "proof.txt").write_bytes(content)
        (folder / "trust-root.json").write_bytes(root)
        found, out, _ = check(capsys, folder)
        assert (found, finding in out) == (code, True), (number, out)
        assert out.startswith("NOT PROVEN: ")
        found, out, _ = check(capsys, folder, "--json")
        assert (found, json.loads(out)["finding"]["code"], json.loads(out)["proven"]) == (code, finding, False)


def test_what_cannot_be_checked_is_a_usage_error(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof, root = str(evidence / "proof.txt"), str(evidence / "trust-root.json")
    for words, said in (
        ([], "name one of both"),
        (["x", "--verify", proof], "name one of both"),
        (["--verify", root, "--trust-root", root], "cannot be checked"),
        (["--verify", str(tmp_path / "none"), "--trust-root", root], "cannot be read"),
        (["--verify", proof, "--trust-root", str(tmp_path / "none")], "cannot be read"),
        (["--verify", proof, "--trust-root", proof], "trust-root.json"),
        (["--verify", proof, "--trust-root", root, "--entry", str(tmp_path / "none")], "cannot be read"),
        (["--verify", proof, "--trust-root", root, "--out", "x"], "--out"),
        (["x", "--trust-root", root], "--verify"),
    ):
        code, out, err = run(capsys, "audit", "proof", *words)
        assert (code, out) == (2, ""), err
        assert said in err
        assert err.count("\n") == 1


def test_an_entry_that_is_not_there_is_not_found(product: Product) -> None:
    done = product.ctl("audit", "proof", "00000000-0000-7000-8000-000000000000")
    assert (done.returncode, done.stdout) == (1, "")
    assert "There is no audit entry" in done.stderr
    assert product.ctl("audit", "proof", "x").returncode == 2


def test_the_client_reads_the_log(product: Product, made: dict[str, Any]) -> None:
    with MemoryClient(product.url, product.token) as memory:
        (found,) = memory.events(node=made["memoryNodeId"], type="memory.node.created", page_size=1)
        assert memory.event(found["auditId"])["entry"]["id"] == made["auditId"]
        assert parse_proof(memory.proof(made["auditId"])).index == made["audit"]["seq"]
        assert parse_checkpoint(memory.checkpoint()).size > made["audit"]["seq"]
        assert list(memory.events(node=made["memoryNodeId"], until=found["createdAt"])) == []


def test_a_proof_without_its_entry_is_no_verdict(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (evidence / "proof.txt").read_text()
    (tmp_path / "proof.txt").write_text("".join(x for x in whole.splitlines(True) if not x.startswith("extra ")))
    (tmp_path / "trust-root.json").write_bytes((evidence / "trust-root.json").read_bytes())
    code, out, err = check(capsys, tmp_path)
    assert (code, out) == (2, "")
    assert "--entry" in err
    code, out, _ = check(capsys, tmp_path, "--entry", str(evidence / "entry.json"))
    assert (code, "PROVEN" in out) == (0, True)


def test_the_verifier_key_is_that_of_the_trust_root(evidence: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = evidence / "trust-root.json"
    code, out, _ = run(capsys, "audit", "vkey", "--trust-root", str(root))
    name, key_id, key = out.strip().split("+", 2)
    loaded = trust_root.load(root.read_bytes())
    assert (code, name) == (0, loaded.origin)
    (signature,) = parse_proof((evidence / "proof.txt").read_bytes()).checkpoint.signatures
    assert signature.key_id.hex() == key_id
    code, _, err = run(capsys, "audit", "vkey", "--trust-root", str(evidence / "none.json"))
    assert (code, "cannot be read" in err) == (2, True)
    assert key
