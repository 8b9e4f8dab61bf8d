"""Settings: one flat record under the deployment guide's variable names, and the only reader of the environment.

A value comes from ``NAME`` or from the file that ``NAME_FILE`` points at (mounted secrets). ``docs/reference/settings.md`` is
generated from the table below.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from memory_layer.errors import Problem, UsageError

Secret = Annotated[str, Meta(extra={"secret": True})]
# A URL or libpq's keyword=value form. Refused here, because libpq's own message repeats the whole text, password included.
PostgresDsn = Annotated[str, Meta(pattern=r"^(postgres(ql)?://|\s*[a-z_]+\s*=)", extra={"secret": True})]


def setting(default: Any, meaning: str) -> Any:
    """A field with its line of documentation."""
    _MEANINGS.append(meaning)
    return default


_MEANINGS: list[str] = []


_PREFIXES: Final = (
    "MEMORY_",
    "VECTOR_DB_",
    "VECTOR_WRITE_",
    "VECTOR_SNAPSHOT_",
    "EMBEDDINGS_",
    "S3_",
    "AUDIT_",
    "ARTIFACT_",
    "JWT_",
    "TLS_",
)
_NOT_YET: Final = frozenset({
    "DATABASE_READ_URL", "RATE_LIMIT_WRITES", "RATE_LIMIT_SEARCHES",
    "ACCESS_LOG", "METRICS", "INCIDENT_WEBHOOK_URL", "VAULT_PATH",
})  # fmt: skip


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="upper"):
    """Everything that can be set. Field ``x_y`` is variable ``X_Y``."""

    service_env: Literal["dev", "staging", "prod"] = setting(
        "dev", "names of buckets, collections, metric labels; prod turns every guard on"
    )
    host: str = setting("127.0.0.1", "listen address; beyond this machine put a proxy with TLS and time-outs in front")
    port: Annotated[int, Meta(ge=0, le=65535)] = setting(4300, "listen port; 0 takes a free one")
    tls_cert: str | None = setting(
        None,
        "PEM file of the server's certificate and its chain: the API answers HTTPS alone; read again when it changes",
    )
    tls_key: str | None = setting(None, "PEM file of its private key")
    tls_client_ca: str | None = setting(
        None, "PEM file of the authorities whose client certificates are accepted; every connection must then bring one"
    )
    trusted_proxies: str | None = setting(
        None,
        "addresses or networks, separated by commas, of the proxies that end TLS in front of this server (10.0.0.7, 10.1.0.0/16); requests "
        "from anywhere else are then refused",
    )
    memory_data: str | None = setting(
        None,
        "data folder of `memoryctl up` and of the local key and file store; default ~/.memory-layer (root: /var/lib/memory-layer)",
    )
    database_url: PostgresDsn | None = setting(None, "Postgres, runtime role; unset: the embedded one")
    migration_database_url: PostgresDsn | None = setting(
        None, "Postgres, owner role, a direct connection; unset: DATABASE_URL"
    )
    vector_db_provider: Literal["pgvector", "milvus", "pinecone"] = setting("pgvector", "the vector store")
    vector_db_endpoint: Secret | None = setting(
        None,
        "adapter; for pgvector a DSN, unset: DATABASE_URL; for Milvus http://host:19530, with a database as its path if not the "
        "default one; for Pinecone the host of the index",
    )
    vector_db_api_key: Secret | None = setting(
        None,
        "its key, for Milvus user:password; VECTOR_DB_API_KEY_FILE is read again, without a restart, when the key is refused",
    )
    vector_db_namespace: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,62}$")] = setting(
        "kernel-memory", "namespace of nodes that name none"
    )
    verify_reads: Literal["strict", "off"] = setting(
        "strict",
        "strict: a row is served only if it is what its last sealed audit entry says, else the answer is TAMPERED; off: rows are served as "
        "they stand (writes are checked all the same)",
    )
    log_requests: Literal["all", "failed", "off"] = setting(
        "all",
        "which requests get a line in the API's log: all, failed (an answer of 400 or more), off; a line holds method, route, status, code, "
        "milliseconds and request id, and nothing of what was sent",
    )
    log_format: Literal["auto", "json", "text"] = setting(
        "auto",
        "form of the log on stderr: json, an object a line; text, a line for people; auto: text on a terminal, else json",
    )
    vector_write_mode: Literal["queued", "inline"] = setting(
        "queued", "inline: every write waits until it is searchable, at most 10 s, as with ?wait=indexed"
    )
    vector_write_queue_url: str | None = setting(
        None,
        "queue that wakes the workers: the URL of an SQS queue, or pubsub://PROJECT/TOPIC/SUBSCRIPTION; credentials come from AWS's "
        "or Google's own chain; unset: workers poll Postgres",
    )
    vector_snapshot_dir: str | None = setting(
        None, "folder that the worker writes a snapshot of the vector index into each night; unset: none are made"
    )
    vector_snapshot_keep: Annotated[int, Meta(ge=1)] = setting(7, "how many of these are kept")
    vector_snapshot_lock_days: Annotated[int, Meta(ge=1, le=36500)] | None = setting(
        None, "days that each of these also stays locked in the archive (ARCHIVE_BUCKET); unset: it is not put there"
    )
    vector_db_control_endpoint: str = setting(
        "https://api.pinecone.io", "Pinecone's control plane, which `memoryctl provision` makes the index with"
    )
    vector_db_cloud: Literal["aws", "gcp", "azure"] = setting("aws", "cloud of the Pinecone index")
    vector_db_region: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,40}$")] = setting(
        "us-east-1", "region of the Pinecone index"
    )
    vector_db_admin_key: Secret | None = setting(
        None, "Milvus administrator's user:password, for `memoryctl provision` alone; the service never has it"
    )
    vector_db_reader_key: Secret | None = setting(
        None, "Milvus user:password that may only read, for BI; `memoryctl provision` makes it"
    )
    vector_projected_qps: Annotated[float, Meta(gt=0, le=1e6)] | None = setting(
        None, "searches a second that are expected; `memoryctl provision plan vectors` reckons for twice as many"
    )
    s3_bucket: str | None = setting(
        None,
        "bucket of artifacts, with versioning and Object Lock (`memoryctl provision apply buckets` makes it); unset, with S3_ENDPOINT or "
        "S3_REGION: ${BUCKET_PREFIX}-memory-${SERVICE_ENV}; without all three: files in the data folder",
    )
    s3_endpoint: str | None = setting(None, "URL of an S3-compatible server; unset: AWS's own for the region")
    s3_region: str | None = setting(None, "its region")
    s3_access_key: str | None = setting(None, "access key of the role memory-layer-writer; unset: AWS's own chain")
    s3_secret: Secret | None = setting(None, "its secret")
    s3_eraser_access_key: str | None = setting(
        None, "access key that may delete, for purges and erasure alone; unset: nothing is ever deleted from S3"
    )
    s3_eraser_secret: Secret | None = setting(None, "its secret")
    s3_admin_access_key: str | None = setting(
        None,
        "access key of an administrator of the buckets, for `memoryctl provision` alone; unset: S3_ACCESS_KEY, else AWS's own chain",
    )
    s3_admin_secret: Secret | None = setting(None, "its secret")
    s3_role_arn_prefix: (
        Annotated[str, Meta(pattern=r"^arn:aws[a-z-]*:iam::[A-Za-z0-9_-]*:(role|user)/[\w+=,.@/-]*$")] | None
    ) = setting(
        None,
        "what stands before the names of the roles in the buckets' policies; unset: arn:aws:iam::<the account>:role/, and "
        "arn:aws:iam:::user/ with S3_ENDPOINT",
    )
    s3_replica_region: str | None = setting(
        None, "second region, to which both buckets are replicated; unset: no replicas"
    )
    s3_replica_endpoint: str | None = setting(
        None, "URL of the S3-compatible server there; unset: AWS's own for the region"
    )
    s3_replica_kms_key_id: str | None = setting(None, "KMS key that the replicas are encrypted with; unset: aws/s3")
    s3_replication_role: str | None = setting(
        None, "ARN of the role that S3 replicates as; unset: memory-layer-replication behind S3_ROLE_ARN_PREFIX"
    )
    s3_kms_key_id: str | None = setting(None, "KMS key that S3 encrypts with (SSE-KMS); unset: the bucket's default")
    archive_bucket: str | None = setting(
        None, "bucket of the audit archive; unset, with artifacts in S3: ${BUCKET_PREFIX}-audit-archive-${SERVICE_ENV}"
    )
    bucket_prefix: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{1,30}$")] = setting(
        "illuvrse", "how the buckets' names begin"
    )
    archive_lock_days: Annotated[int, Meta(ge=1, le=36500)] = setting(
        365, "days that what is archived stays locked (Object Lock, COMPLIANCE)"
    )
    artifact_lock_mode: Literal["COMPLIANCE", "GOVERNANCE"] = setting(
        "COMPLIANCE",
        "Object Lock of artifacts that are to be kept until a date; COMPLIANCE: nobody can delete them before, GOVERNANCE: the "
        "compliance role can",
    )
    artifact_max_retention_days: Annotated[int, Meta(ge=1, le=36500)] = setting(
        3650,
        "days ahead that a caller with memory:write alone may lock an artifact for; nobody can undo it. With memory:legal_hold too: 36500",
    )
    artifact_scan_rate: Annotated[int, Meta(ge=1)] = setting(
        50 * 2**20, "bytes a second that the weekly check of all artifacts reads at the most"
    )
    artifact_max_bytes: Annotated[int, Meta(ge=1)] = setting(5 * 2**30, "largest artifact that an upload may bring")
    audit_origin: Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9.-]{0,126}[a-z0-9])?$")] | None = setting(
        None, "host part of the log's name; made at first start, stored, never derived again"
    )
    audit_anchors: Secret | None = setting(
        None,
        "where the worker sends the newest checkpoint every five minutes, separated by spaces: a folder (/srv/anchors), s3://bucket/prefix (with S3_* as for artifacts), "
        "https://host/path (user:password@ where it wants them), git:/repository of this machine, or git+ssh://, git+https:// or git+file:// "
        "for one elsewhere; unset: nowhere",
    )
    audit_public: Literal["off", "checkpoint", "tiles"] = setting(
        "off",
        "what of the log is served without a token: the newest checkpoint, or with tiles also hash tiles and consistency proofs, which "
        "hold hashes and counts alone; entries never",
    )
    audit_signer: Literal["local", "kms", "vault"] | None = setting(
        None, "who signs batches; unset: kms when AUDIT_KMS_KEY_ID is set, vault when AUDIT_VAULT_KEY is, else local"
    )
    require_kms: bool = setting(False, "refuse to start with a signer whose key is in a file; implied by prod")
    audit_kms_key_id: str | None = setting(
        None,
        "AWS KMS key that signs: id, ARN or alias; several by commas, the current one first, while a rotation goes on; "
        "with AUDIT_SIGNER=kms, unset: alias/memory-layer-audit-${SERVICE_ENV}",
    )
    data_key_id: Annotated[str, Meta(pattern=r"^(?!vault:)|^vault:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")] | None = (
        setting(
            None,
            "what encrypts the key which wraps the data keys of archived payloads: an AWS KMS key (id, ARN or alias), or vault:NAME, a key of "
            "Vault's transit engine; unset: it lies open in keys/data.key of the data folder",
        )
    )
    kms_endpoint: str | None = setting(None, "URL of KMS; unset: AWS's own for the region")
    kms_region: str | None = setting(
        None, "region of the key; unset: the one in its ARN, else AWS's own chain, as for the credentials"
    )
    audit_vault_key: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")] | None = setting(
        None, "Vault transit key that signs; with AUDIT_SIGNER=vault, unset: memory-layer-audit-${SERVICE_ENV}"
    )
    vault_transit_mount: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}$")] = setting(
        "transit", "where Vault's transit engine is mounted"
    )
    vault_addr: str | None = setting(None, "URL of Vault; its CA certificate in VAULT_CACERT")
    vault_namespace: str | None = setting(None, "Vault namespace, where Vault has several")
    vault_token: Secret | None = setting(None, "Vault token, renewed while it can be; goes before the other two logins")
    vault_role_id: str | None = setting(None, "AppRole login: role")
    vault_secret_id: Secret | None = setting(None, "AppRole login: secret id, which must be good for many logins")
    vault_k8s_role: str | None = setting(None, "Kubernetes login: role, with the pod's own service account token")
    jwt_jwks_url: str | None = setting(
        None,
        "URL of the issuer's JWK set, whose keys bearer tokens are checked with; fetched every five minutes, and for a key id that it does "
        "not have at most every ten seconds; unset: JWT_PUBLIC_KEY",
    )
    jwt_public_key: str | None = setting(
        None,
        "public keys that bearer tokens are checked with: PEM, of several each behind a line `kid: NAME`, or a JWK set; unset: the data "
        "folder's own",
    )
    jwt_issuer: str = setting("memory-layer", "iss that tokens must carry")
    jwt_audience: str = setting("memory-layer", "aud that tokens must carry")
    jwt_clock_skew: Annotated[int, Meta(ge=0, le=300)] = setting(
        5, "seconds that the issuer's clock may be off, for exp, nbf and iat"
    )
    admin_tenant: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,62}$")] = setting(
        "default",
        "tenant whose callers with the scope admin administer every tenant; those of any other administer their own",
    )
    embeddings_provider: Literal["local", "openai", "none"] = setting("local", "text to vector")
    embeddings_model: str = setting(
        "all-MiniLM-L6-v2",
        "model name; local has all-MiniLM-L6-v2 (English) and multilingual-e5-small (a hundred languages; extra `multilingual`)",
    )
    embeddings_dimensions: Annotated[int, Meta(ge=1, le=20000)] = setting(
        384, "dimension; sent to an OpenAI-compatible provider"
    )
    embeddings_endpoint: str | None = setting(None, "OpenAI-compatible base URL, such as https://api.openai.com/v1")
    embeddings_api_key: Secret | None = setting(None, "its key")
    embeddings_next_provider: Literal["local", "openai", "none"] = setting(
        "none",
        "a second embedder beside the first, for every server and worker while namespaces are moved from one model to the other "
        "(`memoryctl vectors reembed`); afterwards its settings become the first one's",
    )
    embeddings_next_model: str = setting("all-MiniLM-L6-v2", "its model")
    embeddings_next_dimensions: Annotated[int, Meta(ge=1, le=20000)] = setting(384, "its dimension")
    embeddings_next_endpoint: str | None = setting(None, "its OpenAI-compatible base URL")
    embeddings_next_api_key: Secret | None = setting(None, "its key")

    @property
    def migrate_url(self) -> str | None:
        return self.migration_database_url or self.database_url

    @property
    def database(self) -> str:
        """The DSN of the service's role. Raises UsageError where there is none."""
        if self.database_url is None:
            raise UsageError("DATABASE_URL is not set. Set it, or run `memoryctl up`, which brings its own Postgres.")
        return self.database_url

    @property
    def scheme(self) -> Literal["http", "https"]:
        """What the API speaks."""
        return "http" if self.tls_cert is None else "https"

    @property
    def issues_tokens(self) -> bool:
        """Whether tokens are signed with the data folder's own key, rather than by an issuer elsewhere."""
        return self.jwt_public_key is None and self.jwt_jwks_url is None

    @property
    def signer(self) -> Literal["local", "kms", "vault"]:
        """Who signs batches. Raises UsageError when the settings name two."""
        if self.audit_signer is not None:
            return self.audit_signer
        if self.audit_kms_key_id and self.audit_vault_key:
            raise UsageError(
                "AUDIT_KMS_KEY_ID and AUDIT_VAULT_KEY are both set, and only one can sign. Say which with AUDIT_SIGNER=kms or "
                "AUDIT_SIGNER=vault, or unset the other."
            )
        return "kms" if self.audit_kms_key_id else "vault" if self.audit_vault_key else "local"

    @property
    def guarded(self) -> str | None:
        """The setting that asks for a signer whose key no one can copy, or None."""
        return "SERVICE_ENV=prod" if self.service_env == "prod" else "REQUIRE_KMS" if self.require_kms else None


