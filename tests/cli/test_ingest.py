"""`memoryctl ingest` against the running product: idempotent, resumable, and honest about what it could not read."""

from __future__ import annotations

import hashlib
import itertools
import json
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ingesting import Product, Shell, lines


@pytest.fixture
def shell(product: Product, tmp_path: Path) -> Iterator[Shell]:
    made = Shell(product, tmp_path)
    yield made
    made.memory.close()


def until_nodes(shell: Shell, path: str, process: subprocess.Popen[str], count: int = 100) -> None:
    """Wait until that many nodes of a file are there, and leave the run stopped: however busy the machine, it is not over yet.

    It stands still during each look, and goes on only between two.
    """
    deadline = time.monotonic() + 120
    while True:
        process.send_signal(signal.SIGSTOP)
        assert process.poll() is None
        if len(list(itertools.islice(shell.memory.list({"metadata.source.path": path}), count))) >= count:
            break
        process.send_signal(signal.SIGCONT)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_json_lines_become_nodes_with_all_fields(shell: Shell) -> None:
    path = shell.write(
        "turns.jsonl", lines({"speaker": "Ann", "text": "Hi!", "n": 1}, {"speaker": "Bo", "text": "Hello."})
    )
    summary, _ = shell.ingest(path, "--content", "{speaker}: {text}", "--owner", "ann")
    assert summary["seconds"] > 0
    assert {k: v for k, v in summary.items() if k != "seconds"} == {
        "created": 2,
        "changed": 0,
        "removed": 0,
        "skipped": 0,
        "renamed": 0,
        "held": 0,
        "failed": 0,
        "artifacts": 1,
    }
    first, second = shell.nodes(path)
    assert (first["content"], second["content"]) == ("Ann: Hi!", "Bo: Hello.")
    assert first["owner"] == "ann"
    source = first["metadata"].pop("source")
    assert first["metadata"] == {"speaker": "Ann", "text": "Hi!", "n": 1}
    assert (source["path"], source["line"], source["passages"]) == (path, 1, 2)
    assert second["metadata"]["source"] == {"path": path, "line": 2, "fields": ["speaker", "text"]}
    assert first["embeddingId"].startswith("ingest:")


def test_a_long_record_is_a_thread_of_its_pieces_and_a_chat_has_the_time_zone_that_is_named(shell: Shell) -> None:
    story = "我今天早上在公园里看到一只很大的白鹭站在水边。" * 30
    path = shell.write("records.jsonl", lines({"text": story, "who": "Ann"}, {"text": "short", "who": "Bo"}))
    chat = shell.write("chat.txt", "2024-07-01, 09:05 - Ann: Hi\n2024-07-01, 09:06 - Bo: Ho\n")
    said = shell.ingest(path, chat, "--time-zone", "America/New_York")[1]
    assert "time zone" not in said
    assert [node["occurredAt"][:16] for node in shell.nodes(chat)] == ["2024-07-01T13:05", "2024-07-01T13:06"]
    *pieces, last = shell.nodes(path)
    assert (len(pieces), last["content"], last.get("thread")) == (3, "short", None)
    assert [node["thread"] for node in pieces] == [f"{path}#1"] * 3
    assert "".join(node["content"] for node in sorted(pieces, key=lambda node: node["position"])) == story
    assert shell.ingest(path, chat, "--time-zone", "America/New_York")[0]["skipped"] == 6
    assert f"{time.tzname[0]}) in {chat}; --time-zone" in shell.ingest(chat)[1]


def test_two_equal_turns_are_two_nodes(shell: Shell) -> None:
    path = shell.write("turns.jsonl", lines(*[{"speaker": "Ann", "text": "Thanks!"}] * 2))
    assert shell.ingest(path)[0]["created"] == 2
    assert [node["metadata"]["source"]["line"] for node in shell.nodes(path)] == [1, 2]


def test_a_second_run_writes_nothing(shell: Shell) -> None:
    turns = shell.write("turns.jsonl", lines(*({"text": f"Turn {i}."} for i in range(130))))
    shell.write("docs/a.md", "# Guide\n\nRead me.\n\n## More\n\nAnd me.\n")
    shell.write("docs/deep/b.txt", "Plain text.\n")
    arguments = (turns, f"{shell.mark}/docs", "--concurrency", "8")
    first, _ = shell.ingest(*arguments)
    assert (first["created"], first["artifacts"]) == (133, 1)

    def written() -> list[tuple[Any, ...]]:  # the index may still be at work, which is no write of ours
        return [(node["memoryNodeId"], node["version"], node["audit"]) for node in shell.nodes(turns)]

    before = written()
    again, _ = shell.ingest(*arguments)
    assert (again["created"], again["skipped"], again["failed"], again["artifacts"]) == (0, 133, 0, 0)
    assert written() == before


