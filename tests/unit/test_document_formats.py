"""What becomes of files of other formats: their text, where it stood, and never their markup."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pptx import Presentation

from memory_layer.documents import converter, kinds
from memory_layer.documents.chunks import LIMIT, TOKENS, chunk, tokens
from memory_layer.documents.code import chunk_code
from memory_layer.documents.converter import Converter
from memory_layer.documents.folders import LeftOut, find, roots
from memory_layer.documents.markup import BY_SUFFIX
from memory_layer.documents.passages import SOURCE, Bad, Passage, Source
from memory_layer.documents.read import Reading, read
from memory_layer.documents.text import encoding_of, zone_of
from memory_layer.errors import UsageError

BASE64 = "iVBORw0KGgo" * 40


@pytest.fixture(scope="module")
def shared() -> Iterator[Converter]:
    made = Converter()
    yield made
    made.close()


Taken = Callable[..., list[Passage | Bad]]


@pytest.fixture
def taken(tmp_path: Path, shared: Converter) -> Taken:
    def take(name: str, data: bytes | str, **options: Any) -> list[Passage | Bad]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        with path.open("rb") as file:
            return list(read(Source(path, name, named=False), file, Reading(converter=shared, **options)))

    return take


def passages(found: list[Passage | Bad]) -> list[Passage]:
    assert not [one for one in found if isinstance(one, Bad)], found
    return [one for one in found if isinstance(one, Passage)]


def whole(found: list[Passage | Bad]) -> str:
    return "\n\n".join(one.text or "" for one in passages(found))


# --- HTML, DOCX, PDF, PPTX, XLSX


def test_a_page_gives_its_text_and_headings(taken: Taken) -> None:
    page = f"""<!doctype html><html><head><title>Site</title><style>p {{color: red}}</style></head><body>
    <script>var secret = 1;</script><!-- a comment --><h1>Guide</h1><p>Read <a href="https://e.example/x?y=1">the manual</a> &amp; rest.</p>
    <h2>Install</h2><ul><li>one</li><li>two</li></ul><p hidden>unseen</p>
    <table><tr><th>City</th><th>People</th></tr><tr><td>Rome</td><td>2.8</td></tr></table>
    <img alt="a plan" src="data:image/png;base64,{BASE64}"><svg><text>drawn</text></svg></body></html>"""
    found = passages(taken("a.html", page))
    text = whole(list(found))
    for said in ("Read the manual & rest.", "one", "| Rome | 2.8 |", "a plan"):
        assert said in text
    for markup in ("<", "secret", "color", "comment", "unseen", "drawn", "base64", "iVBOR", "https:"):
        assert markup not in text
    assert [one.metadata["headings"] for one in found] == [["Guide"], ["Guide", "Install"]]


@pytest.mark.parametrize("declared", ["windows-1252", "utf-8", "shift_jis"])
def test_a_page_says_how_it_is_encoded(taken: Taken, declared: str) -> None:
    word = "日本" if declared == "shift_jis" else "café"
    page = f'<html><head><meta charset="{declared}"></head><body><p>{word} noir</p></body></html>'.encode(declared)
    assert f"{word} noir" in whole(taken("a.htm", page))


def docx(*paragraphs: tuple[str, str]) -> bytes:
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'
        for style, text in paragraphs
    )
    names = "".join(
        f'<w:style w:type="paragraph" w:styleId="Heading{n}"><w:name w:val="heading {n}"/></w:style>' for n in (1, 2)
    )
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml"
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.'
            f'relationships+xml"/><Default Extension="xml" ContentType="application/xml"/><Override PartName="/word/document.xml" '
            f'ContentType="{main}.document.main+xml"/></Types>',
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type="{office}/officeDocument" Target="word/document.xml"/>'
            "</Relationships>",
        )
        archive.writestr(
            "word/_rels/document.xml.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type="{office}/styles" Target="styles.xml"/></Relationships>',
        )
        archive.writestr("word/styles.xml", f'<w:styles xmlns:w="{word}">{names}</w:styles>')
        archive.writestr("word/document.xml", f'<w:document xmlns:w="{word}"><w:body>{body}</w:body></w:document>')
    return made.getvalue()


def test_a_document_gives_its_text_and_headings(taken: Taken) -> None:
    found = passages(
        taken(
            "a.docx", docx(("Heading1", "Plan"), ("Normal", "We build."), ("Heading2", "Costs"), ("Normal", "Little."))
        )
    )
    assert [(one.text, one.metadata["headings"]) for one in found] == [
        ("# Plan\n\nWe build.", ["Plan"]),
        ("## Costs\n\nLittle.", ["Plan", "Costs"]),
    ]


def pdf(*pages: str) -> bytes:
    """A PDF whose pages each show one line."""
    bodies = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode("latin-1")
        bodies.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        bodies.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R /Resources << /Font << /F1 3 0 R >> >> >>"
            % len(bodies)
        )
        kids.append(b"%d 0 R" % len(bodies))
    bodies[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    made, places = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(bodies, 1):
        places.append(len(made))
        made += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(made)
    made += b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1) + b"".join(b"%010d 00000 n \n" % p for p in places)
    made += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(bodies) + 1, start)
    return bytes(made)


def test_a_pdf_gives_its_pages(taken: Taken) -> None:
    found = passages(taken("a.pdf", pdf("The door code is 1111.", "Second page.")))
    assert [(one.text, one.where) for one in found] == [
        ("The door code is 1111.", {"page": 1}),
        ("Second page.", {"page": 2}),
    ]


def test_slides_give_titles_text_tables_and_notes(taken: Taken) -> None:
    deck = Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "Roadmap"
    slide.placeholders[1].text = "Ship in May"
    slide.notes_slide.notes_text_frame.text = "Ask Bo first"
    cells = slide.shapes.add_table(1, 2, 0, 0, 100, 100).table.rows[0].cells
    cells[0].text, cells[1].text = "cost", "12"
    made = io.BytesIO()
    deck.save(made)
    (found,) = passages(taken("a.pptx", made.getvalue()))
    assert found.text == "# Roadmap\n\nShip in May\n\ncost | 12\n\nAsk Bo first"
    assert (found.where, found.metadata["headings"]) == ({"slide": 1}, ["Roadmap"])


def test_each_row_of_a_workbook_stands_with_its_header(taken: Taken) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "People"
    for row in (["Name", "Born", "Score"], ["Ann", dt.date(1990, 5, 1), 3.0], [None] * 3, ["Bo", None, 2.5]):
        sheet.append(row)
    book.create_sheet("Empty")
    made = io.BytesIO()
    book.save(made)
    found = passages(taken("a.xlsx", made.getvalue()))
    assert [(one.text, one.line, one.where) for one in found] == [
        ("Name: Ann\nBorn: 1990-05-01\nScore: 3", 2, {"sheet": "People"}),
        ("Name: Bo\nScore: 2.5", 4, {"sheet": "People"}),
    ]


def test_what_cannot_be_read_is_said_and_the_next_file_is_read(taken: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.pdf", "a.docx", "a.pptx", "a.xlsx"):
        for data in (b"", b"no such format", b"PK\x03\x04 broken", pdf("x")[:200] if name == "a.pdf" else docx()[:300]):
            (bad,) = taken(name, data)
            assert isinstance(bad, Bad), (name, data)
            assert ("cannot be read" in bad.problem or "no text" in bad.problem, "Traceback" in bad.problem) == (
                True,
                False,
            )
    assert isinstance(taken("scan.pdf", pdf(""))[0], Bad)
    monkeypatch.setattr(converter, "_WITHIN", 0.05)
    deep = "<div>" * 300_000 + "deep"
    found = taken("a.html", deep)
    assert len(found) == 1
    monkeypatch.undo()
    assert whole(taken("b.html", "<p>fine</p>")) == "fine"


def test_a_file_that_takes_too_long_ends_its_reader_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named pipe with nobody at its other end: its reader waits for ever."""
    monkeypatch.setattr(converter, "_WITHIN", 1.0)
    os.mkfifo(tmp_path / "a.html")
    one = Converter()
    try:
        (bad,) = one.convert(tmp_path / "a.html", "a.html")
        assert isinstance(bad, Bad)
        assert "time or memory" in bad.problem
        monkeypatch.undo()
        (tmp_path / "b.html").write_text("<p>fine</p>")
        (fine,) = one.convert(tmp_path / "b.html", "b.html")
        assert isinstance(fine, Passage)
    finally:
        one.close()


