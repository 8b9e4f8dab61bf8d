"""What each finding means for somebody who has never seen a log: a sentence, and why it matters. And the verdict in one sentence.

In the sentences {it} is what the finding is about ("Memory node X of tenant T", "Entry 515 of the log", "3 entries of the log"), {was}
and {has} follow its number, {after} is " after <time>" where the last good record is known; in what matters {Its} is Its or Their.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Plain(NamedTuple):
    says: str
    matters: str


_UNRELIABLE: Final = "{Its} content cannot be relied on."
_ORDER: Final = "Nothing at this place, and nothing that builds on it, can be relied on."
_KEYS: Final = "What it signs cannot be counted as signed."
_ELSEWHERE: Final = "History was rewritten, or this is an older state. Compare with the copy that was kept elsewhere."

FINDINGS: Final[Mapping[str, Plain]] = {
    "TRUST_ROOT_UNPINNED": Plain(
        "The file that says whose signatures count came together with what is judged.",
        "Who made the log may have made that file too. Give the copy that you keep yourself (--trust-root).",
    ),
    "ORIGIN_MISMATCH": Plain(
        "{it} {has} the name of another log.", "Records of one installation are shown as those of another."
    ),
    "FOREIGN_LOG": Plain(
        "{it} {was} found in a log that the trust root does not know.",
        "Such records prove nothing; somebody may have put them there to explain a change.",
    ),
    "WORM_POLICY_VIOLATION": Plain(
        "{it} {was} not locked against deletion as the archive must be.",
        "Records could be removed before their time is over.",
    ),
    "ARCHIVE_VERSION_SHADOWED": Plain(
        "{it} {was} covered in the object store by a newer version or marked as deleted.",
        "Somebody wrote over the archive. The covered version may still be right.",
    ),
    "ARCHIVE_TRUNCATED": Plain("{it} {was} cut short or is missing in the archive.", "Records are missing."),
    "ARCHIVE_MALFORMED": Plain(
        "{it} {was} not written by this program: more, less or something else than it must hold.",
        "The evidence was made or changed by other means than an export.",
    ),
    "FILE_NOT_AS_EXPORTED": Plain(
        "{it} {was} not as exported.",
        "Most often a copy was cut short or converted on its way: copy it again, as binary. Where a fresh copy differs too, "
        "somebody changed it.",
    ),
    "MANIFEST_SIGNATURE_INVALID": Plain(
        "The signature of the list of contents does not fit.", "The list was changed after it was signed."
    ),
    "ARCHIVE_RANGE_GAP": Plain("{it} {was} not found in the archive: segments are missing.", "Records are missing."),
    "ARCHIVE_CHAIN_BROKEN": Plain(
        "{it} {has} no continuation in the archive: segments do not follow one another.",
        "A segment was replaced, left out or renamed.",
    ),
    "NONCANONICAL_ENCODING": Plain(
        "{it} {was} not written in the one form in which this program writes.",
        "Something else made or changed what stands there.",
    ),
    "GENESIS_MISSING": Plain("The log does not begin at its first entry.", "What happened before is not shown here."),
    "EMPTY_BUT_ANCHORED": Plain("The log is empty, and a signed copy of its state says that it was not.", _ELSEWHERE),
    "FORK_DETECTED": Plain("{it} {was} recorded twice, with different content.", "One of the two was forged."),
    "ENTRY_SEQ_MISMATCH": Plain("{it} {was} moved to another place in the log.", _ORDER),
    "KEY_ENTRY_INVALID": Plain("{it} should announce a signing key, and does not do so properly.", _KEYS),
    "ALG_NOT_ALLOWED": Plain("{it} {was} signed by a method that is not allowed.", _KEYS),
    "KEY_UNKNOWN": Plain("{it} {was} signed by a key that the trust root does not name.", _KEYS),
    "KEY_NOT_AUTHORISED_FOR_EPOCH": Plain("{it} {was} signed by a key that was not allowed to, or not yet.", _KEYS),
    "KEY_EPOCH_CLOSED": Plain("{it} {was} signed by a key whose time was over.", _KEYS),
    "SEAL_MISSING": Plain(
        "{it} {has} no signature.", "Nothing proves that the service wrote this; it may have been added by hand."
    ),
    "SEAL_INVALID": Plain(
        "{it} {has} a signature that does not fit.", "What was signed was changed afterwards, or was never signed."
    ),
    "SEAL_HEAD_MISMATCH": Plain("{it} {has} a signature over other entries than these.", _ORDER),
    "SEAL_CHAIN_BROKEN": Plain(
        "{it} {was} not preceded by what its signature names.", "Signed records are missing or were exchanged."
    ),
    "SEQ_GAP": Plain(
        "{it} {was} removed from the log.",
        "What was recorded there is lost: somebody took it out, or only a part was restored.",
    ),
    "SEAL_RANGE_INCOMPLETE": Plain(
        "The log ends before its last signature says that it ends.", "The newest records were removed."
    ),
    "PREV_LINK_BROKEN": Plain("{it} {was} changed, or the entry before.", _ORDER),
    "CHECKPOINT_INVALID": Plain(
        "A signed copy of the log's state has a signature that does not fit.", "It was forged or damaged."
    ),
    "PROOF_INVALID": Plain("The proof does not show that the entry is in the log.", "Do not rely on the entry."),
    "EQUIVOCATION": Plain(
        "Two signed copies of the log's state contradict each other.",
        "Two people were shown two histories, both signed.",
    ),
    "TAIL_TRUNCATED": Plain(
        "The log is shorter than a signed copy of its state says.", "The newest records were removed. " + _ELSEWHERE
    ),
    "CHECKPOINT_INCONSISTENT": Plain(
        "The log is another than the one that a signed copy of its state speaks of.", _ELSEWHERE
    ),
    "ROLLBACK_DETECTED": Plain(
        "The log is not the continuation of what was archived or kept elsewhere.",
        "The database was set back to an earlier state, or replaced. Writes are refused until an operator decides.",
    ),
    "PROJECTION_MISMATCH": Plain(
        "{it} {was} changed in the database or bundle, and differs from the signed record that it repeats.",
        "Only the signed record counts; what repeats it was altered.",
    ),
    "SEAL_ROW_MISMATCH": Plain(
        "{it} {has} a signature whose row in the database differs from the text that was signed.",
        "Somebody changed the table of signatures by hand.",
    ),
    "LOG_TABLE_MISMATCH": Plain(
        "A table that the log uses for itself (its keys, copies of its state, its tree) is not what the log says.",
        "Somebody changed it by hand; proofs made from it may be wrong.",
    ),
    "ID_DUPLICATE": Plain("{it} {has} an id that another record has too.", "A record was copied."),
    "TIME_REGRESSION": Plain(
        "{it} {was} dated before the entry in front of it.", "Times in the log cannot be relied on here."
    ),
    "TIME_SKEW": Plain(
        "{it} {has} two times that contradict each other.", "Times in the log cannot be relied on here."
    ),
    "PAYLOAD_COMMITMENT_MISMATCH": Plain(
        "The recorded content of {it} {was} changed after it was recorded.",
        "The entry itself holds; its details cannot be relied on.",
    ),
    "PAYLOAD_MISSING_UNAUTHORISED": Plain(
        "The recorded content of {it} {was} removed, and no erasure on record allows that.",
        "That something happened is proved; what it was is lost.",
    ),
    "PAYLOAD_ORPHAN": Plain(
        "{it} {was} recorded content that belongs to no entry.", "Somebody added this by hand; it proves nothing."
    ),
    "ERASURE_INCOMPLETE": Plain(
        "{it} {was} to be erased, and {was} still there.", "Personal data that should be gone can still be read."
    ),
    "STATE_UNEXPLAINED": Plain(
        "{it} {was} changed{after} without a record, and a later write then recorded the changed state.",
        "What stands there cannot be explained by the writes on record. " + _UNRELIABLE,
    ),
    "STATE_RECONCILE_MISMATCH": Plain("{it} {was} changed{after} without a record.", _UNRELIABLE),
    "SCHEMA_DRIFT": Plain(
        "The database is not built as this version builds it: a table, rule, function or permission differs.",
        "It may hide or change rows without a trace. `memoryctl migrate drift` names what differs.",
    ),
    "ANCHOR_STALE": Plain(
        "The newest copy of the log's state that was kept elsewhere is old.",
        "What was recorded since could still be taken away unnoticed. Keep a newer one.",
    ),
}

# Of a row that is not where it should be, by what was found of it.
_ROWS: Final[Mapping[str, Plain]] = {
    "no such row": Plain(
        "{it} {was} removed from the database{after} without a record.", "Nobody who asks for it is given it."
    ),
    "a row": Plain(
        "{it} {was} put back into the database without a record.", "{Its} removal is on record, and nothing since."
    ),
    "has none": Plain("{it} {was} put into the database without a record.", "The service did not write it."),
}

VERDICTS: Final[Mapping[str, str]] = {
    "OK_ANCHORED": "the log is whole, and agrees with the copy of its state that was kept elsewhere",
    "CONSISTENT_UNANCHORED": "the log agrees with itself; no copy of its state from elsewhere was there to show that nothing was taken "
    "off its end",
    "ANCHOR_STALE": "the log agrees with itself, and with a copy of its state from elsewhere that is too old",
    "INCOMPLETE": "not all of the log is here, so not all of it could be judged",
    "DIVERGED": "this is not the log that the copy of its state from elsewhere speaks of",
    "TAMPERED": "something was changed outside the service; do not rely on what is named below",
    "POLICY": "a rule about keys, locks or erasure is broken; do not rely on what is named below",
}
DAMAGED: Final = "files are not as they were exported, so the log in them was not judged: copy them again"
DAMAGED_OTHERS: Final = (
    "the log was judged, but other files of the bundle are not as they were exported: copy them again"
)

_LATER: Final = Plain(
    "{it}: {code}.", "This program knows no plain words for it yet; the details below say what was expected and found."
)


def of(code: str, found: str = "") -> Plain:
    """The words for a code, and for what was found where that makes a difference."""
    if code == "STATE_RECONCILE_MISMATCH":
        for end, words in _ROWS.items():
            if found.endswith(end):
                return words
    return FINDINGS.get(code, _LATER)
