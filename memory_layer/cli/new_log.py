"""`memoryctl audit new-log`: the next incarnation of a log that cannot go on."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Annotated

from cyclopts import Parameter

from memory_layer import config
from memory_layer.cli import command
from memory_layer.cli.access import data_folder, owner_database_of
from memory_layer.cli.options import AsJson, Data, Yes


async def new_log(
    *,
    reason: Annotated[str, Parameter(help="One line, kept in the first entry of the new log.")],
    yes: Yes = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """End the log, and open its next incarnation: where the old one lost entries for good, or was changed beyond repair.

    Stop every server and worker first. The first entry of the new log names the old one, its newest checkpoint, what it lacks, the verdict
    on it and the reason. Every row that the old log proves gets an entry in the new one; the others are named, and are served to nobody
    until `memoryctl tamper` accepts them or takes them out: then the exit is 1. A new trust-root.json is written, and the old one is kept
    beside it. A run that was cut off is finished by the same command.

    It needs the role that owns the tables (MIGRATION_DATABASE_URL, else DATABASE_URL), and the log's signer as the service does. The
    database of `memoryctl up` is started for it.

    For example:

      memoryctl audit new-log --reason "restored to 12 November, 410 entries lost, case 12"
    """
    from memory_layer.ops.new_log import LOCK, open_new
    from memory_layer.ops.tamper import check_reason

    check_reason(reason)
    command.agree("End the log of this installation and open a new one? It cannot be undone.", yes=yes)
    with contextlib.ExitStack() as stack:
        settings = config.load(database_url=stack.enter_context(owner_database_of(data_folder(data))))
        work = partial(open_new, reason=reason.strip())
        return await command.run(
            "audit-new-log", {"reason": reason}, work, data=data, as_json=as_json, lock=LOCK, settings=settings
        )