def test_a_bomb_costs_its_file_alone(taken: Taken) -> None:
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(docx(("Normal", "x")))) as good,
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as bad,
    ):
        for name in good.namelist():
            if name != "word/document.xml":
                bad.writestr(name, good.read(name))
        with bad.open("word/document.xml", "w", force_zip64=True) as part:
            for _ in range(3500):
                part.write(b" " * 2**20)
    begin = time.monotonic()
    (found,) = taken("bomb.docx", made.getvalue())
    assert isinstance(found, Bad)
    assert time.monotonic() - begin < 120
    laughs = (
        '<!DOCTYPE a [<!ENTITY a "ha">'
        + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 12}">' for n in range(12))
        + "]><w:document xmlns:w='http://schemas.openxmlformats.org/wordprocessingml/2006/main'><w:body>&m;</w:body></w:document>"
    )
    again = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(docx(("Normal", "x")))) as good, zipfile.ZipFile(again, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, laughs if name == "word/document.xml" else good.read(name))
    assert all(isinstance(one, Bad) for one in taken("laughs.docx", again.getvalue()))


def test_without_the_library_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "find_spec", lambda name: None)
    for name in ("a.pdf", "b.pdf", "c.html", "d.md"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UsageError, match=r"\[server,documents\]"):
        roots([tmp_path / "a.pdf"])
    left = LeftOut()
    assert [source.path.name for source in find(roots([tmp_path]), left)] == ["d.md"]
    assert "3 files (2 .pdf, 1 .html) for want of a library" in str(left)
    assert "documents" in str(left)


