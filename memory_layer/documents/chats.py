"""Exports of conversations (ChatGPT, Claude, Slack, WhatsApp): a passage a message, with its speaker, its time and its thread."""

from __future__ import annotations

import datetime as dt
import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from memory_layer.documents.chunks import LIMIT, TOKENS, chunk, tokens
from memory_layer.documents.markup import MARKDOWN
from memory_layer.documents.passages import SOURCE, Bad, Passage

_LOOKED_AT: Final = 256 * 1024  # bytes by which an export is known
_USERS: Final = 64 * 1024 * 1024  # bytes of Slack's list of users


@dataclass(frozen=True, slots=True)
class _Message:
    conversation: str  # its id within the file
    title: str
    speaker: str
    at: dt.datetime | None
    text: str
    line: int = 1


def is_chat(path: Path) -> bool:
    """Whether a .json file looks like an export of conversations."""
    try:
        with path.open("rb") as file:
            head = file.read(_LOOKED_AT)
    except OSError:
        return False
    if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"[", b"{")):
        return False
    return any(all(f'"{word}"'.encode() in head for word in words) for words in _WORDS)


_WORDS: Final = (
    ("mapping", "author", "parts"),  # ChatGPT
    ("chat_messages", "sender"),  # Claude
    ("type", "ts", "user", "text"),  # Slack
)


def conversations(data: bytes, path: Path, name: str) -> Iterator[Passage | Bad]:
    """The messages of an export as JSON."""
    try:
        found = json.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        yield Bad(name, 0, f"is not JSON ({error})")
        return
    records = found if isinstance(found, list) else [found]
    users: dict[str, str] | None = None
    passages = 0
    for place, record in enumerate(records, 1):
        try:
            if "mapping" in record:
                app, messages = "chatgpt", list(_chatgpt(record))
            elif "chat_messages" in record:
                app, messages = "claude", list(_claude(record))
            else:
                users = _slack_users(path) if users is None else users
                app, messages = "slack", list(_slack(record, path.parent.name, users))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            yield Bad(name, place, f"entry {place} is not as an export has it ({type(error).__name__}: {error})")
            continue
        for message in messages:
            for passage in _passages(message, app, name, passages):
                passages = passage.line
                yield passage