def test_a_folder_named_in_another_way_is_the_same_folder(shell: Shell) -> None:
    shell.write("docs/a.md", "Some text.\n")
    assert shell.ingest(f"{shell.mark}/docs")[0]["created"] == 1
    assert shell.ingest(f"./{shell.mark}/docs/")[0]["skipped"] == 1


def test_only_what_is_new_is_written(shell: Shell) -> None:
    path = shell.write("turns.jsonl", lines({"text": "one"}))
    shell.ingest(path)
    shell.write("turns.jsonl", lines({"text": "one"}, {"text": "two"}))
    again, _ = shell.ingest(path)
    assert (again["created"], again["skipped"]) == (1, 1)
    assert again["artifacts"] == 1  # the file has other bytes now


def test_bad_lines_are_reported_and_the_rest_goes_on(shell: Shell) -> None:
    good = json.dumps({"text": "fine"})
    path = shell.write(
        "turns.jsonl",
        "\n".join([good, "{broken", json.dumps({"txt": "no text"}), json.dumps({"text": "x" * 2_200_000}), "[]", good]),
    )
    summary, said = shell.ingest(path, code=1)
    assert (summary["created"], summary["failed"]) == (2, 4)
    for line, problem in ((2, "not JSON"), (3, "no field 'text'"), (4, "longer than"), (5, "object")):
        [report] = [text for text in said.splitlines() if text.startswith(f"{path}:{line}:")]
        assert problem in report
    again, _ = shell.ingest(path, code=1)
    assert (again["created"], again["skipped"], again["failed"]) == (0, 2, 4)


def test_what_the_server_refuses_is_reported_with_its_line(shell: Shell) -> None:
    path = shell.write("turns.jsonl", lines({"text": "fine"}, {"text": "nul \0 here"}, {"text": "fine too"}))
    summary, said = shell.ingest(path, code=1)
    assert (summary["created"], summary["failed"]) == (2, 1)
    assert f"{path}:2: VALIDATION_ERROR" in said


