"""``memoryctl``: see ``memory_layer.cli.app`` for the commands."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    import sys

    from memory_layer.cli.app import run

    sys.exit(run(argv))
