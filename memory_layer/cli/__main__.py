"""``python -m memory_layer.cli`` is ``memoryctl``."""

from __future__ import annotations

from memory_layer.cli import main

main()
