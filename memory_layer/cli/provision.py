"""`memoryctl provision plan / apply / probe`: what the Memory Layer needs around it. The checks are in ``ops/provision``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from memory_layer import config
from memory_layer.cli import command, render
from memory_layer.cli.options import AsJson, Data, Yes

if TYPE_CHECKING:
    from memory_layer.config import Settings
    from memory_layer.ops.checks import Survey
    from memory_layer.ops.operate import Run
    from memory_layer.ops.report import Finding

provision = App(name="provision", help="Plan and make what the Memory Layer needs around it.")
plan = App(name="plan", help="Show what is missing or differs. Changes nothing.")
apply = App(name="apply", help="Make what is missing.")
probe = App(name="probe", help="Try what must hold. Writes canaries.")
provision.command(plan)
provision.command(apply)
provision.command(probe)

Service = Annotated[
    Literal["kms", "vault"] | None, Parameter(help="Where the key lives; default: what the settings say.")
]
KeySpec = Annotated[
    str | None,
    Parameter(
        help="Kind of key. KMS: ECC_NIST_P256 (default), RSA_2048, RSA_3072, RSA_4096, ECC_NIST_EDWARDS25519. Vault: ed25519 "
        "(default), ecdsa-p256, rsa-2048, rsa-3072, rsa-4096."
    ),
]
Broker = Annotated[
    Literal["sqs", "pubsub"] | None, Parameter(help="Whose queue; default: what VECTOR_WRITE_QUEUE_URL says.")
]
Project = Annotated[str | None, Parameter(help="Google Cloud project, for Pub/Sub.")]
Policies = Annotated[
    Path | None, Parameter(help="Write the policies of buckets and roles into this folder, a JSON file each.")
]
Probe = Annotated[
    bool,
    Parameter(help="Try the locks. It writes canaries: a hundred bytes in each bucket that stay locked for a day."),
]
NoProbe = Annotated[bool, Parameter(help="Leave the locks untried, and write no canaries.")]
Wait = Annotated[float, Parameter(help="Seconds that a canary may take to its replica.")]
Samples = Annotated[int, Parameter(help="Objects of each bucket whose lock is looked at.")]

# --- the key that seals the log


@plan.command(name="keys")
async def plan_keys(*, signer: Service = None, key_spec: KeySpec = None, as_json: AsJson = False) -> int:
    """Show how the key that seals the log stands, in AWS KMS or Vault. Exit 1 when something is missing or differs.

    For example:

      memoryctl provision plan keys --signer kms
      AUDIT_SIGNER=vault VAULT_ADDR=https://vault:8200 memoryctl provision plan keys
    """
    from memory_layer.ops.provision import keys

    survey = await _look(partial(keys.examine, settings=config.load(audit_signer=signer), spec=key_spec))
    _show(survey.findings, {}, as_json=as_json)
    return 0 if survey.right else 1


@apply.command(name="keys")
async def apply_keys(
    *, signer: Service = None, key_spec: KeySpec = None, yes: Yes = False, data: Data = None, as_json: AsJson = False
) -> int:
    """Make the key that seals the log, where there is none. What differs is reported, not changed: exit 1.

    For example:

      memoryctl provision apply keys --signer kms
      memoryctl provision apply keys --signer vault --key-spec ecdsa-p256
    """
    from memory_layer.ops.provision import keys

    settings = config.load(audit_signer=signer)
    examine = partial(keys.examine, settings=settings, spec=key_spec)
    arguments = {"signer": settings.signer, "keySpec": key_spec}
    return await _apply("keys", arguments, settings, examine, yes=yes, data=data, as_json=as_json)


# --- the buckets of artifacts and of the audit archive


@plan.command(name="buckets")
async def plan_buckets(
    *, policies: Policies = None, probe: Probe = False, wait: Wait = 60.0, as_json: AsJson = False
) -> int:
    """Show what the buckets lack and where they differ. Exit 1 when something that matters is missing or differs.

    They are `${BUCKET_PREFIX}-memory-${SERVICE_ENV}` and `${BUCKET_PREFIX}-audit-archive-${SERVICE_ENV}`, or S3_BUCKET and ARCHIVE_BUCKET;
    with S3_REPLICA_REGION each has a replica there.

    For example:

      memoryctl provision plan buckets
      memoryctl provision plan buckets --policies ./policies
      memoryctl provision plan buckets --probe --json
    """
    from memory_layer.ops.blocking import blocking
    from memory_layer.ops.provision import bucket_policies, bucket_probe, buckets

    settings = config.load()
    if policies is not None:
        for path in bucket_policies.write(settings, policies):
            render.say(f"wrote {path}")
    survey = await _look(partial(buckets.examine, settings=settings))
    if probe:
        with blocking():
            survey.findings += bucket_probe.probe(settings, wait, render.say).findings
    _show(survey.findings, {}, as_json=as_json)
    return 0 if survey.right else 1


@apply.command(name="buckets")
async def apply_buckets(
    *, no_probe: NoProbe = False, wait: Wait = 60.0, yes: Yes = False, data: Data = None, as_json: AsJson = False
) -> int:
    """Make the buckets, put back what was changed on them, and try their locks. What it cannot or must not change it tells: exit 1.

    Its credentials are S3_ADMIN_ACCESS_KEY and S3_ADMIN_SECRET; the roles are made from `plan buckets --policies`.

    For example:

      memoryctl provision apply buckets
      S3_REGION=eu-central-1 S3_REPLICA_REGION=eu-west-1 memoryctl provision apply buckets --yes
    """
    from memory_layer.ops.provision import bucket_probe, buckets

    settings = config.load()

    def try_locks(run: Run, _: Survey) -> None:
        if not no_probe:
            probed = bucket_probe.probe(settings, wait, run.installation.say)
            run.find(*probed.findings)
            run.fact("replicationLagSeconds", probed.lags)

    examine = partial(buckets.examine, settings=settings)
    arguments = {"buckets": buckets.target_names(settings), "probe": not no_probe}
    return await _apply("buckets", arguments, settings, examine, try_locks, yes=yes, data=data, as_json=as_json)


@probe.command(name="buckets")
async def probe_buckets(*, wait: Wait = 60.0, samples: Samples = 50, data: Data = None, as_json: AsJson = False) -> int:
    """Try what the locks refuse, and look at the locks of objects taken at random. Exit 1 when a lock does not hold.

    In each bucket a canary is written under COMPLIANCE for a day; to delete it, to shorten its lock and to weaken it must be refused.
    A worker does the same each week.

    For example:

      memoryctl provision probe buckets
      memoryctl provision probe buckets --samples 500 --wait 900 --json
    """
    from memory_layer.ops.provision import bucket_weekly, buckets

    settings = config.load()

    def work(run: Run) -> None:
        bucket_weekly.look(settings, run, wait=wait, samples=samples, expected=(), say=run.installation.say)

    arguments = {"buckets": buckets.target_names(settings), "samples": samples}
    return await command.run("provision-probe-buckets", arguments, work, data=data, as_json=as_json, settings=settings)


# --- the queue that wakes the workers


@plan.command(name="queue")
async def plan_queue(*, broker: Broker = None, project: Project = None, as_json: AsJson = False) -> int:
    """Show how the queue that wakes the workers stands, in SQS or Pub/Sub. Exit 1 when something is missing or differs.

    Without VECTOR_WRITE_QUEUE_URL it is `kernel-memory-vectors-${SERVICE_ENV}`.

    For example:

      memoryctl provision plan queue --broker sqs
      memoryctl provision plan queue --broker pubsub --project example-project
    """
    from memory_layer.ops.provision import queue
    from memory_layer.ops.provision.queue_target import URL, target

    settings = config.load()
    survey = await _look(partial(queue.examine, settings=settings, at=target(settings, broker, project)))
    url = survey.settings.get(URL)
    _show(survey.findings, {URL: url}, as_json=as_json)
    if not as_json and url is not None:
        render.say(f"{URL}={url}")
    return 0 if all(finding.status in ("pass", "skip") for finding in survey.findings) else 1


@apply.command(name="queue")
async def apply_queue(
    *, broker: Broker = None, project: Project = None, yes: Yes = False, data: Data = None, as_json: AsJson = False
) -> int:
    """Make the queue and its dead letters, where there are none, and print VECTOR_WRITE_QUEUE_URL.

    What differs is reported, not changed: exit 1.

    For example:

      memoryctl provision apply queue --broker sqs
      memoryctl provision apply queue --broker pubsub --project example-project --yes
    """
    from memory_layer.ops.provision import queue
    from memory_layer.ops.provision.queue_target import URL, target

    settings = config.load()
    at = target(settings, broker, project)

    def name_it(run: Run, survey: Survey) -> None:
        run.fact(URL, survey.settings.get(URL))

    examine = partial(queue.examine, settings=settings, at=at)
    arguments = {"broker": at.kind, "name": at.name}
    return await _apply("queue", arguments, settings, examine, name_it, yes=yes, data=data, as_json=as_json)


# --- the vector store


@plan.command(name="vectors")
async def plan_vectors(*, as_json: AsJson = False) -> int:
    """Show how the vector store of the settings stands, and how large it should be. Exit 1 when something is missing or differs.

    With VECTOR_PROJECTED_QPS it reckons what twice as many searches need.

    For example:

      memoryctl provision plan vectors
      VECTOR_DB_PROVIDER=pinecone VECTOR_DB_API_KEY_FILE=/run/secrets/pinecone memoryctl provision plan vectors
    """
    from memory_layer.ops.provision import vectors

    survey = await _look(partial(vectors.examine, settings=config.load(), say=render.say))
    _show(survey.findings, {"settings": survey.settings}, as_json=as_json)
    return 0 if survey.right else 1


@apply.command(name="vectors")
async def apply_vectors(*, yes: Yes = False, data: Data = None, as_json: AsJson = False) -> int:
    """Make what the vector store of the settings lacks: tables, index, collection, rights. What differs is reported, not changed: exit 1.

    For example:

      memoryctl provision apply vectors
      VECTOR_DB_PROVIDER=pinecone EMBEDDINGS_DIMENSIONS=1536 memoryctl provision apply vectors --yes
    """
    from memory_layer.ops.provision import vectors

    settings = config.load()

    def name_settings(run: Run, survey: Survey) -> None:
        run.fact("settings", survey.settings)

    examine = partial(vectors.examine, settings=settings, say=render.say)
    arguments = {"provider": settings.vector_db_provider, "dimensions": settings.embeddings_dimensions}
    return await _apply("vectors", arguments, settings, examine, name_settings, yes=yes, data=data, as_json=as_json)


# --- what all of them do


async def _look(examine: Callable[[Survey], Awaitable[None]]) -> Survey:
    from memory_layer.ops.checks import Survey

    survey = Survey()
    await examine(survey)
    return survey


def _show(findings: list[Finding], facts: dict[str, Any], *, as_json: bool) -> None:
    """Each finding and how it stands; ``facts``: what else the JSON holds."""
    if as_json:
        render.data({"made": [], "findings": [finding.to_json() for finding in findings], **facts})
        return
    rows = [(f.id, f.evidence.get("state", f.status), f.finding, f.hint) for f in findings]
    render.table(("id", "status", "finding", "hint"), rows, wide="finding")


async def _apply(
    area: str,
    arguments: dict[str, Any],
    settings: Settings,
    examine: Callable[[Survey], Awaitable[None]],
    after: Callable[[Run, Survey], None] = lambda _run, _survey: None,
    *,
    yes: bool,
    data: Path | None,
    as_json: bool,
) -> int:
    """Say what is missing, ask, and make it as a run on record. ``after`` puts on the run what else there is to report."""
    from memory_layer.ops.blocking import blocking
    from memory_layer.ops.checks import Survey

    missing = (await _look(examine)).repairable
    for found in missing:
        render.say(found.finding)
    if missing and not render.confirm("Make it?", yes=yes):
        render.say("nothing was made.")
        return 1

    async def work(run: Run) -> None:
        survey = Survey(make=True)
        await examine(survey)
        for line in survey.made:
            run.installation.say(f"made: {line}")
        run.find(*survey.findings)
        run.fact("made", survey.made)
        with blocking():
            after(run, survey)

    verb = f"provision-apply-{area}"
    return await command.run(verb, arguments, work, data=data, as_json=as_json, settings=settings)
