"""Analyzers: from text to terms.

An analyzer is named by a string, so that an index can store which one it was built with:

    default            Unicode words in lower case; runs of Chinese, Japanese and Korean as bigrams
    stem:<language>    `default`, then a Snowball stemmer, e.g. stem:english
    code               identifiers, whole and split at camelCase, snake_case and digits
    char:<n>           character n-grams over lower-cased text, spaces included
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from indexes.errors import InvalidInput

# `\w` leaves out combining marks, which would cut Devanagari, Hebrew or Arabic words at every vowel sign.
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u06d6-\u06dc\u0900-\u0963\u0966-\u0dff\u0e31-\u0e4e\u0eb1-\u0ecd\u0f71-\u0f84\u102b-\u103e\u17b4-\u17d3"
)
_WORD = re.compile(rf"(?:[^\W_]|[{_MARKS}])+")
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U000323af]+")
_IDENTIFIER = re.compile(r"\w+")
_IDENTIFIER_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Analyzer:
    """A named function from text to terms.

    Attributes:
        name: As stored in the manifest; `analyzer(name)` gives an equal one back.
        analyze: The function; the same term may occur several times, in text order.
    """

    name: str
    analyze: Callable[[str], list[str]]

    def __call__(self, text: str) -> list[str]:
        """The terms of a text, in order, repeated as often as they occur."""
        return self.analyze(text)


def analyzer(name: str) -> Analyzer:
    """The analyzer of a name.

    Raises:
        InvalidInput: The name is unknown, the language has no stemmer, or n is not between 1 and 16.
    """
    kind, _, argument = name.partition(":")
    if name == "default":
        return Analyzer(name, words)
    if name == "code":
        return Analyzer(name, identifiers)
    if kind == "stem":
        return Analyzer(name, _stemming(argument))
    if kind == "char" and argument.isdecimal() and 1 <= int(argument) <= 16:
        n = int(argument)
        return Analyzer(f"char:{n}", lambda text: character_ngrams(text, n))
    raise InvalidInput(f"analyzer {name!r}", expected="default, stem:<language>, code, or char:<n> with n from 1 to 16")


def words(text: str) -> list[str]:
    """Unicode words in lower case, compatibility forms folded (NFKC); CJK runs become overlapping bigrams."""
    if text.isascii():
        return _WORD.findall(text.lower())
    terms: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).lower()):
        terms.extend(_with_bigrams(word))
    return terms


def _with_bigrams(word: str) -> list[str]:
    """A word split at its CJK runs, each run as bigrams; a run of one character stays as it is."""
    terms: list[str] = []
    end = 0
    for run in _CJK.finditer(word):
        if run.start() > end:
            terms.append(word[end : run.start()])
        cjk = run.group()
        terms.extend([cjk] if len(cjk) == 1 else [cjk[i : i + 2] for i in range(len(cjk) - 1)])
        end = run.end()
    if end < len(word):
        terms.append(word[end:])
    return terms


def identifiers(text: str) -> list[str]:
    """Identifiers in lower case, whole and, where there are several, by parts: getUserName2 also get, user, name, 2."""
    terms: list[str] = []
    for identifier in _IDENTIFIER.findall(text):
        parts = [part.lower() for part in _IDENTIFIER_PART.findall(identifier)]
        whole = identifier.strip("_").lower()
        if whole and parts != [whole]:
            terms.append(whole)
        terms.extend(parts)
    return terms


def character_ngrams(text: str, n: int) -> list[str]:
    """Overlapping n-grams of the lower-cased text, white space collapsed and one space put at both ends."""
    collapsed = _SPACE.sub(" ", unicodedata.normalize("NFKC", text).lower()).strip()
    if not collapsed:
        return []
    padded = f" {collapsed} "
    return [padded[i : i + n] for i in range(max(1, len(padded) - n + 1))]


def _stemming(language: str) -> Callable[[str], list[str]]:
    import Stemmer

    if language not in Stemmer.algorithms():
        raise InvalidInput(f"no stemmer for {language!r}", expected=f"one of {', '.join(Stemmer.algorithms())}")

    def stems(text: str) -> list[str]:
        # A Stemmer keeps a cache that is not safe to share between threads; making one is cheap.
        result: list[str] = Stemmer.Stemmer(language, 0).stemWords(words(text))
        return result

    return stems
