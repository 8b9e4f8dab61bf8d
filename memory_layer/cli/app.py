"""The command tree, and the one place where an error becomes a line and an exit code.

A command is named here by its import path and loaded when it runs, so `memoryctl --help` reads none of them. A command
prints through `memory_layer.cli.render`, returns its exit code (None is 0) and raises to fail. Those that wait for something are
coroutine functions, which Cyclopts runs here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from cyclopts import App, CycloptsError, Group, Parameter

from memory_layer import __version__
from memory_layer.errors import DatabaseUnavailable, MemoryLayerError, PolicyRefused

RUN, USE, OPERATE = Group.create_ordered("Run"), Group.create_ordered("Use"), Group.create_ordered("Operate")

# (name, import path, group, one line for the overview)
COMMANDS: Final = (
    ("up", "memory_layer.cli.up:up", RUN, "Run the whole product on this machine."),
    ("env", "memory_layer.cli.access:env", RUN, "Print the address and token of a running `up` for the shell."),
    ("token", "memory_layer.cli.access:token", RUN, "Make development tokens; refuse a token."),
    ("serve", "memory_layer.cli.server:serve", RUN, "Answer HTTP, from the environment."),
    ("worker", "memory_layer.cli.server:worker", RUN, "Bring written nodes into the index, from the environment."),
    ("ingest", "memory_layer.cli.ingest:ingest", USE, "Remember files, folders and JSON lines."),
    ("search", "memory_layer.cli.search:search", USE, "Find nodes by meaning and by words."),
    ("node", "memory_layer.cli.node:node", USE, "Read and write single nodes; legal holds."),
    ("artifacts", "memory_layer.cli.artifacts:artifacts", USE, "Store and fetch files."),
    ("jobs", "memory_layer.cli.jobs:jobs", OPERATE, "What the worker has to index, and what it gave up on."),
    ("audit", "memory_layer.cli.audit:audit", OPERATE, "Prove what happened: verify the log."),
    (
        "tamper",
        "memory_layer.cli.tamper:tamper",
        OPERATE,
        "Rows that are not what the log says: restore or accept them.",
    ),
    (
        "principal",
        "memory_layer.cli.principal:principal",
        OPERATE,
        "Services that act here: make, list, refuse, let in again.",
    ),
    ("tenant", "memory_layer.cli.tenant:tenant", OPERATE, "Tenants: make, list, refuse, let in again."),
    ("api-key", "memory_layer.cli.api_key:api_key", OPERATE, "API keys of services: make, list, refuse."),
    ("bootstrap", "memory_layer.cli.api_key:bootstrap", OPERATE, "Make the first admin, once."),
    ("freeze", "memory_layer.cli.freeze:freeze", OPERATE, "Stop all writes for a while; reads go on."),
    (
        "provision",
        "memory_layer.cli.provision:provision",
        OPERATE,
        "Make what it needs around it: keys, buckets, vector collections, a queue.",
    ),
    ("rotate", "memory_layer.cli.rotate:rotate", OPERATE, "Change the keys of an installation."),
    (
        "vectors",
        "memory_layer.cli.vectors:vectors",
        OPERATE,
        "The vector index: compare, repair, snapshot, restore, another model.",
    ),
    ("drill", "memory_layer.cli.drill:drill", OPERATE, "Rehearse a disaster, and measure the way back."),
    ("migrate", "memory_layer.cli.migrate:migrate", OPERATE, "Bring a database to this version's schema."),
    ("runs", "memory_layer.cli.runs:runs", OPERATE, "What operators did, and what the worker does by itself."),
    ("openapi", "memory_layer.cli.migrate:openapi", OPERATE, "Print the OpenAPI document."),
)

EXAMPLES = """\
For example:

  memoryctl up                     # the whole product on this machine
  eval "$(memoryctl env)"          # in another terminal: its address, a token
  memoryctl ingest docs            # remember a folder
  memoryctl search "backup plan"   # and find it by meaning

Exit codes: 0 fine, 1 findings, 2 usage, 3 a dependency is unavailable,
4 refused by policy, 5 lock held."""


def build(*, overview: bool = False) -> App:
    """The command tree. For the overview every command has its line; else each shows its own docstring, once loaded."""
    app = App(
        name="memoryctl",
        help="Governed memory for AI agents: run it, use it, operate it.",
        help_epilogue=EXAMPLES if overview else None,
        default_parameter=Parameter(
            negative=(), show_default=lambda value: None if value in (None, False) else str(value)
        ),
        help_format="plaintext",
        version=__version__,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for name, path, group, line in COMMANDS:
        app.command(path, name=name, group=group, help=line if overview else None)
    app.register_install_completion_command()
    return app


def run(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code. Nothing escapes as a traceback."""
    from memory_layer.cli import render

    words = list(argv) if argv is not None else sys.argv[1:]
    # The pool's warnings name its inner objects, and a command's own last line says the rest. Those that roles write to their log go
    # there all the same.
    for name in ("psycopg.pool", "memory_layer.database", "memory_layer.objects"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    try:
        app = build(overview=not words or words[0] in ("--help", "-h"))
        result: Any = app(words, exit_on_error=False, print_error=False, help_on_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        return render.failure(f"{_usage_line(error)} See `{_command(error)} --help`.", 2)
    except MemoryLayerError as error:
        if isinstance(error, PolicyRefused):
            for detail in error.details:
                render.say(f"  {detail.path}: {detail.problem}")
        return render.failure(_with_reason(error), error.exit_code)
    except KeyboardInterrupt:
        return render.failure("interrupted.", 130)
    except BrokenPipeError:
        # The reader (head, less) has what it wanted. Point stdout elsewhere so that the interpreter's last flush is quiet.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0
    except Exception as error:  # noqa: BLE001 - the outermost door
        return render.failure(*_other(error))
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _with_reason(error: MemoryLayerError) -> str:
    """With Postgres's own words, which callers of the API are not shown: who runs a command may be who can help."""
    if isinstance(error, DatabaseUnavailable) and error.server_message and error.server_message not in error.message:
        return f"{error.message} Postgres says: {error.server_message.rstrip('.')}."
    return error.message


def _other(error: Exception) -> tuple[str, int]:
    """Errors that are not our server-side classes: those of the SDK, of the disk, and the unforeseen."""
    sdk = sys.modules.get("memory_layer.client.errors")
    if sdk is not None and isinstance(error, sdk.MemoryLayerClientError):
        from memory_layer.cli import connection

        return connection.explain(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}.", 2 if isinstance(
            error, (FileNotFoundError, IsADirectoryError)
        ) else 3
    if isinstance(error, UnicodeEncodeError):
        return "the text holds lone surrogates, which are not Unicode characters and cannot be sent.", 2
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())}. Please report this.", 3


def _usage_line(error: CycloptsError) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith((".", "?", "!")) else text + "."


def _command(error: CycloptsError) -> str:
    return " ".join(["memoryctl", *(error.command_chain or ())])