# --- mail, tables, notebooks, code


def test_a_mail_gives_its_head_and_body_and_names_its_attachments(taken: Taken) -> None:
    mail = (
        "From: =?utf-8?q?Ann_M=C3=BCller?= <ann@e.example>\r\nTo: bo@e.example\r\nSubject: Door\r\nDate: Mon, 2 Mar 2026 10:00:00 +0100\r\n"
        "Message-ID: <2@e.example>\r\nReferences: <1@e.example>\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        "--b\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n<p>The code is <b>1111</b>=\r\n.</p>\r\n"
        f"--b\r\nContent-Type: image/png\r\nContent-Disposition: attachment; filename=plan.png\r\nContent-Transfer-Encoding: base64\r\n\r\n{BASE64}\r\n--b--\r\n"
    )
    (found,) = passages(taken("a.eml", mail))
    assert found.text is not None
    for said in ("From: Ann Müller", "Subject: Door", "1111", "Attachments: plan.png"):
        assert said in found.text
    assert "iVBOR" not in found.text
    assert "<p>" not in found.text
    assert (found.occurred_at, found.thread) == ("2026-03-02T09:00:00Z", "<1@e.example>")
    assert found.metadata["mail"]["subject"] == "Door"


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_each_row_of_a_table_stands_with_its_header(taken: Taken, mark: str) -> None:
    rows = [
        ["name", "city", "name"],
        ["Ann", "Rome", "x"],
        ["", "", ""],
        ["Bo", f'a "b"{mark}x\nc', ""],
        ["Cy", "Bonn", "y", "more"],
    ]
    text = "".join(mark.join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row) + "\r\n" for row in rows)
    found = passages(taken("a.csv", "\ufeff" + text))
    assert [(one.text, one.line) for one in found] == [
        ("name: Ann\ncity: Rome\nname (3): x", 2),
        (f'name: Bo\ncity: a "b"{mark}x\nc', 4),
        ("name: Cy\ncity: Bonn\nname (3): y\ncolumn 4: more", 6),
    ]
    assert found[0].metadata == {"row": {"name": "Ann", "city": "Rome", "name (3)": "x"}}


def test_a_long_row_is_cut_and_a_bad_line_costs_one_row(taken: Taken) -> None:
    found = taken("a.csv", b"id,text\n1," + b"word " * 600 + b"\n2,caf\xe9\n3,fine\n")
    (bad,) = [one for one in found if isinstance(one, Bad)]
    assert bad.line == 3
    rows = [one for one in found if isinstance(one, Passage)]
    assert all(len(one.text or "") <= LIMIT and "text: " in (one.text or "") for one in rows)
    assert rows[-1].text == "id: 3\ntext: fine"


