"""Text of others on a terminal: what would move the cursor, hide or turn round what stands beside it is written out."""

from __future__ import annotations

import unicodedata


def obeyed(text: str, *, lines: bool = True) -> bool:
    """Whether a terminal would take some of this for more than letters; ends of lines too, unless there may be `lines`.

    Control and format characters are meant (colours, cursor, direction of writing, no width), and whatever has no
    meaning yet.
    """
    return any(map(_is_more, text.replace("\n", "") if lines else text))


def harmless(text: str) -> str:
    """The same text with such characters as Python writes them; ends of lines stay."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(ascii(one)[1:-1] if one != "\n" and _is_more(one) else one for one in text)


def in_one_line(text: str) -> str:
    """The same of what must not look like several lines: what others wrote may say that it is somebody else's."""
    return harmless(text).replace("\n", "\\n")


def _is_more(one: str) -> bool:
    return unicodedata.category(one) in {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}
