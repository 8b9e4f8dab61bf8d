"""How languages of markup write headings and text that is taken as it stands: Markdown, reStructuredText, Org and AsciiDoc."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

_NEVER: Final = re.compile(r"(?!)")
_ITEM: Final = re.compile(r"\s*(?:[-*+>|]|\d+[.)])")  # what a line under it does not make a heading of, in Markdown


@dataclass(frozen=True, slots=True)
class Markup:
    """``heading``: a line that is one; its first group is as long as the heading is deep, the second is its text. ``underline``: what makes
    the line above a heading; the first character tells how deep, by its place in ``styles``, or else by when it first came. ``fence``: what
    begins text that is taken as it stands, and ends it. ``off``: how much longer or shorter than its heading an underline may be."""

    heading: re.Pattern[str] = _NEVER
    underline: re.Pattern[str] = _NEVER
    fence: re.Pattern[str] = _NEVER
    styles: str = ""
    off: tuple[int, int] | None = None
    has_overlines: bool = False


MARKDOWN: Final = Markup(
    heading=re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$"),
    underline=re.compile(r" {0,3}(=+|-{2,})[ \t]*$"),
    fence=re.compile(r" {0,3}(`{3,}|~{3,})"),
    styles="=-",
)
RESTRUCTURED: Final = Markup(
    underline=re.compile(r"(([!-/:-@\[-`{-~])\2+)$"), off=(0, 1_000), has_overlines=True
)  # text that is taken as it stands is indented
ORG: Final = Markup(
    heading=re.compile(r"(\*+)[ \t]+(?:(?:TODO|DONE)[ \t]+)?(?:\[#\w\][ \t]+)?(.*?)(?:[ \t]+:[\w@#%:]+:)?[ \t]*$")
)
ASCIIDOC: Final = Markup(
    heading=re.compile(r"(={1,6}|#{1,6})[ \t]+(.*?)(?:[ \t]+=+)?[ \t]*$"),
    underline=re.compile(r"(={2,}|-{2,}|~{2,}|\^{2,}|\+{2,})$"),
    fence=re.compile(r"(-{4,}|\.{4,}|\+{4,}|/{4,}|`{3,})(?=$|\w)"),
    styles="=-~^+",
    off=(-1, 1),
)
BY_SUFFIX: Final = {
    ".rst": RESTRUCTURED,
    ".org": ORG,
    ".adoc": ASCIIDOC,
    ".asciidoc": ASCIIDOC,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".mdx": MARKDOWN,
}


@dataclass(slots=True)
class Outline:
    """What has been read of the headings and fences of one text."""

    markup: Markup | None
    fence: str = ""  # the open one
    seen: list[str] = field(default_factory=list)

    def reads(self, above: str | None, text: str) -> tuple[int, str, bool]:
        """(level, name, whether the lines above belong to it) of the heading that a line ends, level 0 for none; keeps track of fences.
        ``above``: the paragraph so far."""
        if self.markup is None:
            return 0, "", False
        was_fenced = bool(self.fence)
        level, name = (0, "") if was_fenced or above is None else self._underlined(self.markup, above, text)
        if level:
            return level, name, True
        self.fence = _fence_after(self.markup.fence, self.fence, text)
        title = None if was_fenced or self.fence else self.markup.heading.match(text)
        return (len(title[1]), title[2] or "", False) if title else (0, "", False)

    def _underlined(self, markup: Markup, above: str, text: str) -> tuple[int, str]:
        mark = markup.underline.match(text)
        over, line_break, title = above.partition("\n")
        overlined = bool(line_break) and markup.has_overlines and over == text
        if mark is None or (line_break and not overlined) or "\n" in title:
            return 0, ""
        title = title if overlined else above
        longer = len(mark[1]) - len(title.strip() if overlined else title)
        if markup.off is not None and not markup.off[0] <= longer <= markup.off[1]:
            return 0, ""
        if markup is MARKDOWN and _ITEM.match(title):
            return 0, ""
        if markup.has_overlines and (not any(map(str.isalnum, title)) or (title[0].isspace() and not overlined)):
            return 0, ""
        style = mark[1][0] * (2 if overlined else 1)
        if style in markup.styles:
            return markup.styles.index(style) + 1, title
        if style not in self.seen:
            self.seen.append(style)
        return self.seen.index(style) + 1, title


def _fence_after(fences: re.Pattern[str], fence: str, text: str) -> str:
    """The open fence after this line: closed by at least as many of the same character and nothing else."""
    mark = fences.match(text)
    if not fence:
        return mark[1] if mark else ""
    closes = mark is not None and mark[1].startswith(fence) and not text.strip().strip(fence[0])
    return "" if closes else fence