def _passages(message: _Message, app: str, name: str, last: int) -> Iterator[Passage]:
    """``last``: the place of the message before; an export as JSON has no lines that mean anything."""
    about = {"app": app, "speaker": message.speaker, "conversation": message.title}
    metadata = {key: value for key, value in about.items() if value}
    at = None if message.at is None else message.at.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    said = f"{message.speaker}: " if message.speaker else ""
    room = max(LIMIT - len(said), LIMIT // 2)
    most = max(TOKENS - tokens(said), TOKENS // 2)
    for piece in chunk(enumerate(message.text.splitlines(), 1), markup=MARKDOWN, limit=room, most=most):
        last += 1
        yield Passage(
            said + piece.text,
            last,
            metadata,
            fields=tuple(sorted(metadata)),
            occurred_at=at,
            # A channel of Slack is a folder with a file for each day.
            thread=f"{name.rpartition('/')[0] if app == 'slack' else name}#{message.conversation}"
            if message.conversation
            else SOURCE,
            by_time=app == "slack",
        )


def _chatgpt(record: dict[str, Any]) -> Iterator[_Message]:
    """The branch that the reader saw last: from the current node up to the root."""
    mapping, chain = record["mapping"], []
    at = record.get("current_node")
    if at not in mapping:
        at = next((key for key in reversed(mapping) if not mapping[key].get("children")), None)
    seen = set()
    while at in mapping and at not in seen:
        seen.add(at)
        chain.append(mapping[at])
        at = mapping[at].get("parent")
    for node in reversed(chain):
        message = node.get("message")
        content = (message or {}).get("content") or {}
        hidden = (message or {}).get("metadata") or {}
        if not message or message["author"]["role"] == "system" or hidden.get("is_visually_hidden_from_conversation"):
            continue
        parts = content.get("parts") or [content.get("text") or ""]
        text = "\n\n".join(part if isinstance(part, str) else _spoken(part) for part in parts).strip()
        if text:
            speaker = message["author"].get("name") or message["author"]["role"]
            yield _Message(
                _id(record, "id", "conversation_id"),
                record.get("title") or "",
                speaker,
                _seconds(message.get("create_time")),
                text,
            )


def _spoken(part: Any) -> str:
    """What was said, where a part is no text: never a picture's pointer."""
    return str(part.get("text") or "") if isinstance(part, dict) else ""


def _claude(record: dict[str, Any]) -> Iterator[_Message]:
    for message in record["chat_messages"]:
        parts = [
            part["text"] for part in message.get("content") or [] if part.get("type") == "text" and part.get("text")
        ]
        text = "\n\n".join(parts) or message.get("text") or ""
        if text.strip():
            moment = message.get("created_at")
            at = dt.datetime.fromisoformat(moment) if moment else None
            yield _Message(_id(record, "uuid"), record.get("name") or "", message["sender"], at, text)


def _slack(record: dict[str, Any], channel: str, users: dict[str, str]) -> Iterator[_Message]:
    if record["type"] != "message" or not str(record.get("text") or "").strip():
        return
    profile = record.get("user_profile") or record.get("bot_profile") or {}
    user = str(record.get("user") or "")
    speaker = users.get(user) or profile.get("real_name") or profile.get("name") or record.get("username") or user
    thread = record.get("thread_ts")
    yield _Message(
        f"{channel}/{thread}" if thread else channel,
        channel,
        speaker,
        _seconds(float(record["ts"])),
        _slack_text(record["text"], users),
    )


def _slack_text(text: str, users: dict[str, str]) -> str:
    def shown(found: re.Match[str]) -> str:
        target, _, label = found[1].partition("|")
        if label:
            return label
        return (
            f"@{users.get(target[1:], target[1:])}"
            if target.startswith("@")
            else target.removeprefix("!").removeprefix("#")
        )

    return html.unescape(re.sub(r"<([^<>\n]{1,2000})>", shown, text))


def _slack_users(path: Path) -> dict[str, str]:
    """Names by the ids that messages name, from the list next to the folder of the channel."""
    for folder in (path.parent.parent, path.parent):
        listed = folder / "users.json"
        try:
            if listed.stat().st_size > _USERS:
                continue
            found = json.loads(listed.read_bytes())
            return {
                str(user["id"]): str(
                    user.get("real_name") or user.get("profile", {}).get("real_name") or user.get("name") or user["id"]
                )
                for user in found
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
    return {}


def _id(record: dict[str, Any], *names: str) -> str:
    return next(
        (str(record[name]) for name in names if record.get(name)), str(record.get("title") or record.get("name") or "")
    )


def _seconds(moment: float | None) -> dt.datetime | None:
    return None if moment is None else dt.datetime.fromtimestamp(moment, dt.UTC)


# [31.12.23, 22:15:32] Ann: text    12/31/23, 10:15 PM - Ann: text    2023-12-31 22:15 - Ann: text
_WHATSAPP: Final = re.compile(
    r"[\u200e\u200f\u202a]*\[?(\d{1,4})([./-])(\d{1,2})[./-](\d{1,4}),? (\d{1,2})[:.](\d{2})(?:[:.](\d{2}))?(?:[ \u00a0\u202f]?([aApP])\.?[mM]\.?)?"
    r"(?:\]| -)[ \u00a0\u200e]*(?:([^:\n]{1,100}): )?(.*)$"
)


def is_whatsapp(first: Iterable[str]) -> bool:
    """Whether the first lines of a text are those of an exported chat."""
    lines = [line for line in first if line.strip()]
    found = [match for line in lines if (match := _WHATSAPP.match(line))]
    return len(found) >= 2 and _WHATSAPP.match(lines[0]) is not None and any(match[9] for match in found)


def whatsapp(lines: Iterable[tuple[int, str]], name: str, zone: dt.tzinfo | None, noted: set[str]) -> Iterator[Passage]:
    """The messages of an exported chat. It names no time zone: without ``zone`` its times are those of this machine's, and its name is
    ``noted``."""
    if zone is None:
        noted.add(name)
    found: list[tuple[int, re.Match[str], list[str]]] = []
    for number, text in lines:
        match = _WHATSAPP.match(text)
        if match:
            found.append((number, match, [match[10]]))
        elif found:
            found[-1][2].append(text)
    day_first = _day_first([match for _, match, _ in found])
    for number, match, said in found:
        text = "\n".join(said).replace("\u200e", "").strip()
        message = _Message(
            "",
            "",
            (match[9] or "").strip("\u200e\u202a\u202c ~\u00a0\u202f"),
            _whatsapp_time(match, day_first, zone),
            text,
        )
        for passage in _passages(message, "whatsapp", name, 0):
            yield Passage(
                passage.text, number, passage.metadata, fields=passage.fields, occurred_at=passage.occurred_at
            )


def _day_first(found: list[re.Match[str]]) -> bool:
    """Whether 3/4 is a day and a month: any number above 12 tells, else the way in which the hours are written."""
    if any(int(one[1]) > 12 for one in found):
        return True
    if any(int(one[3]) > 12 for one in found):
        return False
    return not any(one[8] and one[2] == "/" for one in found)


def _whatsapp_time(match: re.Match[str], day_first: bool, zone: dt.tzinfo | None) -> dt.datetime | None:
    first, second, third = int(match[1]), int(match[3]), int(match[4])
    year, month, day = (
        (first, second, third)
        if len(match[1]) == 4
        else (third, second, first)
        if day_first
        else (third, first, second)
    )
    hour = int(match[5])
    if match[8]:
        hour = hour % 12 + (12 if match[8] in "pP" else 0)
    try:
        year = year + 2000 if year < 100 else year
        at = dt.datetime(year, month, day, hour, int(match[6]), int(match[7] or 0), tzinfo=zone)
        return at.astimezone() if zone is None else at
    except (ValueError, OverflowError, OSError):
        return None
