"""Text to unit vectors: ``local`` (in the process, offline) or ``openai`` (any OpenAI-compatible endpoint)."""

from __future__ import annotations

from memory_layer.errors import UsageError
from memory_layer.stores.protocols import Embedder


def open_embedder(
    provider: str, model: str, dimension: int, endpoint: str | None, api_key: str | None
) -> Embedder | None:
    """The embedder that the settings name; None for ``none``. Opens no file and no socket yet.

    Raises UsageError naming the setting that is wrong.
    """
    match provider:
        case "none":
            return None
        case "local":
            from memory_layer.stores.embedders import local

            known = local.MODELS.get(model)
            if known is None:
                raise UsageError(
                    f"EMBEDDINGS_MODEL is {model!r}, but EMBEDDINGS_PROVIDER=local has {' and '.join(local.MODELS)} alone: "
                    "change the one or the other."
                )
            if dimension != known.dimension:
                raise UsageError(
                    f"EMBEDDINGS_DIMENSIONS is {dimension}, but {model} makes {known.dimension}: "
                    f"set {known.dimension} or remove the setting."
                )
            if known.extra and known.folder is None:
                raise UsageError(f"EMBEDDINGS_MODEL is {model}, and its weights are not installed: {known.hint}.")
            return local.LocalEmbedder(known)
        case "openai":
            from memory_layer.stores.embedders import openai

            return openai.OpenAIEmbedder(model, dimension, endpoint, api_key)
    raise UsageError(f"EMBEDDINGS_PROVIDER is {provider!r}; it must be local, openai or none.")