@pytest.mark.slow
def test_an_interrupted_run_is_resumed(shell: Shell) -> None:
    total = 1_200
    path = shell.write("turns.jsonl", lines(*({"text": f"Turn {i} of many."} for i in range(total))))
    process = shell.start(path, "--concurrency", "2", "--json")
    until_nodes(shell, path, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert 0 < json.loads(out)["created"] < total

    rest, _ = shell.ingest(path)
    assert rest["failed"] == 0
    assert rest["created"] + rest["skipped"] == total
    assert rest["skipped"] > 0
    assert len({node["metadata"]["source"]["line"] for node in shell.nodes(path)}) == total
    again, _ = shell.ingest(path)
    assert {k: v for k, v in again.items() if v and k != "seconds"} == {"skipped": total}


@pytest.mark.slow
def test_a_killed_run_is_resumed(shell: Shell) -> None:
    total = 600
    path = shell.write("turns.jsonl", lines(*({"text": f"Turn {i} of some."} for i in range(total))))
    process = shell.start(path, "--concurrency", "4")
    until_nodes(shell, path, process)
    process.kill()
    process.communicate(timeout=60)
    rest, _ = shell.ingest(path)
    assert rest["created"] + rest["skipped"] == total
    assert len(shell.nodes(path)) == total


@pytest.mark.slow
def test_two_runs_at_once_write_everything_once(shell: Shell) -> None:
    path = shell.write("turns.jsonl", lines(*({"text": f"Turn {i}."} for i in range(300))))
    runs = [shell.start(path, "--json") for _ in range(2)]
    summaries = []
    for process in runs:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        summaries.append(json.loads(out))
    assert sum(summary["created"] for summary in summaries) == 300
    assert len(shell.nodes(path)) == 300


def test_markdown_is_cut_at_headings(shell: Shell) -> None:
    shell.write("docs/guide.md", "# Guide\n\nIntro.\n\n## Install\n\n" + "A sentence of the text. " * 100)
    shell.write("docs/.git/secret.md", "hidden")
    shell.write("docs/code.xyz", "of a kind that is not read")
    shell.ingest(f"{shell.mark}/docs")
    nodes = shell.nodes(f"{shell.mark}/docs/guide.md")
    assert [node["metadata"].get("heading") for node in nodes] == ["Guide", *["Install"] * (len(nodes) - 1)]
    assert len(nodes) == 4
    assert all(len(node["content"]) <= 1_000 for node in nodes)
    assert shell.nodes(f"{shell.mark}/docs/.git/secret.md") == []
    assert shell.nodes(f"{shell.mark}/docs/code.xyz") == []


@pytest.mark.parametrize(
    ("name", "data", "content"),
    [
        ("notes.md", b"# Notes\n\nRemember the milk.\n", "# Notes\n\nRemember the milk."),
        ("scan.pdf", b"%PDF-1.7\0" + bytes(range(256)) * 5_000, None),
    ],
    ids=["text", "binary"],
)
def test_a_single_file_is_stored_as_an_artifact_too(
    shell: Shell, tmp_path: Path, name: str, data: bytes, content: str | None
) -> None:
    path = shell.write(name, data)
    summary, _ = shell.ingest(path)
    assert (summary["created"], summary["artifacts"]) == (1, 1)
    [node] = shell.nodes(path)
    assert node["content"] == content
    [artifact] = shell.memory.get(node["memoryNodeId"])["artifacts"]
    assert artifact["sha256"] == hashlib.sha256(data).hexdigest()
    assert artifact["name"] == name
    shell.memory.download(artifact["artifactId"], tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert shell.ingest(path)[0]["artifacts"] == 0


def test_wait_makes_it_searchable(shell: Shell) -> None:
    word = uuid.uuid4().hex
    path = shell.write("turns.jsonl", lines({"text": f"The password of the day is {word}."}, {"text": "Nothing else."}))
    shell.ingest(path, "--wait")
    assert {node["vector"]["status"] for node in shell.nodes(path)} == {"succeeded"}
    found = shell.memory.search(f"password {word}", top_k=1)["results"]
    assert word in found[0]["content"]


def test_the_summary_for_people(shell: Shell) -> None:
    path = shell.write("notes.txt", "One note.")
    out, err = shell.start(path).communicate(timeout=60)
    assert out.startswith("1 created, 0 there already, 0 failed, 1 artifact in ")
    assert err == ""


def test_a_folder_of_many_kinds_is_taken_in_and_what_is_left_out_is_named(shell: Shell) -> None:
    docs = f"{shell.mark}/docs"
    shell.write("docs/page.html", "<html><body><h1>Page</h1><p>About axolotls.</p><script>no()</script></body></html>")
    shell.write("docs/table.csv", "animal,legs\naxolotl,4\n")
    shell.write("docs/code.py", "def walk():\n    return 4\n")
    shell.write(
        "docs/letter.eml", "From: ann@e.example\nSubject: Legs\nDate: Mon, 2 Mar 2026 10:00:00 +0000\n\nFour.\n"
    )
    shell.write("docs/old.md", "Caf\u00e9 noir".encode("cp1252"))
    shell.write("docs/broken.pdf", "no pdf")
    shell.write("docs/.gitignore", "*.tmp.md\n!keep.tmp.md\nbuilt/\n")
    shell.write("docs/empty.md", "")
    shell.write("docs/blank.txt", " \n\n")
    for name in ("a.tmp.md", "keep.tmp.md", "built/b.md", ".hidden/c.md", ".d.md", "e.bin"):
        shell.write(f"docs/{name}", f"The text of {name}.")
    summary, said = shell.ingest(docs, "--encoding", "windows-1252", code=1)
    assert (summary["created"], summary["failed"]) == (6, 1)
    assert "docs/broken.pdf: cannot be read: " in said
    for left_out in (
        "1 files of a kind that is not read (1 .bin)",
        "3 hidden files and folders",
        "2 files and folders that a .gitignore names",
        f"2 files without a text ({docs}/blank.txt, {docs}/empty.md)",
    ):
        assert left_out in said
    (page,), (row,), (code,), (letter,), (old,) = (
        shell.nodes(f"{docs}/{name}") for name in ("page.html", "table.csv", "code.py", "letter.eml", "old.md")
    )
    assert page["content"] == "# Page\n\nAbout axolotls."
    assert (row["content"], row["metadata"]["row"]) == ("animal: axolotl\nlegs: 4", {"animal": "axolotl", "legs": "4"})
    assert (code["metadata"]["code"], code["metadata"]["headings"]) == ("python", ["walk"])
    assert letter["occurredAt"] == "2026-03-02T10:00:00.000000Z"
    assert old["content"] == "Caf\u00e9 noir"
    again, _ = shell.ingest(docs, "--encoding", "windows-1252", code=1)
    assert (again["created"], again["changed"], again["skipped"], again["failed"]) == (0, 0, 6, 1)
    shell.write("docs/table.csv", "animal,legs\nnewt,4\naxolotl,4\n")
    changed, _ = shell.ingest(docs, "--encoding", "windows-1252", code=1)
    assert (changed["created"], changed["changed"], changed["skipped"]) == (1, 0, 6)


@pytest.mark.parametrize("option", [("--encoding", "no-such"), ("--thread", "no field")])
def test_an_option_that_cannot_be_is_refused_before_anything_is_read(shell: Shell, option: tuple[str, str]) -> None:
    path = shell.write("a.jsonl", lines({"text": "x"}))
    process = shell.start(path, *option)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, option[0] in said) == (2, True)
