"""Why a table and its files do not meet: the ways in which two programs write one key, and how many keys differ so."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

Way = Callable[[str], str]

_LEADING = re.compile(r"(?<![0-9])0+(?=[0-9])")
_DECIMAL = re.compile(r"([0-9]+)[.,]0+")
_LONG = re.compile(r"\d{12,}|\d([.,]\d+)?E\+?\d{2}", re.ASCII)
_SUFFIX = re.compile(r"(\.(dcm|dicom|ima|png|jpe?g|tiff?|bmp|nii|gz))+$", re.IGNORECASE)


def _decimal(key: str) -> str:
    number = _DECIMAL.fullmatch(key)
    return number[1] if number else key


def _rounded(key: str) -> str:
    """A long number with the digits that a spreadsheet shows of it: 1.23457E+11."""
    return f"{float(key.replace(',', '.')):.5E}" if _LONG.fullmatch(key) else key


WAYS: Mapping[str, tuple[str, Way]] = {
    "join_spaces": ("spaces", lambda key: "".join(key.split())),
    "join_case": ("case", str.casefold),
    "join_leading_zeros": ("leading zeros", lambda key: _LEADING.sub("", key)),
    "join_decimal": ("a .0 behind the number", _decimal),
    "join_unicode": ("the form of accented letters (NFC, NFD)", lambda key: unicodedata.normalize("NFC", key)),
    "join_width": ("full-width and other forms of characters", lambda key: unicodedata.normalize("NFKC", key)),
    "join_rounded": ("digits that a spreadsheet has rounded off (1.23457E+11)", _rounded),
    "join_slashes": ("slashes", lambda key: key.replace("\\", "/").removeprefix("./").strip("/")),
    "join_suffix": ("the file's suffix", lambda key: _SUFFIX.sub("", key)),
    "join_folder": ("the folder before the file's name", lambda key: key.replace("\\", "/").rsplit("/", 1)[-1]),
    "join_separators": ("separators", lambda key: re.sub(r"[\W_]+", "", key)),
}
"""By constant word what differs, in plain words, and how to take the difference away."""
SEVERAL = "join_several_ways"
IN_WORDS: Mapping[str, str] = {word: text for word, (text, _) in WAYS.items()} | {SEVERAL: "several of these at once"}


def differences(of_files: Mapping[str, int], of_rows: Iterable[str]) -> Counter[str]:
    """How many files would have a row but for one difference, by its word; `of_files` counts files by key.

    Both are keys that met nobody. A file counts once, for the first difference that explains it.
    """
    rows, left, found = list(of_rows), dict(of_files), Counter[str]()
    ways = [(word, way) for word, (_, way) in WAYS.items()]
    for word, way in [*ways, (SEVERAL, _all_ways)]:
        there = {plain for row in rows if (plain := way(row))}
        for key in [key for key in left if way(key) in there]:
            found[word] += left.pop(key)
    return found


def _all_ways(key: str) -> str:
    # The number's end before its dot is taken for a separator, and slashes before folders.
    for word in ("width", "spaces", "case", "slashes", "folder", "suffix", "decimal", "leading_zeros", "separators"):
        key = WAYS[f"join_{word}"][1](key)
    return key
