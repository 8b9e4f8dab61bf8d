"""`memoryctl vectors`: the vector index."""

from __future__ import annotations

from cyclopts import App

from memory_layer.cli import generations

vectors = App(name="vectors", help="The vector index: another model without downtime.")

for _command in (
    generations.reembed,
    generations.compare,
    generations.cutover,
    generations.rollback,
    generations.retire,
    generations.generations,
):
    vectors.command(_command)
