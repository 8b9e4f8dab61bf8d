"""What must hold before anything starts where SERVICE_ENV is prod: all that does not is named at once, each with its remedy.

Outside prod nothing here refuses anything, except that REQUIRE_KMS asks for a signer whose key no one can copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import unquote, urlsplit

from memory_layer.config import Settings
from memory_layer.errors import DependencyUnavailable, PolicyRefused, Problem
from memory_layer.ops import runs
from memory_layer.ops.checks import judge, known
from memory_layer.ops.provision import buckets
from memory_layer.ops.report import Finding
from memory_layer.stores import objects
from memory_layer.stores.postgres import login_of, refuse_malformed, sslmode_over_network

PROBE_DAYS: Final = 14  # for which a probe of the locks counts; the worker tries them each week
# Passwords and keys that servers come with, or that examples use.
DEFAULTS: Final = frozenset({
    "admin", "changeme", "default", "guest", "letmein", "memory", "memory_app", "memory_owner", "milvus", "minio", "minio123",
    "minioadmin", "password", "postgres", "root", "secret", "test",
})  # fmt: skip


def refuse(settings: Settings, *others: Callable[[Settings], None]) -> None:
    """Raise PolicyRefused with every finding where SERVICE_ENV is prod. ``others``: checks elsewhere that raise PolicyRefused; outside
    prod they are asked one after another, and so is the signer's."""
    if settings.service_env != "prod":
        refuse_copied_key(settings)
        for check in others:
            check(settings)
        return
    found = [finding for finding in findings(settings) if finding.status == "fail"]
    for check in others:
        try:
            check(settings)
        except PolicyRefused as error:
            found.append(Finding("prod.settings", "error", "refused", error.message))
    if found:
        names = ", ".join(finding.id for finding in found)
        raise PolicyRefused(
            f"SERVICE_ENV=prod refuses to start ({names}). Put each right, or use SERVICE_ENV=dev or staging here.",
            details=[Problem(f.id, f"{f.finding} {f.hint}".rstrip()) for f in found],
        )


def findings(settings: Settings) -> Iterator[Finding]:
    """One finding for each thing that prod asks for, those that pass too."""
    for name, dsn in _databases(settings):
        mode = sslmode_over_network(dsn)
        yield _must(
            "prod.database-tls",
            mode in (None, "verify-full"),
            f"{name} is reached through a local socket." if mode is None else f"{name} has sslmode={mode}.",
            f"Add sslmode=verify-full and sslrootcert=FILE to {name}: anything weaker does not check whose server answers.",
        )
    local = settings.signer == "local"
    yield _must(
        "prod.signing-key",
        not local,
        "Batches are signed with a key in a file, which can be copied." if local else f"{settings.signer} signs.",
        _SIGNER_HINT,
    )
    yield _must(
        "prod.tokens",
        not settings.issues_tokens,
        "Tokens are checked with the data folder's own key, which makes development tokens."
        if settings.issues_tokens
        else "Tokens are an issuer's.",
        "Set JWT_JWKS_URL or JWT_PUBLIC_KEY to your issuer's.",
    )
    whom = "anybody" if settings.trusted_proxies is None else "the proxies of TRUSTED_PROXIES alone"
    yield _must(
        "prod.transport",
        settings.scheme == "https" or settings.trusted_proxies is not None,
        "The API answers HTTPS." if settings.scheme == "https" else f"The API answers plain HTTP, to {whom}.",
        "Set TLS_CERT and TLS_KEY, or TRUSTED_PROXIES where a proxy in front ends TLS.",
    )
    yield _must(
        "prod.strict-reads",
        settings.verify_reads == "strict",
        f"VERIFY_READS is {settings.verify_reads}.",
        "Set VERIFY_READS=strict: a row is served only if it is what its signed entry says.",
    )
    weak = sorted(_default_secrets(settings))
    yield _must(
        "prod.secrets",
        not weak,
        f"A password that servers come with, or the name of its user, is in: {', '.join(weak)}."
        if weak
        else "No password is one that servers come with.",
        "Set a password of your own.",
    )
    yield _object_lock(settings)