def load(environ: Mapping[str, str] | None = None, **overrides: object) -> Settings:
    """Settings from the environment; overrides win. A malformed value is a UsageError that names its variable."""
    environ = os.environ if environ is None else environ
    raw: dict[str, object] = {}
    for field in msgspec.structs.fields(Settings):
        text = _read(environ, field.encode_name)
        if text is not None:
            raw[field.encode_name] = text
    raw.update({name.upper(): value for name, value in overrides.items() if value is not None})
    fields = {field.encode_name: field for field in msgspec.structs.fields(Settings)}
    problems = []
    for name, value in raw.items():
        try:
            msgspec.convert({name: value}, Settings, strict=False)
        except msgspec.ValidationError as error:
            problems.append(Problem(name, _unfit(fields[name], value, error)))
    if problems:
        text = "; ".join(f"{p.path}: {p.problem}" for p in problems)
        raise UsageError(f"settings do not fit ({text}). See docs/reference/settings.md.", details=problems)
    return msgspec.convert(raw, Settings, strict=False)


def _unfit(field: msgspec.structs.FieldInfo, value: object, error: msgspec.ValidationError) -> str:
    """What is wrong with a value, and what would fit; a secret is not repeated."""
    shown = "it" if _is_secret(field) else repr(value)
    if wanted := _values(field):
        return f"{shown} is not {wanted}"
    _, found, pattern = str(error).split(" - at")[0].partition(" matching regex ")
    return f"{shown} does not match {pattern}" if found else f"{shown} does not fit"


