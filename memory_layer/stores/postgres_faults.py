"""What an error of Postgres means to a caller and to an operator: one table, by SQLSTATE.

Three kinds: what time or an operator cures (503, retryable, with the true reason and the next step), a clash with other work
(OVERLOADED), and what the data itself is to blame for, which is no fault of the server: the table does not know it.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import psycopg
from psycopg_pool import PoolTimeout

from memory_layer.errors import DatabaseUnavailable, MemoryLayerError, Overloaded
from memory_layer.telemetry.logs import get_logger


class Fault(NamedTuple):
    """``reason``: one or two words for health checks and logs. ``message``: the reason and the next step, for every door."""

    reason: str
    message: str
    clash: bool = False  # with other work: nothing is wrong with the server


LOG_EVERY: Final = 10.0  # seconds between two lines of the log that say the same
MAX_REMEMBERED: Final = 64  # different lines

_UNREACHABLE: Final = Fault("unreachable", "Postgres does not answer; nothing was changed. Try again shortly.")
_NO_CONNECTION: Final = Fault(
    "unreachable",
    "Postgres does not answer, or all connections of this process to it are busy; nothing was changed. Try again shortly.",
)
READ_ONLY: Final = Fault(
    "read-only",
    "The database accepts no writes: it is a standby, or set to read only (default_transaction_read_only). Reads go on. Point "
    "DATABASE_URL at the primary, promote the standby, or take the setting back.",
)
_FULL: Final = Fault(
    "disk full",
    "The disk of the database is full; nothing was changed. Make room on the disk of its data directory and of its write-ahead log.",
)
_MEMORY: Final = Fault(
    "out of memory",
    "The database is out of memory; nothing was changed. Give its server more, or lower its settings for memory.",
)
_CONNECTIONS: Final = Fault(
    "out of connections",
    "The database takes no more connections; nothing was changed. Raise max_connections (or the limit of the role or the "
    "database), or run fewer processes.",
)
_LIMIT: Final = Fault(
    "out of resources",
    "The database has reached a limit of its resources; nothing was changed. Its own log names the limit.",
)
_STARTING: Final = Fault(
    "starting up",
    "The database is starting up, recovering or shutting down; nothing was changed. Try again shortly.",
)
_ENDED: Final = Fault(
    "shut down", "The database ended this connection (a shutdown, a restart, or an administrator). Try again shortly."
)
_REFUSED: Final = Fault(
    "login refused",
    "The database refuses the login of this service. Check role and password in DATABASE_URL, and the server's pg_hba.conf.",
)
_NO_DATABASE: Final = Fault(
    "no such database",
    "The database that DATABASE_URL names does not exist on that server. Correct DATABASE_URL, or create it and run "
    "`memoryctl migrate apply`.",
)
_NO_SCHEMA: Final = Fault(
    "schema incomplete",
    "The database lacks a part of the schema that this version needs. Run `memoryctl migrate apply` as the tables' owner.",
)
_NO_RIGHT: Final = Fault(
    "missing grants",
    "The role of DATABASE_URL lacks a right that the service needs. Run `memoryctl migrate apply` as the tables' owner: it grants "
    "what the role memory_app needs.",
)
_DISK: Final = Fault(
    "disk failing",
    "The database cannot read or write its files; nothing was changed. Its own log names the file; check its disk.",
)
_SLOW: Final = Fault(
    "too slow", "The database took too long over this. Ask for less, or try again shortly.", clash=True
)
_LOCKED: Final = Fault(
    "locked",
    "Other work kept a lock that this needs; nothing was changed. Try again shortly. If it goes on, pg_stat_activity shows who "
    "holds it.",
    clash=True,
)
_CLASH: Final = Fault("clash", "Other work was in the way of this; nothing was changed. Try again shortly.", clash=True)

# The most specific entry counts: five characters before the class, which is the first two.
FAULTS: Final[dict[str, Fault]] = {
    "08": _UNREACHABLE,
    "25006": READ_ONLY,
    "28": _REFUSED,
    "3D000": _NO_DATABASE,
    "3F000": _NO_SCHEMA,
    "40": _CLASH,
    "42501": _NO_RIGHT,
    "42P01": _NO_SCHEMA,
    "42703": _NO_SCHEMA,
    "42883": _NO_SCHEMA,
    "53": _LIMIT,
    "53100": _FULL,
    "53200": _MEMORY,
    "53300": _CONNECTIONS,
    "55P03": _LOCKED,
    "57": _ENDED,
    "57014": _SLOW,
    "57P03": _STARTING,
    "58": _DISK,
}
# A connection that fails carries no SQLSTATE, only the server's words. Where those are not English it is "unreachable" or "login
# refused", and the log has them.
_WORDS: Final = (
    (("no space left on device",), _FULL),
    (("too many clients", "remaining connection slots", "too many connections"), _CONNECTIONS),
    (("the database system is", "recovery conflict"), _STARTING),
    (("permission denied for database",), _NO_RIGHT),
    (("authentication failed", "pg_hba.conf", "no password supplied", "is not permitted to log in"), _REFUSED),
    (("out of memory",), _MEMORY),
    (("terminating connection",), _ENDED),
)
# On a standby some statements fail before any row is written, as unsupported (0A000) or as out of place (55000).
_RECOVERY: Final = ("call_bool_check_hook", "pg_current_wal_insert_lsn", "pg_walfile_name")
_STALE_PLAN: Final = "RevalidateCachedQuery"
# The policy of a table refused a row of ours: a defect of this code, which no grant cures.
_ROW_SECURITY: Final = "ExecWithCheckOptions"

log = get_logger("memory_layer.database")


def fault_of(error: BaseException) -> Fault | None:
    """What time, an operator or another try cures; None for what the data or this code is to blame for."""
    if isinstance(error, PoolTimeout):
        cause = error.__cause__
        return (fault_of(cause) if cause is not None else None) or _NO_CONNECTION
    if not isinstance(error, psycopg.Error):
        return _UNREACHABLE if isinstance(error, OSError) else None
    state = error.sqlstate
    if state is None:
        if not isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
            return None
        return _by_words(str(error).lower())
    place = error.diag.source_function
    if state in ("0A000", "55000"):
        words = (error.diag.message_primary or "").lower()
        return READ_ONLY if place in _RECOVERY or "recovery" in words else None
    if state == "42501" and place == _ROW_SECURITY:
        return None
    return FAULTS.get(state) or FAULTS.get(state[:2])


def _by_words(words: str) -> Fault:
    if "database" in words and "does not exist" in words and "role" not in words:
        return _NO_DATABASE
    if "role" in words and "does not exist" in words:
        return _REFUSED
    return next((fault for parts, fault in _WORDS if any(part in words for part in parts)), _UNREACHABLE)


def explain(error: BaseException) -> MemoryLayerError | None:
    """The error for the caller, and at most one line in ten seconds for the operator; None where ``fault_of`` knows none."""
    fault = fault_of(error)
    if fault is None:
        return None
    if fault.clash:
        return Overloaded(fault.message, retry_after=1)
    words = _words_of(error)
    _log_rarely(fault, error, words)
    meaning = DatabaseUnavailable(fault.message)
    meaning.reason, meaning.server_message = fault.reason, words
    return meaning


def _words_of(error: BaseException) -> str:
    if isinstance(error, PoolTimeout) and error.__cause__ is not None:
        error = error.__cause__
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join((primary or str(error)).split())[:500]


def is_stale_plan(error: BaseException) -> bool:
    """Whether a prepared statement was overtaken by a migration: a new connection prepares it again."""
    return isinstance(error, psycopg.errors.FeatureNotSupported) and error.diag.source_function == _STALE_PLAN


def is_lost(error: BaseException) -> bool:
    """Whether the connection went, so that the outcome of what was sent is not known; an answer of the server is an outcome."""
    if isinstance(error, psycopg.Error):
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) and (
            error.sqlstate is None or error.sqlstate[:2] in ("08", "57")
        )
    return isinstance(error, OSError)


_last_logged: dict[
    tuple[str, str], tuple[float, int]
] = {}  # reason, words -> when it was last logged, how often it came since


def _log_rarely(fault: Fault, error: BaseException, words: str) -> None:
    """Every request meets a fault of the database: one line for all of them, not a trace for each."""
    key, now = (fault.reason, words), time.monotonic()
    when, since = _last_logged.get(key, (float("-inf"), 0))
    if now - when < LOG_EVERY:
        _last_logged[key] = when, since + 1
        return
    if len(_last_logged) >= MAX_REMEMBERED:
        _last_logged.clear()
    _last_logged[key] = now, 0
    state = getattr(error, "sqlstate", None)
    log.error("the database failed", reason=fault.reason, sqlstate=state, error=words, alike=since)
