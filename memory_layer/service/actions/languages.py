"""What a namespace's texts are written in, as an operator says. Pure, decided under the log lock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from memory_layer.service.commit.action import Action, Effect, Situation, Touched
from memory_layer.stores.batch_rows import NamespaceLanguage

LANGUAGE_SET: Final = "ops.namespace-language.succeeded"


@dataclass(frozen=True, slots=True)
class SetLanguage(Action):
    """The language of a namespace's texts from now on, for nodes that declare none; None: each text tells. The worker writes the words
    of those from before again."""

    namespace: str
    language: str | None

    def touches(self, tenant: str) -> list[Touched]:
        return [(tenant, "language", self.namespace)]

    def decide(self, at: Situation) -> Effect:
        facts = {"tenant": at.tenant, "namespace": self.namespace, "language": self.language}
        effect = Effect(LANGUAGE_SET, facts, facts)
        effect.put(NamespaceLanguage(at.tenant, self.namespace, self.language))
        return effect
