"""Files of other formats into text, in a process of its own: ``python -m memory_layer.documents.convert``.

What comes from anywhere is parsed here, within limits of time and memory, and a parser that fails takes nothing along. A request is a line
with kind and path as JSON; the answer is a line for each part, ``{"markdown", ...}`` or ``{"cells", ...}`` with what it says of its place, and
a last one, ``{"end": true}`` or ``{"error": "..."}``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import email
import email.policy
import email.utils
import json
import sys
import warnings
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Final

SECONDS: Final = 60  # of the processor's, for one file
_MEMORY: Final = 3 * 2**30  # bytes
_TEXT: Final = 64 * 2**20  # characters that one file may give
_NOT_SHOWN: Final = (
    "script", "style", "template", "svg", "canvas", "iframe", "object", "embed", "noscript", "head", "input", "button", "select", "textarea",
    "audio", "video", "math",
)  # fmt: skip

Part = dict[str, Any]


def main() -> int:
    """Answer requests until there are no more."""
    warnings.simplefilter("ignore")
    out = sys.stdout
    sys.stdout = sys.stderr  # what a parser prints is no answer
    for line in sys.stdin:
        kind, path = json.loads(line)
        _limit()
        try:
            left = _TEXT
            for part in _READERS[kind](Path(path)):
                said = json.dumps(part)
                left -= len(said)
                if left < 0:
                    raise ValueError(f"it has more than {_TEXT >> 20} MB of text; split it")
                out.write(said + "\n")
            answer: Part = {"end": True}
        except ImportError as error:
            answer = {"error": f"needs {error.name}, which is not installed", "lacks": True}
        except MemoryError:
            answer = {"error": "it needs more memory than one file may take"}
        except Exception as error:  # noqa: BLE001 - whatever a parser raises is said of the file
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")}
        out.write(json.dumps(answer) + "\n")
        out.flush()
    return 0


def _limit() -> None:
    """From here on, so much more of the processor's time; memory in all."""
    with contextlib.suppress(
        ImportError, ValueError, OSError
    ):  # where the system has no such limits, the caller's clock is left
        import resource

        spent = resource.getrusage(resource.RUSAGE_SELF)
        now = int(spent.ru_utime + spent.ru_stime)
        resource.setrlimit(resource.RLIMIT_CPU, (now + SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _html(path: Path) -> Iterator[Part]:
    yield {"markdown": _markdown(path.read_bytes())}


def _markdown(page: bytes | str) -> str:
    """The text of a page, with its headings, lists and tables."""
    from bs4 import BeautifulSoup, Comment
    from markdownify import MarkdownConverter

    soup = BeautifulSoup(page, "html.parser")
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    for tag in soup(list(_NOT_SHOWN)):
        tag.decompose()
    for comment in soup.find_all(string=lambda text: isinstance(text, Comment)):
        comment.extract()
    for tag in soup.find_all(hidden=True):
        tag.decompose()
    for image in soup.find_all("img"):
        image.replace_with(str(image.get("alt") or ""))
    headed = soup.find("h1") is not None
    try:
        converter = MarkdownConverter(
            heading_style="ATX", strip=["a"], escape_asterisks=False, escape_underscores=False, escape_misc=False
        )
        text = str(converter.convert_soup(soup))
    except RecursionError:  # tags inside one another by the thousand
        text = soup.get_text("\n")
    return f"# {title}\n\n{text}" if title and not headed else text


def _docx(path: Path) -> Iterator[Part]:
    import mammoth

    with path.open("rb") as file:
        yield {"markdown": _markdown(mammoth.convert_to_html(file, convert_image=_no_image).value)}


def _no_image(_: object) -> list[object]:
    return []


def _pdf(path: Path) -> Iterator[Part]:
    from pypdf import PdfReader

    with path.open("rb") as file:
        reader = PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError("it is encrypted with a password")
        for number, page in enumerate(reader.pages, 1):
            text = page.extract_text().encode("utf-8", "replace").decode()
            if text.strip():
                yield {"text": text, "page": number}


def _pptx(path: Path) -> Iterator[Part]:
    from pptx import Presentation

    for number, slide in enumerate(Presentation(str(path)).slides, 1):
        title = slide.shapes.title
        name = title.text_frame.text.strip() if title is not None else ""
        parts = [f"# {' '.join(name.split())}"] if name else []
        for shape in _shapes(slide.shapes):
            if title is not None and shape.shape_id == title.shape_id:
                continue
            if shape.has_text_frame and shape.text_frame.text.strip():
                parts.append(shape.text_frame.text.replace("\v", "\n"))
            elif getattr(shape, "has_table", False) and shape.has_table:
                parts += [" | ".join(cell.text for cell in row.cells) for row in shape.table.rows]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            parts.append(slide.notes_slide.notes_text_frame.text)
        if any(part.strip() for part in parts):
            yield {"markdown": "\n\n".join(parts), "slide": number}


def _shapes(shapes: Any) -> Iterator[Any]:
    waiting = list(shapes)[::-1]
    while waiting:
        shape = waiting.pop()
        if hasattr(shape, "shapes"):  # a group
            waiting += list(shape.shapes)[::-1]
        else:
            yield shape


def _xlsx(path: Path) -> Iterator[Part]:
    from openpyxl import load_workbook

    book = load_workbook(path, read_only=True, data_only=True, keep_links=False)
    for sheet in book.worksheets:
        for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
            cells = [_cell(value) for value in row]
            if any(cells):
                yield {"cells": cells, "sheet": sheet.title, "line": number}


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, dt.datetime):
        return value.date().isoformat() if value.time() == dt.time() else value.isoformat(" ", "seconds")
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def _eml(path: Path) -> Iterator[Part]:
    with path.open("rb") as file:
        mail = email.message_from_binary_file(file, policy=email.policy.default)
    if not isinstance(mail, EmailMessage) or not (mail["from"] or mail["subject"] or mail["date"]):
        raise ValueError("it is no mail: it has none of From, Subject and Date")
    said = {name: str(mail[name] or "").strip() for name in ("From", "To", "Cc", "Date", "Subject")}
    head = "\n".join(f"{name}: {value}" for name, value in said.items() if value)
    body = mail.get_body(("plain", "html"))
    text = "" if body is None else _body(body)
    names = [name for part in mail.iter_attachments() if (name := part.get_filename())]
    files = f"\n\nAttachments: {', '.join(names)}" if names else ""
    about = {name.lower(): value for name, value in said.items() if value} | ({"attachments": names} if names else {})
    if mail["message-id"]:
        about["messageId"] = str(mail["message-id"]).strip()
    thread = str(mail["references"] or mail["in-reply-to"] or mail["message-id"] or "").split()
    yield {
        "text": f"{head}\n\n{text}{files}",
        "mail": about,
        "at": _sent(said["Date"]),
        "thread": thread[0][:400] if thread else None,
    }


def _body(part: Any) -> str:
    try:
        text = str(part.get_content())
    except (LookupError, UnicodeError):  # an unknown charset
        text = (part.get_payload(decode=True) or b"").decode("utf-8", "replace")
    return _markdown(text) if part.get_content_subtype() == "html" else text


def _sent(date: str) -> str | None:
    try:
        return email.utils.parsedate_to_datetime(date).astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, TypeError, OverflowError):
        return None


_READERS: Final = {
    ".docx": _docx,
    ".eml": _eml,
    ".htm": _html,
    ".html": _html,
    ".pdf": _pdf,
    ".pptx": _pptx,
    ".xhtml": _html,
    ".xlsm": _xlsx,
    ".xlsx": _xlsx,
}

if __name__ == "__main__":
    sys.exit(main())
