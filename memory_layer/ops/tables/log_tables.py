"""The log's own tables against its entries and signed seals: seals, keys, origins, payloads, checkpoints, tiles and the tree's edge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from memory_layer.audit.origin import incarnation_of
from memory_layer.audit.seal import parse_seal
from memory_layer.audit.tree import Frontier, TileWriter
from memory_layer.errors import ValidationError
from memory_layer.ops.tables.found import LOG_TABLE, Look, later, moment
from memory_layer.ops.tables.statements import Statements

TREE_NOT_CHECKED: Final = "tables: audit_tiles, audit_trees, and the tails in archive_segments: they are made of the log's entries, and those are in question"
_SEAL_ROW: Final = "SEAL_ROW_MISMATCH"
_SIGNED: Final = "its signed text says"


def check_seals(look: Look) -> None:
    """Each column of a seal's row against the text that was signed; the server's identity against the rows before and after."""
    found = look.found
    runs: list[tuple[str, int, int]] = []  # system identifier, its first batch here, how many batches
    before: tuple[str, int, int] | None = None  # system identifier, timeline, batch
    for batch, first, last, head, text, key, algorithm, system, timeline, created in look.stream("seals"):
        try:
            seal = parse_seal(text.encode())
        except ValidationError:
            continue  # a finding of the log itself
        stored = (first, last, head, key, algorithm, moment(created))
        signed = (seal.first, seal.last, seal.head, seal.key, seal.alg, seal.time)
        names = ("first_seq", "last_seq", "head", "key_id", "algorithm", "created_at")
        differs = [name for name, one, other in zip(names, stored, signed, strict=True) if one != other]
        if seal.batch != batch:
            differs.append("batch_no")
        found.differ(_SEAL_ROW, f"audit_seals, batch {batch}", _SIGNED, differs, batch=batch)
        if look.imported:  # a copy is nobody's server's
            continue
        if timeline < 1 or (before is not None and before[0] == system and timeline < before[1]):
            found.add(_SEAL_ROW, "timelines that never go back", f"timeline {timeline}", batch=batch)
        if runs and runs[-1][0] == system:
            runs[-1] = (system, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((system, batch, 1))
        before = (system, timeline, batch)
    ((system, timeline),) = look.rows("server")
    if before is not None and before[0] == system and timeline < before[1]:
        found.add(_SEAL_ROW, f"timeline {timeline} at the most, as the server's is", f"{before[1]}", batch=before[2])
    # A database that is moved brings another identifier, and may come back; not for the length of one batch.
    for (one, _, _), (_, batch, count), (other, _, _) in zip(runs, runs[1:], [*runs[2:], (system, 0, 0)], strict=False):
        if one == other and count == 1:
            found.add(_SEAL_ROW, "system_identifier as before and after", "another", batch=batch)


def check_log(look: Look) -> None:
    """The row of the log itself. Rows that name another log are found where the log is chosen."""
    found = look.found
    for origin, incarnation, key, created, imported, text in look.rows("log_row"):
        differs = [] if incarnation == incarnation_of(origin) else ["incarnation"]
        if look.log >= 0 and imported is not None:
            differs.append("imported_at")
        if text is not None:
            try:
                seal = parse_seal(text.encode())
            except ValidationError:
                seal = None
            if seal is not None:
                differs += [] if key == seal.key else ["key_id"]
                # How long before its first entry a log was opened nothing says.
                differs += ["created_at"] if later(moment(created), seal.time) else []
        found.differ(LOG_TABLE, f"audit_logs, log {look.log}", "its origin and its first seal say", differs)


def check_keys(look: Look, stated: Statements) -> None:
    """``audit_keys`` has a row for each change of the key that the log has, and no other."""
    found, rows = look.found, {row[0]: row for row in look.rows("keys")}
    for first, (_, key, algorithm, public, created) in rows.items():
        statement = stated.activated.get(first)
        if statement is None:
            if first - 1 not in stated.unreadable:
                found.add(LOG_TABLE, f"audit_keys: an audit.key.activated before entry {first}", "none for this row")
            continue
        differs = [] if key == statement.key_id and key == hashlib.sha256(public).hexdigest() else ["key_id"]
        differs += [] if algorithm == statement.algorithm else ["algorithm"]
        differs += [] if public == statement.public_key else ["public_key"]
        differs += [] if moment(created) == statement.ts else ["created_at"]
        found.differ(
            LOG_TABLE, f"audit_keys, from entry {first}", f"entry {statement.seq} says", differs, seq=statement.seq
        )
    for first, statement in stated.activated.items():
        if first not in rows:
            found.add(LOG_TABLE, f"audit_keys: the key from entry {first} on", "no such row", seq=statement.seq)


def check_payloads(look: Look) -> None:
    """Payloads without an entry, and those that stand under another tenant."""
    for (seq,) in look.stream("orphans"):
        look.found.add("PAYLOAD_ORPHAN", "an entry for each row of audit_payloads", "none", seq=seq)
    for (seq,) in look.stream("payload_tenants"):
        look.found.add(LOG_TABLE, "audit_payloads: the tenant of the entry", "another", seq=seq)


def check_checkpoints(look: Look) -> None:
    """What the anchors' part of the verifier leaves: when each was made, and that no signature was taken away."""
    for size, unsigned, timely, signed in look.stream("checkpoints"):
        differs = [] if timely or (timely is None and not look.intact) else ["created_at"]
        if unsigned and signed is not None and size < signed:  # they are signed in the order of their sizes
            differs.append("note")
        look.found.differ(LOG_TABLE, f"audit_checkpoints, size {size}", "those after it say", differs)


def check_tree(look: Look, ends: Iterable[int]) -> dict[int, bytes]:
    """Tiles and edge, made again from the entries. The tree (``Frontier.dumps``) at each of the sizes ``ends``, where it was reached."""
    found, trees = look.found, look.rows("tree")
    size, edge, key = trees[0] if trees else (0, [], None)
    stored = {(level, tile): digest for level, tile, digest in look.stream("tiles")}
    writer, frontier, asked = TileWriter(), Frontier(), sorted({end for end in ends if end > 0})
    reached: dict[int, bytes] = {}
    count = 0
    for (leaf,) in look.stream("leaves"):
        if count >= size and not asked:
            break
        count += 1
        frontier.append(leaf)
        if asked and count == asked[0]:
            reached[asked.pop(0)] = frontier.dumps()
        if count <= size:
            for tile in writer.extend([leaf]):
                if stored.pop((tile.level, tile.number), None) != hashlib.sha256(tile.data).digest():
                    place = f"audit_tiles, level {tile.level}, tile {tile.number}"
                    found.add(LOG_TABLE, f"{place}: the hashes of the entries", "others, or none")
    for level, number in sorted(stored):
        found.add(LOG_TABLE, "audit_tiles: full tiles of the tree", f"level {level}, tile {number}, beyond its end")
    if not trees:
        if any(True for _ in look.stream("checkpoints")):
            found.add(LOG_TABLE, "audit_trees: where the published tree ends", "no row")
        return reached
    differs = []
    if size > count:
        differs.append("size")
    elif [bytes(part) for part in edge] != writer.edge:
        differs.append("size or edge")
    checkpoint_keys = {known.key_id for known in look.root.keys if known.purpose == "checkpoint"}
    if checkpoint_keys and key not in checkpoint_keys:
        differs.append("key_id")
    found.differ(LOG_TABLE, "audit_trees", "the entries and the trust root say", differs)
    return reached
