"""The language of a namespace: its texts' words are of it, before and after it was set, where their nodes declare none."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from memory_layer.analyser import Words
from memory_layer.errors import Frozen, ValidationError
from memory_layer.ops.vectors import words
from memory_layer.ops.vectors.spaces import Scope
from memory_layer.service import freeze, index_entries, languages, renewed_words, word_writer
from memory_layer.service.indexing import work_once
from memory_layer.service.installation import Installation
from memory_layer.service.renewed_words import older, renew
from memory_layer.service.system import system_caller
from memory_layer.service.word_writer import WordWriter
from tests.support.service import create, patch, rows, running_memory, verify

Database = Callable[[str], str]


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        opened.words = None  # a worker alone writes them: nothing is written behind a test's back
        yield opened
    assert verify(database("postgres"), tmp_path).findings == ()


async def speak(memory: Installation, name: str, language: str | None, tenant: str = "ann") -> None:
    await languages.set_language(memory, await system_caller(memory, "memoryctl"), tenant, name, language)


async def indexed(memory: Installation) -> None:
    while await work_once(memory):
        pass


def spoken(database: Database, *nodes: uuid.UUID) -> list[str]:
    found = dict(rows(database("postgres"), "SELECT node_id, language FROM memory_terms"))
    return [found[node] for node in nodes]


async def test_new_texts_are_in_it_unless_they_say_otherwise(memory: Installation, database: Database) -> None:
    await speak(memory, "notizen", "de")
    plain = await create(memory, namespace="notizen", content="Häuser")
    dutch = await create(memory, namespace="notizen", content="huizen", language="nl")
    elsewhere = await create(memory, content="Häuser")
    stranger = await create(memory, "bob", namespace="notizen", content="Häuser")
    await indexed(memory)
    assert spoken(database, plain, dutch, elsewhere, stranger) == ["de", "nl", "en", "en"]
    # What a node declares wins, and no longer when it is taken back.
    await patch(memory, dutch, language=None)
    await patch(memory, plain, language="en")
    await indexed(memory)
    assert spoken(database, plain, dutch) == ["en", "de"]
    assert await languages.language_of(memory.postgres, "ann", "notizen") == "de"
    assert await languages.language_of(memory.postgres, "bob", "notizen") is None


async def test_texts_from_before_follow_in_the_background(memory: Installation, database: Database) -> None:
    plain, english = (
        await create(memory, content="Häuser"),
        await create(memory, content="houses", language="en"),
    )
    await indexed(memory)
    assert spoken(database, plain, english) == ["en", "en"]
    sides = memory.with_parts(work=partial(work_once, memory))
    for language, expected in (("de", "de"), ("sv", "sv"), (None, "en")):
        await speak(memory, "kernel-memory", language)
        assert spoken(database, plain) != [expected]  # found as they were until then
        assert await renew(memory) == 1
        assert spoken(database, plain, english) == [expected, "en"]
        assert (await renew(memory), await older(memory)) == (0, {})
        done = await words.compare(sides, Scope())
        assert (done.compared, done.found) == (2, [])


@pytest.mark.parametrize("writer", ["worker", "word writer", "renewal"])
async def test_words_that_were_being_made_while_it_was_set_are_made_again(
    memory: Installation, database: Database, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    """The language is read, then set, and its texts are marked; the words come last."""
    node = await create(memory, content="Häuser")
    if writer == "renewal":
        await indexed(memory)
        await speak(memory, "kernel-memory", "sv")
    module = {"worker": index_entries, "word writer": word_writer, "renewal": renewed_words}[writer]
    make = word_writer.analysed

    async def overtaken(texts: Sequence[tuple[str, str | None]]) -> list[Words]:
        monkeypatch.setattr(module, "analysed", make)
        made = await make(texts)
        await speak(memory, "kernel-memory", "de")
        if writer != "renewal":
            assert await renew(memory) == 0  # nothing is there to be marked
        return made

    monkeypatch.setattr(module, "analysed", overtaken)
    if writer == "word writer":
        memory.words = WordWriter(memory.postgres)
        writing = asyncio.create_task(memory.words.run())
        other = await create(memory, content="Mäuse")
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(rows, database("postgres"), "SELECT 1 FROM memory_terms"):  # noqa: ASYNC110 - rows
                await asyncio.sleep(0.02)
        writing.cancel()
        await asyncio.wait([writing])
        memory.words = None
        node = other
    elif writer == "worker":
        await indexed(memory)
    else:
        assert await renew(memory) == 0
    assert await older(memory) == {("ann", "kernel-memory"): 1}
    await renew(memory)
    assert spoken(database, node) == ["de"]
    assert await older(memory) == {}


async def test_it_is_an_entry_and_what_is_no_language_is_none(memory: Installation, database: Database) -> None:
    await speak(memory, "notizen", "de")
    root = database("postgres")
    told = "SELECT e.tenant, convert_from(p.payload, 'UTF8')::json ->> 'language' FROM audit_events e JOIN audit_payloads p USING (log, seq)"
    where = " WHERE event_type = 'ops.namespace-language.succeeded'"
    assert rows(root, told + where) == [("ann", "de")]
    for tenant, name, language in (
        ("ann", "notizen", "German"),
        ("ann", "notizen", "de\n"),
        ("ann", "notizen", ""),
        ("ann", "a b", "de"),
        ("", "notizen", "de"),
    ):
        with pytest.raises(ValidationError):
            await speak(memory, name, language, tenant)
    operator = await system_caller(memory, "memoryctl")
    await freeze.put(memory.committer, operator, "a drill")
    with pytest.raises(Frozen):
        await speak(memory, "notizen", "fr")
    await freeze.lift(memory.committer, operator)
    assert rows(root, told + where) == [("ann", "de")]
