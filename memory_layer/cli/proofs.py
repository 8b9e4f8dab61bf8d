"""`memoryctl audit checkpoint` and `audit proof`: what an auditor takes away, and how it is checked without any server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from memory_layer.cli import connection, render
from memory_layer.cli.access import data_folder
from memory_layer.cli.options import AsJson, Data, TrustRootFile
from memory_layer.errors import UsageError, ValidationError

if TYPE_CHECKING:
    from memory_layer.audit.verdict import Finding


async def checkpoint(*, data: Data = None, as_json: AsJson = False) -> None:
    """Print the newest signed checkpoint of the log. Kept elsewhere it is an anchor: the log can no more be cut unnoticed.

    Asks the running product (MEMORY_URL), or where that is not set the database that DATABASE_URL names, for the log that the trust
    root of the data folder names.

    For example:

      memoryctl audit checkpoint > /media/usb/checkpoint.txt
      memoryctl audit verify --anchor /media/usb/checkpoint.txt
    """
    from memory_layer import config
    from memory_layer.audit.checkpoint import parse_checkpoint
    from memory_layer.stores.logs import newest_checkpoint

    dsn = config.load().database_url
    if dsn is not None and not config.environment().get("MEMORY_URL"):
        note = await newest_checkpoint(dsn, data_folder(data))
    else:
        with connection.client() as memory:
            note = memory.checkpoint()
    if as_json:
        found = parse_checkpoint(note)
        shape = {"origin": found.origin, "size": found.size, "root": found.root.hex(), "note": note.decode()}
        render.data(shape)
    else:
        for line in note.decode().splitlines():
            render.line(line)


def vkey(
    *,
    every: Annotated[
        bool, Parameter(name="--all", negative="", help="Keys of earlier times too, oldest first.")
    ] = False,
    trust_root: TrustRootFile = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Print the key that signs checkpoints as other programs take it (c2sp.org/signed-note), one a line.

    With it any client of C2SP transparency logs verifies checkpoints, tiles and proofs of this log. It is as good as the trust root
    that it comes from: without --trust-root that is the copy in the data folder.

    For example:

      memoryctl audit vkey
      memoryctl audit vkey --trust-root /media/usb/trust-root.json --json
    """
    from memory_layer.audit.checkpoint import verifier_key
    from memory_layer.audit.trust_root import load

    path = trust_root or data_folder(data) / "trust-root.json"
    root = load(read_file(path, "the trust root", "Name yours with --trust-root."))
    keys = [key for key in root.keys if key.purpose == "checkpoint" and (every or key.to_seq is None)]
    if not keys:
        raise UsageError(
            f"The trust root {path} has no key for checkpoints"
            + ("." if every else " that is in use; --all prints earlier ones.")
        )
    if as_json:
        facts = [
            {
                "vkey": verifier_key(root.origin, key.public_key),
                "keyId": key.key_id,
                "fromSeq": key.from_seq,
                "toSeq": key.to_seq,
            }
            for key in keys
        ]
        render.data({"origin": root.origin, "trustRoot": root.digest, "keys": facts})
    else:
        for key in keys:
            render.line(verifier_key(root.origin, key.public_key))


