"""`memoryctl vectors language`: what a namespace's texts are written in."""

from __future__ import annotations

from memory_layer.ops.operate import Run
from memory_layer.ops.report import Finding
from memory_layer.service import languages
from memory_layer.service.system import system_caller
from memory_layer.stores.postgres import open_postgres

LOCK = "languages"


async def set_language(run: Run, tenant: str, namespace: str, language: str | None) -> None:
    """Set it, or with None take it off. Raises what the use case raises."""
    installation = await run.installation.need("committer")
    run.fact("before", await languages.language_of(installation.postgres, tenant, namespace))
    caller = await system_caller(installation, "memoryctl", str(run.id))
    facts = await languages.set_language(installation, caller, tenant, namespace, language)
    for name in ("tenant", "namespace", "language", "auditId"):
        run.fact(name, facts[name])
    what = "each text tells its language" if language is None else f"texts are taken to be in {language}"
    hint = (
        "Words of texts from before are written again within minutes; `memoryctl vectors status` counts what is left."
    )
    text = f"In {namespace} of tenant {tenant} {what}, where their nodes declare none."
    run.find(Finding("language.set", "info", "pass", text, hint))


async def language_of(dsn: str, tenant: str, namespace: str) -> str | None:
    """What is set."""
    postgres = await open_postgres(dsn, size=1)
    try:
        return await languages.language_of(postgres, tenant, namespace)
    finally:
        await postgres.close()
