"""What a manifest of artifacts is called, for those who know of one by its row alone."""

from __future__ import annotations

from typing import Final

FORMAT: Final = "memory-layer/artifact-manifest/v1"
PREFIX: Final = "artifact-manifests"
