"""`memoryctl ingest` of what was taken in before: the stored passages become those that the files have now."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from memory_layer.client import MemoryClient
from tests.support.ingesting import Shell, lines

TOPICS = "".join(
    f"## Topic {n}\n\n" + f"Paragraph about subject {n} and nothing else. " * 18 + "\n\n" for n in range(8)
)


class Product(Protocol):
    """A running Memory Layer (fixture ``product``)."""

    url: str
    token: str

    def issue(self, service: str = ..., tenant: str = ..., scopes: tuple[str, ...] = ...) -> str: ...


@pytest.fixture
def shell(product: Product, tmp_path: Path) -> Iterator[Shell]:
    made = Shell(product, tmp_path)
    yield made
    made.memory.close()


def texts(shell: Shell, path: str) -> list[str]:
    return [node["content"] for node in shell.nodes(path)]


def by_text(shell: Shell, path: str) -> dict[str, str]:
    return {node["content"]: node["memoryNodeId"] for node in shell.nodes(path)}


def counts(summary: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in summary.items() if count and name != "seconds"}


def test_a_changed_file_replaces_its_passages_and_the_same_ones_stay(shell: Shell) -> None:
    notes = f"{shell.mark}/notes"
    shell.write("notes/door.md", "# Door\n\nThe door code is 1111.\n")
    shell.write("notes/topics.md", TOPICS)
    shell.ingest(notes)
    before, (door,) = by_text(shell, f"{notes}/topics.md"), shell.nodes(f"{notes}/door.md")
    shell.write("notes/door.md", "# Door\n\nThe door code is 2222.\n")
    shell.write("notes/topics.md", "A new first line.\n\n" + TOPICS)
    assert counts(shell.ingest(notes)[0]) == {"created": 1, "changed": 1, "skipped": 8}
    assert texts(shell, f"{notes}/door.md") == ["# Door\n\nThe door code is 2222."]
    after = shell.nodes(f"{notes}/topics.md")
    assert {node["content"]: node["memoryNodeId"] for node in after[1:]} == before
    assert (after[0]["content"], [node["metadata"]["source"]["line"] for node in after[:3]]) == (
        "A new first line.",
        [1, 3, 7],
    )
    # The change is one entry of the node that had the old text.
    entries = shell.memory.history(door["memoryNodeId"])
    assert [entry["type"] for entry in entries] == ["memory.node.created", "memory.node.updated"]
    assert counts(shell.ingest(notes)[0]) == {"skipped": 10}


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: lines[1:],
        lambda lines: lines[:3],
        lambda lines: list(reversed(lines)),
        lambda lines: ["equal", *lines, "equal"],
        lambda lines: lines[:2] + [f"{line} too" for line in lines[2:]],
        lambda lines: [],
        lambda lines: ["all of it is new"],
    ],
    ids=[
        "one less",
        "without its first",
        "cut short",
        "turned around",
        "two more",
        "most changed",
        "emptied",
        "rewritten",
    ],
)
def test_any_change_of_records_is_followed(shell: Shell, change: Any) -> None:
    old = ["equal", "equal", *(f"record {n}" for n in range(6))]
    path = shell.write("records.jsonl", lines(*({"text": text} for text in old)))
    shell.ingest(path)
    before = shell.nodes(path)
    new = change(old)
    shell.write("records.jsonl", lines(*({"text": text} for text in new)))
    shell.ingest(path)
    assert texts(shell, path) == new
    kept = {node["memoryNodeId"] for node in shell.nodes(path)} & {node["memoryNodeId"] for node in before}
    assert len(kept) == min(len(new), len(old)), "what can stay or be replaced in place is"
    again, _ = shell.ingest(path)
    assert counts(again) == ({"skipped": len(new)} if new else {})
    shell.write("records.jsonl", lines(*({"text": text} for text in old)))
    shell.ingest(path)
    assert texts(shell, path) == old


def test_fields_of_a_record_are_changed_and_removed_and_those_of_others_stay(shell: Shell) -> None:
    path = shell.write("turns.jsonl", lines({"text": "Hi", "who": "ann", "mood": {"a": 1, "b": 2}}))
    shell.ingest(path)
    (node,) = shell.nodes(path)
    shell.memory.update(node["memoryNodeId"], metadata={"reviewed": True})
    shell.write("turns.jsonl", lines({"text": "Hi", "mood": {"b": 3}}))
    shell.ingest(path)
    (after,) = shell.nodes(path)
    after["metadata"].pop("source")
    assert after["memoryNodeId"] == node["memoryNodeId"]
    assert after["metadata"] == {"text": "Hi", "mood": {"b": 3}, "reviewed": True}


def test_what_is_stored_of_a_file_that_can_no_longer_be_read_stays(shell: Shell) -> None:
    page = shell.write("notes/a.html", "<h1>A</h1><p>Text a.</p>")
    note = shell.write("notes/b.ipynb", json.dumps({"cells": [{"cell_type": "markdown", "source": "Text b."}]}))
    shell.ingest(f"{shell.mark}/notes")
    shell.write("notes/a.html", b"")
    shell.write("notes/b.ipynb", "{broken")
    for named in (f"{shell.mark}/notes", page, note):
        _, said = shell.ingest(named, "--prune", code=1)
        assert "cannot be read" in said or "no text" in said or "is no notebook" in said
        assert (texts(shell, page), texts(shell, note)) == (["# A\n\nText a."], ["Text b."])


def test_a_file_is_a_thread_of_its_passages(shell: Shell) -> None:
    path = shell.write("notes/a.md", "# One\n\nText one.\n\n# Two\n\nText two.\n")
    shell.ingest(f"{shell.mark}/notes")

    def places(path: str) -> list[tuple[str, str, int]]:
        found = [
            (node["content"].split("\n")[-1], node["thread"], node["position"])
            for node in shell.memory.list({"metadata.source.path": path})
        ]
        return sorted(found, key=lambda one: one[2])

    assert places(path) == [("Text one.", path, 0), ("Text two.", path, 1)]
    shell.write("notes/a.md", "# One\n\nText one.\n\n# New\n\nText new.\n\n# Two\n\nText two.\n")
    (shell.folder / "notes/b.md").write_text("Text b.")
    assert counts(shell.ingest(f"{shell.mark}/notes")[0]) == {"created": 2, "skipped": 2}
    assert places(path) == [("Text one.", path, 0), ("Text new.", path, 1), ("Text two.", path, 2)]
    (shell.folder / "notes/a.md").rename(shell.folder / "notes/c.md")
    shell.ingest(f"{shell.mark}/notes")
    renamed = path.replace("a.md", "c.md")
    assert places(renamed) == [("Text one.", renamed, 0), ("Text new.", renamed, 1), ("Text two.", renamed, 2)]


def test_lines_are_in_the_thread_that_a_template_says(shell: Shell) -> None:
    turns = [{"text": f"turn {n}", "talk": "t7", "day": n // 2} for n in range(4)]
    path = shell.write("turns.jsonl", lines(*turns, {"text": "no day", "talk": "t7"}))
    shell.ingest(path)
    assert {(node["thread"], node["position"]) for node in shell.nodes(path)} == {(None, None)}
    summary, said = shell.ingest(path, "--thread", "{talk}/{day}", code=1)
    assert counts(summary)["failed"] == 1
    assert f"{path}:5: no field 'day'" in said
    assert [(node["thread"], node["position"]) for node in shell.nodes(path)] == [
        ("t7/0", 0),
        ("t7/0", 1),
        ("t7/1", 2),
        ("t7/1", 3),
    ]


def test_what_was_removed_is_deleted_with_prune_alone(shell: Shell) -> None:
    notes = f"{shell.mark}/notes"
    for name in ("a", "b", "deep/c"):
        shell.write(f"notes/{name}.md", f"The text of {name}.\n\n" + TOPICS)
    shell.write("other/a.md", "Not below the folder that is named.")
    shell.ingest(notes)
    shell.ingest(f"{shell.mark}/other")
    (shell.folder / "notes/a.md").unlink()
    shutil.rmtree(shell.folder / "notes/deep")
    (shell.folder / "other/a.md").unlink()
    assert counts(shell.ingest(notes)[0]) == {"skipped": 9}
    assert len(shell.nodes(f"{notes}/a.md")) == 9
    gone = shell.nodes(f"{notes}/a.md")[4]["memoryNodeId"]
    assert counts(shell.ingest(notes, "--prune")[0]) == {"removed": 18, "skipped": 9}
    assert [len(shell.nodes(f"{notes}/{name}.md")) for name in ("a", "b", "deep/c")] == [0, 9, 0]
    assert len(shell.nodes(f"{shell.mark}/other/a.md")) == 1
    assert [entry["type"] for entry in shell.memory.history(gone)][-1] == "memory.node.deleted"
    assert counts(shell.ingest(notes, "--prune")[0]) == {"skipped": 9}


def test_what_is_only_left_out_is_not_pruned(shell: Shell) -> None:
    notes = f"{shell.mark}/notes"
    shell.write("notes/a.md", "Text a.")
    shell.write("notes/b.md", "Text b.")
    shell.ingest(notes)
    shell.write("notes/.gitignore", "b.md\n")
    summary, said = shell.ingest(notes, "--prune")
    assert counts(summary) == {"skipped": 1}
    assert "1 files and folders that a .gitignore names" in said
    assert texts(shell, f"{notes}/b.md") == ["Text b."]


def test_the_last_file_of_a_folder_can_be_pruned(shell: Shell) -> None:
    shell.write("notes/a.md", "Text a.")
    shell.ingest(f"{shell.mark}/notes")
    (shell.folder / "notes/a.md").unlink()
    assert counts(shell.ingest(f"{shell.mark}/notes", "--prune")[0]) == {"removed": 1}


def test_a_renamed_file_keeps_its_passages(shell: Shell) -> None:
    notes = f"{shell.mark}/notes"
    shell.write("notes/a.md", TOPICS)
    shell.write("notes/one.md", "One passage.")
    shell.ingest(notes)
    before, one = by_text(shell, f"{notes}/a.md"), by_text(shell, f"{notes}/one.md")
    (shell.folder / "notes/deep").mkdir()
    (shell.folder / "notes/a.md").rename(shell.folder / "notes/deep/b.md")
    (shell.folder / "notes/one.md").rename(shell.folder / "notes/two.md")
    assert counts(shell.ingest(notes)[0]) == {"skipped": 9, "renamed": 2}
    assert by_text(shell, f"{notes}/deep/b.md") == before
    assert by_text(shell, f"{notes}/two.md") == one
    assert (texts(shell, f"{notes}/a.md"), texts(shell, f"{notes}/one.md")) == ([], [])
    assert counts(shell.ingest(notes, "--prune")[0]) == {"skipped": 9}
    # The old name is free, also for the same text.
    shutil.copy(shell.folder / "notes/deep/b.md", shell.folder / "notes/a.md")
    assert counts(shell.ingest(notes)[0]) == {"created": 8, "skipped": 9}
    assert by_text(shell, f"{notes}/deep/b.md") == before
    assert by_text(shell, f"{notes}/a.md").keys() == before.keys()


def test_two_files_that_change_names_both_end_right(shell: Shell) -> None:
    notes = f"{shell.mark}/notes"
    shell.write("notes/a.md", "Text of the first.")
    shell.write("notes/b.md", TOPICS)
    shell.ingest(notes)
    for old, new in (("a", "x"), ("b", "a"), ("x", "b")):
        (shell.folder / f"notes/{old}.md").rename(shell.folder / f"notes/{new}.md")
    shell.ingest(notes, "--prune")
    assert (len(texts(shell, f"{notes}/a.md")), texts(shell, f"{notes}/b.md")) == (8, ["Text of the first."])


def test_a_hold_wins_and_is_named_until_it_is_released(shell: Shell) -> None:
    notes = f"{shell.mark}/notes"
    shell.write("notes/door.md", "The door code is 1111.")
    shell.write("notes/topics.md", TOPICS)
    shell.write("notes/gone.md", "Will be removed.")
    shell.ingest(notes)
    (door,) = shell.nodes(f"{notes}/door.md")
    topic = shell.nodes(f"{notes}/topics.md")[3]
    (gone,) = shell.nodes(f"{notes}/gone.md")
    held = [node["memoryNodeId"] for node in (door, topic, gone)]
    for node_id in held:
        shell.memory.hold(node_id, "case 7")
    shell.write("notes/door.md", "The door code is 2222.")
    shell.write("notes/topics.md", TOPICS.replace("subject 3", "another subject"))
    (shell.folder / "notes/gone.md").unlink()
    summary, said = shell.ingest(notes, "--prune")
    assert counts(summary) == {"created": 2, "skipped": 7, "held": 3}
    assert all(f"node {node_id} is under legal hold" in said for node_id in held)
    assert sorted(texts(shell, f"{notes}/door.md")) == ["The door code is 1111.", "The door code is 2222."]
    assert len(texts(shell, f"{notes}/topics.md")) == 9
    assert texts(shell, f"{notes}/gone.md") == ["Will be removed."]
    again, said = shell.ingest(notes, "--prune")
    assert counts(again) == {"skipped": 9, "held": 3}
    for node_id in held:
        shell.memory.release(node_id, "closed")
    assert counts(shell.ingest(notes, "--prune")[0])["removed"] == 3
    assert texts(shell, f"{notes}/door.md") == ["The door code is 2222."]
    assert counts(shell.ingest(notes, "--prune")[0]) == {"skipped": 9}


def test_a_held_file_that_is_renamed_stays_under_its_old_name(shell: Shell) -> None:
    notes = f"{shell.mark}/notes"
    shell.write("notes/a.md", "Evidence.")
    shell.ingest(notes)
    (node,) = shell.nodes(f"{notes}/a.md")
    shell.memory.hold(node["memoryNodeId"], "case 7")
    (shell.folder / "notes/a.md").rename(shell.folder / "notes/b.md")
    summary, said = shell.ingest(notes, "--prune")
    assert counts(summary) == {"created": 1, "held": 1}
    assert node["memoryNodeId"] in said
    assert (texts(shell, f"{notes}/a.md"), texts(shell, f"{notes}/b.md")) == (["Evidence."], ["Evidence."])


def test_a_dry_run_shows_what_would_be_and_does_nothing(shell: Shell) -> None:
    notes = f"{shell.mark}/notes"
    for name in ("same", "changed", "gone", "old-name"):
        shell.write(f"notes/{name}.md", f"The text of {name}.\n\n" + TOPICS)
    shell.ingest(notes)

    def state() -> list[Any]:
        found = shell.memory.list({"metadata.source.path": {"$exists": True}, "content": {"$exists": True}})
        return sorted((node["memoryNodeId"], node["version"]) for node in found)

    before = state()
    shell.write("notes/changed.md", "Another text.\n\n" + TOPICS)
    shell.write("notes/new.md", "New.")
    (shell.folder / "notes/gone.md").unlink()
    (shell.folder / "notes/old-name.md").rename(shell.folder / "notes/new-name.md")
    shown, _ = shell.ingest(notes, "--prune", "--dry-run")
    files = {one["name"].removeprefix(f"{notes}/"): one for one in shown["files"]}
    assert files["changed.md"] | {"name": ""} == {
        "name": "", "created": 0, "changed": 1, "kept": 8, "removed": 0, "held": 0, "was": None
    }  # fmt: skip
    assert files["new.md"]["created"] == 1
    assert files["gone.md"]["removed"] == 9
    assert (files["new-name.md"]["was"], files["new-name.md"]["kept"]) == (f"{notes}/old-name.md", 9)
    assert state() == before
    done, _ = shell.ingest(notes, "--prune")
    assert counts(done) == counts({name: value for name, value in shown.items() if name != "files"})


def test_a_folder_is_the_same_however_it_is_named(shell: Shell) -> None:
    shell.write("notes/a.md", "Text a.")
    shell.write("notes/b.md", "Text b.")
    place = shell.folder / "notes"
    assert counts(shell.ingest(f"{shell.mark}/notes")[0]) == {"created": 2}
    for named in (f"./{shell.mark}//notes/", str(place), f"{shell.mark}/../{shell.mark}/notes"):
        assert counts(shell.ingest(named)[0]) == {"skipped": 2}, named
    for cwd, named in ((place, "."), (shell.folder, "notes"), (shell.cwd.parent, str(place)), (Path("/"), str(place))):
        shell.cwd = cwd
        assert counts(shell.ingest(named)[0]) == {"skipped": 2}, (cwd, named)
    shell.cwd = place
    summary, _ = shell.ingest("a.md")
    assert counts(summary) == {"skipped": 1, "artifacts": 1}


def test_two_folders_of_one_name_are_two(shell: Shell, tmp_path: Path) -> None:
    shell.write("one/notes/a.md", "Text of the first.")
    shell.write("two/notes/a.md", "Text of the second.")
    shell.ingest(f"{shell.mark}/one/notes")
    assert counts(shell.ingest(f"{shell.mark}/two/notes", "--prune")[0]) == {"created": 1}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shell.cwd = elsewhere
    first, second = (str(shell.folder / name / "notes") for name in ("one", "two"))
    assert counts(shell.ingest(first, second)[0]) == {"skipped": 2}


def test_passages_from_before_sources_were_known_are_taken_over(shell: Shell) -> None:
    path = shell.write("notes/a.md", TOPICS)
    blocks = [block.strip() for block in TOPICS.split("## ")[1:]]
    ids = []
    for place, block in enumerate(blocks):
        content, line = f"## {block}", 4 * place + 1
        identity = json.dumps([None, path, line, content], separators=(",", ":")).encode()
        made = shell.memory.remember(
            content if place != 5 else "An older text.",
            owner="ann",
            metadata={"heading": f"Topic {place}", "source": {"path": path, "line": line}, "mine": 1},
            embedding_id="ingest:" + hashlib.sha256(identity).hexdigest(),
        )
        ids.append(made["memoryNodeId"])
    assert counts(shell.ingest(f"{shell.mark}/notes")[0]) == {"changed": 1, "skipped": 7}
    found = shell.nodes(path)
    assert [node["memoryNodeId"] for node in found] == ids
    assert [node["content"] for node in found] == [f"## {block}" for block in blocks]
    assert found[0]["metadata"]["mine"] == 1
    assert counts(shell.ingest(f"{shell.mark}/notes")[0]) == {"skipped": 8}


def test_a_text_takes_its_flags_along(shell: Shell, product: Product) -> None:
    path = shell.write("notes/a.md", "# A\n\nAnn has 555-1234.\n\n# B\n\nNothing.\n")
    shell.ingest(f"{shell.mark}/notes")
    shell.memory.update(
        by_text(shell, path)["# A\n\nAnn has 555-1234."], pii_flags={"containsPii": True, "paths": ["content"]}
    )
    shell.write("notes/a.md", "# A\n\nAnn has\n\n# C\n\n555-1234.\n\n# B\n\nNothing.\n")
    shell.ingest(f"{shell.mark}/notes")
    with MemoryClient(product.url, product.issue(scopes=("memory:read",))) as reader:
        shown = [node["content"] for node in reader.list({"metadata.source.path": path})]
    assert sorted(shown) == ["# B\n\nNothing.", "[redacted]", "[redacted]"]


def test_what_a_token_may_not_do_ends_the_run_with_its_reason(shell: Shell, product: Product) -> None:
    path = shell.write("records.jsonl", lines({"text": "one"}, {"text": "two"}))
    shell.ingest(path)
    shell.write("records.jsonl", lines({"text": "one"}))
    shell.env["MEMORY_TOKEN"] = product.issue(scopes=("memory:read", "memory:write"))
    refused = shell.start(path)
    _, said = refused.communicate(timeout=60)
    assert (refused.returncode, "memory:delete" in said, "Traceback" in said) == (4, True, False)
    shell.env["MEMORY_TOKEN"] = product.token
    assert counts(shell.ingest(path)[0]) == {"removed": 1, "skipped": 1, "artifacts": 1}


def test_hidden_passages_are_left_alone(shell: Shell, product: Product) -> None:
    path = shell.write("notes/a.md", "Secret.")
    shell.ingest(f"{shell.mark}/notes")
    (node,) = shell.nodes(path)
    shell.memory.update(node["memoryNodeId"], pii_flags={"containsPii": True})
    shell.write("notes/a.md", "Another secret.")
    shell.env["MEMORY_TOKEN"] = product.issue(scopes=("memory:read", "memory:write", "memory:delete"))
    summary, said = shell.ingest(f"{shell.mark}/notes", "--prune", code=1)
    assert counts(summary) == {"failed": 1}
    assert "read:pii" in said
    assert texts(shell, path) == ["Secret."]


def test_another_tenant_and_namespace_have_their_own(shell: Shell, product: Product) -> None:
    path = shell.write("notes/a.md", "Text a.")
    shell.ingest(f"{shell.mark}/notes")
    assert counts(shell.ingest(f"{shell.mark}/notes", "--namespace", "other")[0]) == {"created": 1}
    shell.env["MEMORY_TOKEN"] = product.issue(tenant=f"t-{shell.mark}")
    assert counts(shell.ingest(f"{shell.mark}/notes")[0]) == {"created": 1}
    (shell.folder / "notes/a.md").unlink()
    assert counts(shell.ingest(f"{shell.mark}/notes", "--prune")[0]) == {"removed": 1}
    assert texts(shell, path) == ["Text a."] * 2


def test_a_watched_folder_is_taken_in_as_it_changes(shell: Shell) -> None:
    notes = f"{shell.mark}/notes"
    shell.write("notes/a.md", "Text a.")
    process = shell.start(notes, "--watch", "--interval", "0.1", "--prune", "--json")
    assert process.stdout is not None
    assert process.stderr is not None

    def told() -> dict[str, Any]:
        assert process.stdout is not None
        return counts({name: value for name, value in json.loads(process.stdout.readline()).items() if name != "files"})

    try:
        assert told() == {"created": 1}
        (node,) = shell.nodes(f"{notes}/a.md")
        shell.write("notes/a.md", "Another text.")
        assert told() == {"changed": 1}
        shell.write("notes/deep/b.md", "Text b.")
        assert told() == {"created": 1}
        (shell.folder / "notes/a.md").rename(shell.folder / "notes/c.md")
        assert told() == {"skipped": 1, "renamed": 1}
        assert by_text(shell, f"{notes}/c.md") == {"Another text.": node["memoryNodeId"]}
        shutil.rmtree(shell.folder / "notes/deep")
        assert told() == {"removed": 1}
        shell.folder.joinpath("notes").rename(
            shell.folder / "away"
        )  # as a drive that is taken out: no change of its files
        shell.write("away/d.md", "Text d.")
        shell.folder.joinpath("away").rename(shell.folder / "notes")
        assert told() == {"created": 1}
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, "stopped watching" in said, "Traceback" in said) == (0, True, False), said
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_runs_that_are_killed_anywhere_are_taken_up(shell: Shell) -> None:
    """Each run is killed at another moment; then the file is another one, also the one before."""
    path = f"{shell.mark}/notes/a.md"
    versions = [
        "".join(f"## Topic {n}\n\n" + f"Version {v if n % 3 else 0} of {n}. " * 30 + "\n\n" for n in range(v, 260 + v))
        for v in (0, 5, 40)
    ]
    for attempt in range(12):
        shell.write("notes/a.md", versions[attempt % 3])
        process = shell.start(f"{shell.mark}/notes", "--concurrency", "2")
        deadline = time.monotonic() + 0.5 + 0.15 * attempt
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for wanted in (versions[2], versions[0]):
        shell.write("notes/a.md", wanted)
        shell.ingest(f"{shell.mark}/notes")
        assert "\n\n".join(texts(shell, path)) == "\n\n".join(
            block.strip() for block in wanted.split("\n\n") if block.strip()
        )
    assert counts(shell.ingest(f"{shell.mark}/notes", "--recheck")[0]) == {"skipped": 260}


@pytest.mark.slow
def test_runs_of_different_texts_at_once_end_with_one_of_them(shell: Shell) -> None:
    path = f"{shell.mark}/notes/a.md"
    for version in range(4):
        shell.write("notes/a.md", "".join(f"# T{n}\n\nVersion {version} of {n}.\n\n" for n in range(60)))
        first = shell.start(f"{shell.mark}/notes")
        time.sleep(0.1 * version)
        shell.write("notes/a.md", "".join(f"# T{n}\n\nAnother {version} of {n}.\n\n" for n in range(40)))
        second = shell.start(f"{shell.mark}/notes")
        said = [process.communicate(timeout=120)[1] for process in (first, second)]
        assert [first.returncode, second.returncode] == [0, 0], said
        shell.ingest(f"{shell.mark}/notes")
        assert len(texts(shell, path)) == 40
        assert all(f"Another {version}" in text for text in texts(shell, path))
