"""`memoryctl audit`: judge the log, prove an entry, take evidence away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from memory_layer import config
from memory_layer.cli import render
from memory_layer.cli.access import data_folder, read_up
from memory_layer.errors import DependencyUnavailable, UsageError

audit = App(name="audit", help="Prove what happened.")

Data = Annotated[Path | None, Parameter(help="Data folder of `memoryctl up`.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON.")]


@audit.command
def verify(
    *,
    data: Data = None,
    trust_root: Annotated[Path | None, Parameter(help="The auditor's own copy of trust-root.json.")] = None,
    payloads: Annotated[bool, Parameter(negative="--no-payloads", help="Compare payload bytes too.")] = True,
    as_json: AsJson = False,
) -> int:
    """Check every entry, link, seal and payload of the log, and each node and artifact against its entries.

    Exit 0 anchored and right, 10 right but unanchored, 20 incomplete, 30 diverged from an anchor, 40 tampered, 50 policy,
    2 usage, 3 the database does not answer. Without --trust-root the copy in the data folder is used.

    For example:

      memoryctl audit verify
      memoryctl audit verify --trust-root /media/usb/trust-root.json --json
    """
    from memory_layer.audit.report import render as text
    from memory_layer.audit.trust_root import load
    from memory_layer.ops.audit import entries, verify_live

    folder = data_folder(data)
    path = trust_root or folder / "trust-root.json"
    try:
        root = load(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"the trust root {path} cannot be read: {error.strerror}. Name yours with --trust-root."
        ) from error
    with database_of(folder) as dsn, render.progress() as bar:
        task = bar.add_task("verifying", total=entries(dsn), note="")
        verdict = verify_live(
            dsn, root, pinned=True, payloads=payloads, progress=lambda count: bar.update(task, completed=count)
        )
    if as_json:
        render.data(verdict.to_json())
    else:
        for line in text(verdict).splitlines():
            render.line(line)
    return verdict.exit_code


@contextlib.contextmanager
def database_of(folder: Path) -> Iterator[str]:
    """DATABASE_URL, else the database of a running `up`, else the embedded one, started for the occasion."""
    dsn = config.load().database_url
    if dsn is not None:
        yield dsn
        return
    try:
        yield str(read_up(folder)["database"])
        return
    except DependencyUnavailable:
        if not (folder / "postgres").is_dir():
            raise
    from memory_layer.ops import embedded

    with embedded.start(folder, on_step=render.say) as cluster:
        yield cluster.dsn("memory_app")