def test_a_notebook_gives_text_and_code_and_no_pictures(taken: Taken) -> None:
    book = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Study\n", "\n", f"Why. ![p](data:image/png;base64,{BASE64})"]},
            {
                "cell_type": "code",
                "source": "print(1 + 1)",
                "outputs": [
                    {"output_type": "stream", "text": ["2\n"]},
                    {
                        "output_type": "display_data",
                        "data": {"image/png": BASE64, "text/html": "<b>x</b>", "text/plain": ["<Figure>"]},
                    },
                ],
            },
        ],
        "metadata": {"kernelspec": {"language": "python"}},
        "nbformat": 4,
    }
    (found,) = passages(taken("a.ipynb", json.dumps(book)))
    assert found.text == "# Study\n\nWhy. ![p]()\n\n```python\nprint(1 + 1)\n```\n\n```\n2\n\n<Figure>\n```"
    assert (found.where, found.metadata["headings"]) == ({"cell": 1}, ["Study"])
    for data in ("", "[]", "{}", '{"cells": 3}', '{"cells": [3]}', "[" * 100_000):
        assert isinstance(taken("b.ipynb", data)[0], Bad)


def test_bytes_in_a_text_are_no_memory(taken: Taken) -> None:
    (found,) = passages(taken("a.md", f"Plan ![x](data:image/png;base64,{BASE64}) ends."))
    assert found.text == "Plan ![x]() ends."


JAVA = (
    "class Foo {\n" + "".join(f"    void run{n}() {{\n        {'call();' * 60}\n    }}\n\n" for n in range(3)) + "}\n"
)
CODE = {
    "a.py": (
        "import x\n\n\nclass Foo:\n    '''Doc.'''\n\n"
        + "".join(f"    @deco\n    def run{n}(self):\n        {'y = 1; ' * 60}\n\n" for n in range(3)),
        [["Foo", "run0"], ["Foo", "run1"], ["Foo", "run2"]],
    ),
    "a.java": (JAVA, [["Foo", "run0"], ["Foo", "run1"], ["Foo", "run2"]]),
    "a.go": (
        "package p\n\n"
        + "".join(f"// F{n} does.\nfunc (s *T) F{n}() {{\n\t{'call(); ' * 60}\n}}\n\n" for n in range(2)),
        [["F0"], ["F1"]],
    ),
    "a.rs": ("".join(f"pub fn f{n}() -> u8 {{\n    {'call(); ' * 60}\n}}\n\n" for n in range(2)), [["f0"], ["f1"]]),
    "a.ts": (
        "".join(f"export const f{n} = async (a: string) => {{\n  {'call(); ' * 60}\n}}\n\n" for n in range(2)),
        [["f0"], ["f1"]],
    ),
    "a.sql": (
        "".join(f"CREATE TABLE IF NOT EXISTS t{n} (\n    {'a int, ' * 60}\n);\n\n" for n in range(2)),
        [["t0"], ["t1"]],
    ),
}


@pytest.mark.parametrize("name", CODE)
def test_code_is_cut_at_its_definitions(taken: Taken, name: str) -> None:
    source, names = CODE[name]
    found = passages(taken(name, source))
    shown = [one.metadata.get("headings") for one in found if one.metadata.get("headings")]
    assert [one for n, one in enumerate(shown) if one not in shown[:n]][-len(names) :] == names
    for one in found:
        assert (one.text or "").count("@deco") == (one.text or "").count("@deco\n    def run"), (
            "a decorator stays with its definition"
        )


LINES = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=50),
        st.sampled_from(
            [
                "",
                "def f():",
                "    x = 1",
                "class A:",
                "}",
                "        deep",
                "\tif a {",
                "// note",
                "@x",
                "end",
                "y" * 150,
            ]
        ),
    ),
    max_size=60,
)


