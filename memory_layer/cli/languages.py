"""`memoryctl vectors language`; ``cli/vectors.py`` has the App that it is a command of."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from cyclopts import Parameter

from memory_layer import config
from memory_layer.cli import command, render
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.options import AsJson, Data, OneNamespace, OneTenant


async def language(
    language: Annotated[
        str | None, Parameter(help="ISO 639 code (en, de, ...); none: each text tells. Left out: shows what is set.")
    ] = None,
    /,
    *,
    tenant: OneTenant = "default",
    namespace: OneNamespace = None,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Say in which language a namespace's texts are, for the words of nodes that declare none. Else each text tells, which a few words do not.

    Words of texts from before are written again in the background.

    For example:

      memoryctl vectors language de --namespace notizen
      memoryctl vectors language none --namespace notizen
      memoryctl vectors language --namespace notizen
    """
    from memory_layer.ops.vectors import language as ops

    folder = data_folder(data)
    name = namespace or config.load().vector_db_namespace
    if language is None:
        with database_of(folder) as dsn:
            found = await ops.language_of(dsn, tenant, name)
        if as_json:
            render.data({"tenant": tenant, "namespace": name, "language": found})
        else:
            render.line(found or "none")
        return 0
    wanted = None if language == "none" else language
    arguments = {"tenant": tenant, "namespace": name, "language": wanted}
    made = partial(ops.set_language, tenant=tenant, namespace=name, language=wanted)
    return await command.run("vectors-language", arguments, made, data=data, as_json=as_json, lock=ops.LOCK)
