"""The names of a manifest of artifacts, for code that knows it by its row alone."""

from __future__ import annotations

from typing import Final

FORMAT: Final = "memory-layer/artifact-manifest/v1"
PREFIX: Final = "artifact-manifests"