@given(LINES, st.integers(20, 200))
def test_no_line_of_code_is_lost(lines: list[str], limit: int) -> None:
    pieces = list(chunk_code(enumerate(lines, 1), limit=limit))
    assert "".join("".join(piece.text for piece in pieces).split()) == "".join("".join(lines).split())
    assert all(0 < len(piece.text) <= limit for piece in pieces)
    places = [(piece.line, piece.part) for piece in pieces]
    assert places == sorted(set(places))


# --- conversations


def test_a_chatgpt_export_gives_the_branch_that_was_seen_last(taken: Taken) -> None:
    def node(key: str, parent: str | None, role: str, text: Any, **more: Any) -> dict[str, Any]:
        message = {
            "author": {"role": role},
            "create_time": 1767225600.5,
            "content": {"content_type": "text", "parts": [text]},
            **more,
        }
        return {"id": key, "parent": parent, "children": [], "message": message}

    export = [
        {
            "id": "c1",
            "title": "Trip",
            "current_node": "d",
            "mapping": {
                "a": {"id": "a", "parent": None, "children": ["b"], "message": None},
                "b": node("b", "a", "user", "Where to?"),
                "c": node("c", "b", "assistant", "Rome (first answer)"),
                "d": node("d", "b", "assistant", {"content_type": "image_asset_pointer", "text": "Oslo"}),
                "s": node("s", "a", "system", "hidden"),
            },
        },
        {"mapping": 3},
    ]
    found = taken("conversations.json", json.dumps(export))
    messages = [one for one in found if isinstance(one, Passage)]
    assert [one.text for one in messages] == ["user: Where to?", "assistant: Oslo"]
    assert messages[0].metadata == {"app": "chatgpt", "speaker": "user", "conversation": "Trip"}
    assert (messages[0].occurred_at, messages[0].thread) == ("2026-01-01T00:00:00.500000Z", "conversations.json#c1")
    assert [one.problem[:7] for one in found if isinstance(one, Bad)] == ["entry 2"]


def test_a_claude_export(taken: Taken) -> None:
    export = [
        {
            "uuid": "u1",
            "name": "Trip",
            "chat_messages": [
                {"sender": "human", "text": "Where?", "created_at": "2026-01-01T10:00:00.000000Z"},
                {
                    "sender": "assistant",
                    "text": "",
                    "created_at": "2026-01-01T10:00:05Z",
                    "content": [{"type": "text", "text": "Rome"}],
                },
            ],
        }
    ]
    found = passages(taken("conversations.json", json.dumps(export)))
    assert [(one.text, one.occurred_at, one.thread) for one in found] == [
        ("human: Where?", "2026-01-01T10:00:00Z", "conversations.json#u1"),
        ("assistant: Rome", "2026-01-01T10:00:05Z", "conversations.json#u1"),
    ]


def test_a_slack_export_names_people_and_threads(taken: Taken, tmp_path: Path) -> None:
    (tmp_path / "users.json").write_text(json.dumps([{"id": "U1", "real_name": "Ann"}, {"id": "U2", "name": "bo"}]))
    day = [
        {
            "type": "message",
            "user": "U1",
            "ts": "1767225600.000100",
            "text": "Hi <@U2>, see <https://e.example|the page> &amp; go",
            "thread_ts": "9.1",
        },
        {"type": "message", "user": "U2", "ts": "1767225601.0", "text": "ok"},
        {"type": "message", "subtype": "channel_join", "user": "U2", "ts": "1767225602.0", "text": ""},
    ]
    found = passages(taken("general/2026-01-01.json", json.dumps(day)))
    assert [(one.text, one.metadata["speaker"], one.thread) for one in found] == [
        ("Ann: Hi @bo, see the page & go", "Ann", "general#general/9.1"),
        ("bo: ok", "bo", "general#general"),
    ]
    (tmp_path / "general/other.json").write_text('{"name": "no chat"}')
    left = LeftOut()
    names = {source.path.name for source in find(roots([tmp_path]), left)}
    assert (names, left.kinds) == ({"2026-01-01.json"}, {".json": 2})