def proof(
    event_id: str | None = None,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Write the proof into this file instead of printing it.")] = None,
    verify: Annotated[Path | None, Parameter(help="Check the proof in this file; needs no server.")] = None,
    trust_root: TrustRootFile = None,
    entry: Annotated[Path | None, Parameter(help="For --verify: the entry's bytes, where you have them.")] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Prove that one audit entry is in the log; or check such a proof, by nothing but the trust root.

    EVENT_ID is the `auditId` of a write. The proof carries the entry and the checkpoint that covers it. With --verify: exit 0
    proven, 40 not proven, 50 signed by a key that does not count, 2 the file is no proof, or one without its entry and
    without --entry. Without --trust-root the copy in
    the data folder is used.

    For example:

      memoryctl audit proof 019a7f3e-... --out proof.txt
      memoryctl audit proof --verify proof.txt --trust-root trust-root.json
    """
    if (event_id is None) == (verify is None):
        raise UsageError("name one of both: EVENT_ID for a proof, or --verify FILE to check one.")
    if verify is not None:
        if out is not None:
            raise UsageError("--out is for a new proof; --verify writes nothing.")
        return _verify(verify, trust_root or data_folder(data) / "trust-root.json", entry, as_json)
    if trust_root is not None or entry is not None:
        raise UsageError("--trust-root and --entry are for --verify.")
    with connection.client() as memory:
        text = memory.proof(str(event_id))
    if out is not None:
        out.write_bytes(text)
        render.say(f"the proof of entry {event_id} is in {out}; check it with: memoryctl audit proof --verify {out}")
    elif not as_json:
        for line in text.decode().splitlines():
            render.line(line)
    if as_json:
        from memory_layer.audit.proof import parse_proof

        found = parse_proof(text)
        shape = {"index": found.index, "size": found.checkpoint.size, "origin": found.checkpoint.origin}
        render.data(shape | {"proof": text.decode(), "file": None if out is None else str(out)})
    return 0


def _verify(file: Path, trust_root: Path, entry: Path | None, as_json: bool) -> int:
    from memory_layer.audit.entry import parse_entry
    from memory_layer.audit.proof import MAX_TEXT, parse_proof, verify_proof
    from memory_layer.audit.trust_root import load

    root = load(read_file(trust_root, "the trust root", "Name yours with --trust-root."))
    try:
        found = parse_proof(read_file(file, "the proof", "Name a file that `memoryctl audit proof` wrote.", MAX_TEXT))
    except ValidationError as error:
        raise UsageError(f"{file} cannot be checked. {error.message}") from None
    given = (
        None if entry is None else read_file(entry, "the entry", "Name a file with the entry's exact bytes.", 1 << 16)
    )
    if given is None and found.entry is None:
        raise UsageError(
            f"{file} carries no entry (a line `extra`), so there is nothing that it could be a proof of. Name the file with the entry's "
            "exact bytes with --entry, or ask for the proof again: `memoryctl audit proof` puts the entry into it."
        )
    finding = verify_proof(found, root, entry=given, source=str(file))
    content = given if given is not None else found.entry
    size, origin = found.checkpoint.size, found.checkpoint.origin
    if as_json:
        render.data(
            {
                "proven": finding is None,
                "exitCode": 0 if finding is None else finding.exit_code,
                "origin": origin,
                "index": found.index,
                "size": size,
                "trustRoot": root.digest,
                "entry": content.decode() if finding is None and content is not None else None,
                "finding": None
                if finding is None
                else {"code": finding.code, "expected": finding.expected, "found": finding.found},
            }
        )
    elif finding is None and content is not None:
        proven = parse_entry(content)
        render.line(f"PROVEN: entry {found.index} is in the log {origin}.")
        render.line(
            f"It is a {proven.type} of {proven.ts}, id {proven.id}, among the first {size} entries, as the signed checkpoint says."
        )
        render.line(f"Judged by the trust root sha256:{root.digest}.")
    elif finding is not None:
        render.line(f"NOT PROVEN: {_meaning(finding)} ({finding.code})")
        render.line(f"Expected {finding.expected}; found {finding.found}.")
    return 0 if finding is None else finding.exit_code


def _meaning(finding: Finding) -> str:
    return {
        "PROOF_INVALID": "the proof does not lead from this entry to the checkpoint, or is another entry's.",
        "CHECKPOINT_INVALID": "the checkpoint in it was changed, or its signature was.",
        "KEY_UNKNOWN": "its checkpoint is signed by nobody whom your trust root knows.",
        "ORIGIN_MISMATCH": "it speaks of another log than your trust root does.",
        "NONCANONICAL_ENCODING": "the entry is not in the one form that entries have.",
    }.get(finding.code, "its checkpoint is signed by a key that may not sign it.")


def read_file(path: Path, what: str, hint: str, limit: int = 1 << 20) -> bytes:
    """Raises UsageError where it cannot be read or is longer than ``limit`` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}. {hint}") from error
    if len(data) > limit:
        raise UsageError(f"{what} {path} has more than {limit:,} bytes, which none has. {hint}")
    return data
