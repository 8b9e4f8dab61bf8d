"""`memoryctl provision`: plan what the services around need, and make what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from memory_layer import config
from memory_layer.cli import command, render
from memory_layer.cli.options import AsJson, Data, Yes
from memory_layer.cli.provision_buckets import apply_buckets, plan_buckets, probe_buckets
from memory_layer.cli.provision_queue import apply_queue, plan_queue
from memory_layer.cli.provision_vectors import apply_vectors, plan_vectors

if TYPE_CHECKING:
    from memory_layer.ops.operate import Run
    from memory_layer.ops.provision.keys import Keys
    from memory_layer.ops.report import Finding

provision = App(name="provision", help="Plan and make what the Memory Layer needs around it.")
plan = App(name="plan", help="Show what is missing or differs. Changes nothing.")
apply = App(name="apply", help="Make what is missing.")
probe = App(name="probe", help="Try what must hold. Writes canaries.")
provision.command(plan)
provision.command(apply)
provision.command(probe)
plan.command(plan_buckets, name="buckets")
apply.command(apply_buckets, name="buckets")
probe.command(probe_buckets, name="buckets")
plan.command(plan_queue, name="queue")
apply.command(apply_queue, name="queue")
plan.command(plan_vectors, name="vectors")
apply.command(apply_vectors, name="vectors")

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


@plan.command(name="keys")
async def plan_keys(*, signer: Service = None, key_spec: KeySpec = None, as_json: AsJson = False) -> int:
    """Show how the key that seals the log stands, in AWS KMS or Vault. Exit 1 when something is missing or differs.

    For example:

      memoryctl provision plan keys --signer kms
      AUDIT_SIGNER=vault VAULT_ADDR=https://vault:8200 memoryctl provision plan keys
    """
    from memory_layer.ops.provision import keys

    settings = config.load(audit_signer=signer)
    keys.check(settings, key_spec)

    found = await keys.plan(settings, key_spec)
    if as_json:
        render.data({"made": [], "findings": [finding.to_json() for finding in found.findings]})
    else:
        _table(found.findings)
    return 0 if all(finding.status == "pass" for finding in found.findings) else 1


@apply.command(name="keys")
async def apply_keys(
    *, signer: Service = None, key_spec: KeySpec = None, yes: Yes = False, data: Data = None, as_json: AsJson = False
) -> int:
    """Make the key that seals the log, where there is none. What differs is told, not changed: exit 1.

    For example:

      memoryctl provision apply keys --signer kms
      memoryctl provision apply keys --signer vault --key-spec ecdsa-p256
    """
    from memory_layer.ops.provision import keys

    settings = config.load(audit_signer=signer)
    keys.check(settings, key_spec)
    missing = [found for found in (await keys.plan(settings, key_spec)).findings if keys.is_missing(found)]
    for found in missing:
        render.say(found.finding)
    if missing and not render.confirm("Make it?", yes=yes):
        render.say("nothing was made.")
        return 1

    async def work(run: Run) -> None:
        made = await keys.apply(settings, key_spec)
        for line in made.made:
            render.say(f"made: {line}")
        _tell(run, made)

    arguments = {"signer": settings.signer, "keySpec": key_spec}
    return await command.run("provision-apply-keys", arguments, work, data=data, as_json=as_json, settings=settings)


def _tell(run: Run, found: Keys) -> None:
    for finding in found.findings:
        run.find(finding)
    run.fact("made", found.made)


def _table(findings: Sequence[Finding]) -> None:
    rows = [(f.id, f.evidence.get("state", f.status), f.finding, f.hint) for f in findings]
    render.table(("id", "status", "finding", "hint"), rows, wide="finding")