@pytest.mark.parametrize(
    ("lines", "times"),
    [
        (
            ["[31.12.23, 22:15:32] Ann: Hi", "and more", "[01.01.24, 00:01:00] Bo: Ho"],
            ["2023-12-31T22:15:32", "2024-01-01T00:01:00"],
        ),
        (
            ["12/31/23, 10:15\u202fPM - Ann: Hi", "and more", "1/1/24, 12:01\u202fAM - Bo: Ho"],
            ["2023-12-31T22:15:00", "2024-01-01T00:01:00"],
        ),
        (
            ["\u200e[2/1/24, 9:05:00 AM] Ann: Hi", "and more", "[2/1/24, 9:06:00 AM] Bo: Ho"],
            ["2024-02-01T09:05:00", "2024-02-01T09:06:00"],
        ),
        (
            ["01/02/2024, 09:05 - Ann: Hi", "and more", "13/02/2024, 09:06 - Bo: Ho"],
            ["2024-02-01T09:05:00", "2024-02-13T09:06:00"],
        ),
        (
            ["2024-02-01, 09:05 - Ann: Hi", "and more", "2024-02-01, 09:06 - Bo: Ho"],
            ["2024-02-01T09:05:00", "2024-02-01T09:06:00"],
        ),
    ],
)
def test_a_whatsapp_export(taken: Taken, lines: list[str], times: list[str]) -> None:
    found = passages(taken("_chat.txt", "\n".join(lines)))
    assert [one.text for one in found] == ["Ann: Hi\nand more", "Bo: Ho"]
    assert [one.metadata["speaker"] for one in found] == ["Ann", "Bo"]
    local = [dt.datetime.fromisoformat(one.occurred_at or "").astimezone().replace(tzinfo=None) for one in found]
    assert [one.isoformat() for one in local] == times
    assert {one.thread for one in found} == {SOURCE}


@pytest.mark.parametrize(
    ("zone", "at"),
    [
        ("America/New_York", "2024-07-01T13:05:00Z"),
        ("Asia/Kolkata", "2024-07-01T03:35:00Z"),
        ("UTC", "2024-07-01T09:05:00Z"),
    ],
)
def test_the_time_zone_of_a_chat_is_the_one_that_is_named(taken: Taken, zone: str, at: str) -> None:
    lines = "2024-07-01, 09:05 - Ann: Hi\n2024-07-01, 09:06 - Bo: Ho"
    noted: set[str] = set()
    assert passages(taken("_chat.txt", lines, zone=zone_of(zone), noted=noted))[0].occurred_at == at
    assert noted == set()
    taken("_chat.txt", lines, noted=noted)
    assert noted == {"_chat.txt"}
    assert Reading(zone=zone_of(zone)).version != Reading().version


@pytest.mark.parametrize("name", ["Europe/Nowhere", "", "../etc/passwd", "/etc/localtime", "a\0b", "Europe"])
def test_what_is_no_time_zone_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no time zone that is known here"):
        zone_of(name)


# --- what a model reads whole

STORY = "我今天早上在公园里看到一只很大的白鹭站在水边。" * 60  # 1,380 characters and as many tokens
SAID = "The committee postponed the vote until all regional offices had replied. " * 60


@pytest.mark.parametrize("story", [STORY, SAID], ids=["Chinese", "English"])
def test_long_rows_messages_and_records_are_cut_as_text_is(taken: Taken, story: str) -> None:
    chat = [{"uuid": "c", "name": "Talk", "chat_messages": [{"sender": "human", "text": story, "created_at": None}]}]
    csv = f"who,note,more\nAnn,{story},{story[:700]}\nBo,short,\n"
    for name, data, prefix in (
        ("a.csv", csv, ("who: ", "note: ", "more: ")),
        ("a.json", json.dumps(chat), ("human: ",)),
        ("a.jsonl", json.dumps({"text": story, "who": "Ann"}) + '\n{"text": "short"}\n', ("",)),
    ):
        found = passages(taken(name, data))
        assert len(found) > 3, name
        assert all(len(one.text or "") <= LIMIT and tokens(one.text or "") <= TOKENS for one in found), name
        assert all(line.startswith(prefix) for one in found for line in (one.text or "").split("\n")), name
        # Nothing is lost, and the pieces are neighbours.
        said = "".join((one.text or "") for one in found)
        for mark in (*prefix, "\n"):
            said = said.replace(mark, "") if mark else said
        assert story.replace(" ", "") in said.replace(" ", ""), name
        long = found[:-1] if name != "a.json" else found
        assert len({one.thread for one in long}) == 1, name
        assert long[0].thread is not None, name
    # What a record says of itself is whole in its first passage, and without long texts in the others.
    first, second, *_ = passages(taken("a.jsonl", json.dumps({"text": story, "who": "Ann"}) + "\n"))
    assert (first.metadata, second.metadata) == ({"text": story, "who": "Ann"}, {"who": "Ann"})
    first, second, *_ = passages(taken("a.csv", csv))
    assert (first.metadata["row"]["who"], second.metadata["row"]) == ("Ann", {"who": "Ann"})


