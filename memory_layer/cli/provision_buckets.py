"""`memoryctl provision plan / apply / probe buckets`: the buckets of artifacts and of the audit archive, and whether their locks hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from memory_layer import config
from memory_layer.cli import command, render
from memory_layer.cli.options import AsJson, Data, Yes

if TYPE_CHECKING:
    from memory_layer.ops.operate import Run

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


def plan_buckets(*, policies: Policies = None, probe: Probe = False, wait: Wait = 60.0, as_json: AsJson = False) -> int:
    """Show what the buckets lack and where they differ. Exit 1 when something that matters is missing or differs.

    They are `${BUCKET_PREFIX}-memory-${SERVICE_ENV}` and `${BUCKET_PREFIX}-audit-archive-${SERVICE_ENV}`, or S3_BUCKET and ARCHIVE_BUCKET;
    with S3_REPLICA_REGION each has a replica there.

    For example:

      memoryctl provision plan buckets
      memoryctl provision plan buckets --policies ./policies
      memoryctl provision plan buckets --probe --json
    """
    from memory_layer.ops.provision import bucket_policies, bucket_probe, buckets

    settings = config.load()
    if policies is not None:
        for path in bucket_policies.write(settings, policies):
            render.say(f"wrote {path}")
    found = buckets.plan(settings)
    if probe:
        found.findings += bucket_probe.probe(settings, wait, render.say).findings
    if as_json:
        render.data({"made": [], "findings": [finding.to_json() for finding in found.findings]})
    else:
        rows = [(f.id, f.evidence.get("state", f.status), f.finding, f.hint) for f in found.findings]
        render.table(("id", "status", "finding", "hint"), rows, wide="finding")
    return 0 if found.right else 1


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
    todo = buckets.repairable(buckets.plan(settings))
    for found in todo:
        render.say(found.finding)
    if todo and not render.confirm("Make it?", yes=yes):
        render.say("nothing was made.")
        return 1

    def work(run: Run) -> None:
        outcome = buckets.apply(settings)
        for line in outcome.made:
            render.say(f"made: {line}")
        run.fact("made", outcome.made)
        for finding in outcome.findings:
            run.find(finding)
        if not no_probe:
            probed = bucket_probe.probe(settings, wait, render.say)
            for finding in probed.findings:
                run.find(finding)
            run.fact("replicationLagSeconds", probed.lags)

    arguments = {"buckets": buckets.target_names(settings), "probe": not no_probe}
    return await command.run("provision-apply-buckets", arguments, work, data=data, as_json=as_json, settings=settings)


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
        bucket_weekly.look(settings, run, wait=wait, samples=samples, expected=(), say=render.say)

    arguments = {"buckets": buckets.target_names(settings), "samples": samples}
    return await command.run("provision-probe-buckets", arguments, work, data=data, as_json=as_json, settings=settings)