def _values(field: msgspec.structs.FieldInfo) -> str:
    """What a setting takes, in words; "" for text."""
    whole = msgspec.inspect.type_info(field.type)
    kinds = whole.types if isinstance(whole, msgspec.inspect.UnionType) else (whole,)
    for kind in kinds:
        plain = kind.type if isinstance(kind, msgspec.inspect.Metadata) else kind
        if isinstance(plain, msgspec.inspect.LiteralType):
            *rest, last = plain.values
            return f"{', '.join(map(str, rest))} or {last}"
        if isinstance(plain, msgspec.inspect.BoolType):
            return "true or false"
        if isinstance(plain, msgspec.inspect.IntType):
            most = "or more" if plain.le is None else f"to {plain.le}"
            return "a whole number" if plain.ge is None else f"a whole number, {plain.ge} {most}"
    return ""


def _is_secret(field: msgspec.structs.FieldInfo) -> bool:
    return "secret" in repr(field.type)


def reread(name: str, environ: Mapping[str, str] | None = None) -> str | None:
    """What the file behind ``NAME_FILE`` holds now; None where the variable is not set. Raises UsageError when it cannot be
    read. For secrets that are replaced while the process runs."""
    environ = os.environ if environ is None else environ
    return _read(environ, name) if environ.get(f"{name}_FILE") else None


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """A warning for each variable that looks like ours but is not: misspelt, or of a part that this version has not got. Whoever sets
    TLS_CERT must not believe that something is encrypted by it."""
    environ = os.environ if environ is None else environ
    known = {field.encode_name for field in msgspec.structs.fields(Settings)} | {"MEMORY_URL", "MEMORY_TOKEN"}
    ours = [n for n in environ if n.startswith(_PREFIXES) or n.removesuffix("_FILE") in _NOT_YET]
    unknown = sorted(n for n in ours if n.removesuffix("_FILE") not in known)
    return [f"{name} is set, but there is no such setting.{_meant(name, known)}" for name in unknown]


def _meant(name: str, known: set[str]) -> str:
    """The setting that a misspelt name comes nearest to."""
    file = "_FILE" if name.endswith("_FILE") else ""
    near = difflib.get_close_matches(name.removesuffix("_FILE"), known, 1, 0.8)
    return f" Did you mean {near[0]}{file}?" if near else " See docs/reference/settings.md."


def table() -> list[tuple[str, str, str, str, bool]]:
    """(variable, default, values, meaning, secret) of every setting, in order."""
    rows = []
    for field, meaning in zip(msgspec.structs.fields(Settings), _MEANINGS, strict=True):
        default = "-" if field.default is None else str(field.default)
        rows.append((field.encode_name, default, _values(field) or "text", meaning, _is_secret(field)))
    return rows


def _read(environ: Mapping[str, str], name: str) -> str | None:
    file = environ.get(f"{name}_FILE")
    if file:
        try:
            return Path(file).read_text("utf-8").strip()
        except OSError as error:
            raise UsageError(f"{name}_FILE points at {file}, which cannot be read: {error.strerror}.") from error
    value = environ.get(name)
    return value or None


def environment() -> Mapping[str, str]:
    """The environment, for a process that is started with the same settings."""
    return os.environ