def _must(id_: str, fits: bool, says: str, hint: str) -> Finding:
    return judge(known(id_, fits, says, hint), fits)


_SIGNER_HINT: Final = (
    "Set AUDIT_KMS_KEY_ID (AWS KMS) or AUDIT_VAULT_KEY (Vault transit); `memoryctl provision apply keys` makes the key."
)


def refuse_copied_key(settings: Settings) -> None:
    """A key in a file is no signer for production. Raises PolicyRefused."""
    if settings.guarded and settings.signer == "local":
        raise PolicyRefused(
            f"{settings.guarded} needs a signer whose key no one can copy, and this server signs with a key in a file "
            f"(AUDIT_SIGNER=local). {_SIGNER_HINT} Or use SERVICE_ENV=dev or staging, without REQUIRE_KMS, here."
        )


def _databases(settings: Settings) -> Iterator[tuple[str, str]]:
    """Settings that name a database, and their connection strings. Raises UsageError for what is none."""
    named = [("DATABASE_URL", settings.database_url), ("MIGRATION_DATABASE_URL", settings.migration_database_url)]
    if settings.vector_db_provider == "pgvector":
        named.append(("VECTOR_DB_ENDPOINT", settings.vector_db_endpoint))
    for name, dsn in named:
        if dsn is not None:
            refuse_malformed(dsn, name)
            yield name, dsn


def _default_secrets(settings: Settings) -> Iterator[str]:
    """Names of the settings whose secret is one that everybody knows."""
    logins: list[tuple[str, str | None, str | None]] = [(name, *login_of(dsn)) for name, dsn in _databases(settings)]
    for name, pair in (
        ("VECTOR_DB_API_KEY", settings.vector_db_api_key),
        ("VECTOR_DB_ADMIN_KEY", settings.vector_db_admin_key),
        ("VECTOR_DB_READER_KEY", settings.vector_db_reader_key),
    ):
        login, colon, key = (pair or "").partition(":")
        logins.append((name, login if colon else None, key if colon else pair))
    logins += [
        ("S3_SECRET", settings.s3_access_key, settings.s3_secret),
        ("S3_ERASER_SECRET", settings.s3_eraser_access_key, settings.s3_eraser_secret),
        ("S3_ADMIN_SECRET", settings.s3_admin_access_key, settings.s3_admin_secret),
        ("VAULT_TOKEN", None, settings.vault_token),
        ("EMBEDDINGS_API_KEY", None, settings.embeddings_api_key),
    ]
    for anchor in (settings.audit_anchors or "").split():
        if "@" in anchor and anchor.startswith("http"):
            parts = urlsplit(anchor)
            logins.append(("AUDIT_ANCHORS", parts.username, unquote(parts.password or "")))
    for setting, user, password in logins:
        if password and (password.lower() in DEFAULTS or password == user):
            yield setting


def _object_lock(settings: Settings) -> Finding:
    """Whether the locks of both buckets were tried lately, and held."""
    id_, hint = "prod.object-lock", "Run `memoryctl provision probe buckets`, and put right what it finds."
    if not objects.in_s3(settings):
        text = "Artifacts and archive lie in the data folder, where nothing keeps them from being deleted."
        return Finding(id_, "error", "fail", text, "Set S3_BUCKET, and run `memoryctl provision apply buckets`.")
    if settings.database_url is None:
        return Finding(id_, "info", "pass", "Locks are looked at once the database runs.")
    try:
        days = runs.days_since_lock_probe(settings.database_url, buckets.target_names(settings))
    except DependencyUnavailable as error:  # which keeps everything else from starting, too
        return Finding(id_, "warning", "unavailable", f"Whether the locks were tried is not known: {error.message}")
    if days is None:
        return Finding(id_, "error", "fail", "The object locks of these buckets were never tried with success.", hint)
    fits = days <= PROBE_DAYS
    return _must(id_, fits, f"The object locks were last tried with success {days:.0f} days ago.", hint)
