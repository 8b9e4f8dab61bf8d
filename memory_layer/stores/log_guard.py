"""Whether the log ends as its keys sealed it: checked under the log lock before each batch, and from time to time without writes.

An end that this process sealed or checked itself costs nothing to check again. After a difference nothing is sealed until it is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memory_layer.audit.log_end import End, Epoch, fault_of, first_epoch, prove_epochs
from memory_layer.audit.trust_root import TrustedKey, TrustRoot
from memory_layer.errors import LogTampered, MemoryLayerError, UsageError, ValidationError
from memory_layer.model import format_time
from memory_layer.stores.logs import read_trust_root
from memory_layer.telemetry import metrics

MAX_KEYS = 1000  # that a log's keys are proved of; nobody rotates more often


class UnprovenKeys(LogTampered):
    """Another key is said to seal than this process knows of: it may have been changed, and then the log proves it."""


class LogGuard:
    """One per process. ``fault``: why nothing may be sealed now, None while all is well or nothing was looked at yet."""

    def __init__(self, root: TrustRoot, folder: Path | None = None) -> None:
        """``folder``: where the trust root is read again when the keys change."""
        self.root = root
        self.fault: MemoryLayerError | None = None
        self.last: End | None = None  # the newest seal that was found good, or was made here
        self._folder = folder
        self._epochs: list[Epoch] = []

    @property
    def origin(self) -> str:
        return self.root.origin

    @property
    def keys(self) -> int:
        """How many keys are proved to have sealed the log, each after the one before."""
        return len(self._epochs)

    def check(self, row: Mapping[str, Any], last: End | None) -> End | None:
        """Judge what the query ``head`` shows; the newest seal, None of an empty log.

        ``last``: the seal behind which the log cannot be, as this process knew it before the question was asked. Raises LogTampered,
        UnprovenKeys among them.
        """
        try:
            end = self._checked(row, last)
        except UnprovenKeys:
            raise
        except LogTampered as error:
            self._failed(error)
            raise
        self._passed(end)
        return end

    def _checked(self, row: Mapping[str, Any], last: End | None) -> End | None:
        end, sealed = end_of(row), -1 if row["batch_no"] is None else row["last_seq"]
        if last is not None and (end is None or end.batch_no < last.batch_no):
            found = "none" if end is None else f"{end.batch_no}"
            raise self._differs(
                f"its newest seal was {last.batch_no} before, and is {found} now: the seals behind are gone"
            )
        if last is not None and end is not None and end.batch_no == last.batch_no and end != last:
            raise self._differs(f"its seal {end.batch_no} was another one before: {_first_difference(last, end)}")
        if row["newest_seq"] is not None and row["newest_seq"] > sealed:
            raise self._differs(
                f"there is an entry {row['newest_seq']}, and its seals end with entry {sealed}: nobody sealed that entry"
            )
        epoch = (row["epoch"] or 0, row["key_id"])
        if not self._epochs or epoch != (self._epochs[-1].from_seq, self._epochs[-1].key.key_id):
            raise UnprovenKeys(
                self._differs(f"the key {epoch[1][:16]}... is said to seal from entry {epoch[0]} on").message
            )
        if epoch[0] > sealed + 1:
            raise self._differs(f"a key is said to seal from entry {epoch[0]} on, and it has {sealed + 1} entries")
        if end is not None and end != last:
            fault = fault_of(self.origin, self.root, self._epochs, end)
            if fault is not None:
                raise self._differs(fault)
        return end

    def learn(self, first_key: str | None, rows: Sequence[Mapping[str, Any]]) -> None:
        """Prove which keys have sealed the log, from the query ``key_history``, by the trust root as it is now. Raises LogTampered."""
        try:
            self.read_root()
            if first_key is None:
                raise ValidationError("it is not in the database")
            if len(rows) > MAX_KEYS:
                raise ValidationError(f"more than {MAX_KEYS} keys are said to have sealed it")
            self._epochs = prove_epochs(self.origin, first_epoch(self.root, first_key), rows)
        except (ValidationError, UsageError) as error:
            fault = self._differs(error.message)
            self._failed(fault)
            raise fault from None

    def read_root(self) -> None:
        """Read the trust root again, if this guard knows where it is. Raises ValidationError, UsageError."""
        if self._folder is not None:
            found = read_trust_root(self._folder)
            if found.origin == self.origin:
                self.root = found

    def keys_of(self, key_id: str, algorithm: str, first: int, last: int) -> list[bytes]:
        """Public keys with this id that may have sealed these entries: by the trust root, or proved from it on."""
        pinned = [key for key in self.root.keys if (key.key_id, key.purpose) == (key_id, "seal")]
        if pinned:  # then the trust root says for which entries
            return [
                key.public_key
                for key in pinned
                if key.algorithm == algorithm and key.from_seq <= first and (key.to_seq is None or last <= key.to_seq)
            ]
        ends = [epoch.from_seq for epoch in self._epochs[1:]] + [2**63]
        return [
            epoch.key.public_key
            for epoch, end in zip(self._epochs, ends, strict=False)
            if (epoch.key.key_id, epoch.key.algorithm) == (key_id, algorithm) and epoch.from_seq <= first and last < end
        ]

    def sealed(self, end: End, key: TrustedKey | None) -> None:
        """This process committed that batch; with ``key`` it changed the key."""
        if key is not None:
            self._epochs.append(Epoch(end.last_seq + 1, key))
        self._passed(end)

    def _passed(self, end: End | None) -> None:
        self.fault = None
        if end is not None and (self.last is None or end.batch_no > self.last.batch_no):
            self.last = end
        metrics.log_tampered.set(0)

    def _failed(self, fault: LogTampered) -> None:
        self.fault = fault
        metrics.log_tampered.set(1)
        metrics.log_refusals.inc()

    def _differs(self, what: str) -> LogTampered:
        return LogTampered(
            f"The log {self.origin} does not end as its keys sealed it: {what}. Nothing is written until that is understood. Somebody "
            "changed its tables behind the service's back; look with `memoryctl audit verify`, and see docs/runbooks/tampered-log.md."
        )


def end_of(row: Mapping[str, Any]) -> End | None:
    """The newest seal in a row of the query ``head``."""
    if row["batch_no"] is None:
        return None
    return End(
        row["batch_no"],
        row["first_seq"],
        row["last_seq"],
        row["head"],
        row["seal_text"],
        row["signature"],
        row["seal_key"],
        row["algorithm"],
        format_time(row["sealed_at"]),
    )


def _first_difference(before: End, now: End) -> str:
    name, old, new = next(
        (name, old, new) for name, old, new in zip(End._fields, before, now, strict=True) if old != new
    )
    return f"{name} was {old!r:.100}, and is {new!r:.100}"