# --- headings

RST = """
=====
Guide
=====

Intro.

Install
=======

On Linux
--------

Run it::

    Not a heading
    -------------

======  =====
table   cell
======  =====

-----

Use
===

Text.
"""
ORG = """#+TITLE: x
* Guide
Intro.
** TODO [#A] Install :setup:work:
*** On Linux
Run it.
*bold* is no heading
** Use
Text.
"""
ADOC = """= Guide

Intro.

== Install

=== On Linux

----
== Not a heading
----

Run it.

Use
---

Text.
"""


@pytest.mark.parametrize(("name", "text"), [("a.rst", RST), ("a.org", ORG), ("a.adoc", ADOC)])
def test_headings_of_other_markup_are_a_path(taken: Taken, name: str, text: str) -> None:
    found = passages(taken(name, text))
    paths = [one.metadata.get("headings") for one in found]
    install = "Install"
    assert [path for path in paths if path] == [
        ["Guide"],
        ["Guide", install, "On Linux"],
        ["Guide", "Use"],
    ]
    (run,) = [one for one in found if one.metadata.get("heading") == "On Linux"]
    assert "Run it" in (run.text or "")
    assert "Not a heading" in (run.text or "") or name == "a.org"


@given(st.text(alphabet="ab*= -~#\n:.`+_", max_size=200), st.sampled_from([".rst", ".org", ".adoc", ".md"]))
def test_no_markup_loses_a_character(text: str, suffix: str) -> None:
    pieces = [one.text for one in chunk(enumerate(text.split("\n"), 1), markup=BY_SUFFIX[suffix], limit=50)]
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_a_text_with_a_date_is_no_chat(taken: Taken) -> None:
    (found,) = passages(taken("notes.txt", "1/2/24, 10:00 - met Ann\n\nand wrote this: a note"))
    assert found.metadata == {}


# --- encodings


@pytest.mark.parametrize(
    ("name", "encoding", "text"),
    [
        ("a.md", "windows-1252", "# Café\n\n“Zürich” – 5 €"),
        ("a.txt", "shift_jis", "日本語の本文\n二行目"),
        ("a.txt", "utf-16-le", "café\nnoir"),
        ("a.unknown", "cp1251", "Привет, мир\nвторая строка"),
        ("a.py", "latin-1", "x = 'café'"),
    ],
)
def test_a_text_in_another_encoding(taken: Taken, name: str, encoding: str, text: str) -> None:
    codec = encoding_of(encoding)
    assert whole(taken(name, text.encode(encoding), encoding=codec)) == text
    assert whole(taken(name, text, encoding=codec)) == text, "one that is UTF-8 is read as such"
    (record,) = passages(
        taken("a.jsonl", json.dumps({"text": "café"}, ensure_ascii=False).encode("cp1252"), encoding="cp1252")
    )
    assert record.text == "café"


@pytest.mark.parametrize("name", ["", "no-such", "base64", "rot13", "zlib", "undefined", "\0"])
def test_an_encoding_that_is_none(name: str) -> None:
    with pytest.raises(UsageError, match="--encoding"):
        encoding_of(name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.binary(max_size=300), st.sampled_from(["a.csv", "a.ipynb", "a.json", "a.py", "a.txt", "a.md", "a.jsonl"]))
def test_no_bytes_break_a_reader(taken: Taken, data: bytes, name: str) -> None:
    for encoding in (None, "cp1252", "utf-7", "utf-16-le"):
        assert all(isinstance(one, (Passage, Bad)) for one in taken(name, data, encoding=encoding))
