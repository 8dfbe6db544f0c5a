"""Near copies among many texts, found exactly without comparing every pair.

What is alike is what the leak guard's level `near` calls alike: texts of the same words in any order, or sets of
character 4-grams whose Jaccard index reaches a threshold, both after normalisation (`retriever.ranking.guard`). The
pairs are those that a comparison of all with all finds, for these filters lose nothing:

- Texts that are equal after normalisation are grouped first, so that copies cost nothing.
- Prefix filter (Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007): |x ∩ y| ≥ t · |x ∪ y| implies
  |x ∩ y| ≥ t · |x|, so that with one order of all elements the first |x| − ⌈t · |x|⌉ + 1 of x and those of y share
  one. The order is by rarity, which makes the lists short in which candidates are looked up.
- Length filter: t · |x| ≤ |y| ≤ |x| / t.

Time depends on how much the texts have in common. Memory grows with their length, not with the number of pairs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexes.analyzers import character_ngrams
from retriever.errors import InvalidInput
from retriever.listening import Steps, silent
from retriever.ranking.guard import normalised
from retriever.ranking.strategies.picks import Integers, Reals

_BLOCK_TOKENS = 1 << 20
_FIRST_BLOCK = 16
_SLACK = 1.0 - 1e-9
_SIGN = re.compile(r"[*/%&+<=>|~^$]|-(?=\s*\d)|[^\x00-\x7f]")
_COUNTING = ("Mn", "Mc", "Me", "Sm", "Sc")


class Pair(NamedTuple):
    """Two texts that are alike.

    Attributes:
        first: The number of one; of the query where there are queries.
        second: The number of the other.
        likeness: 1 for the same words in any order, else the Jaccard index of their character 4-grams.
    """

    first: int
    second: int
    likeness: float


@dataclass(frozen=True)
class Cluster:
    """Texts of which each is a near copy of another one in the cluster.

    Attributes:
        members: The numbers of the texts, ascending; at least two.
        likeness: The smallest likeness of the links that were found to hold it together; of two texts, theirs.
    """

    members: tuple[int, ...]
    likeness: float


def near_matches(
    queries: Sequence[str], texts: Sequence[str], threshold: float, told: Steps = silent
) -> Iterator[list[Pair]]:
    """For each query the texts that it is a near copy of, by the number of the text.

    Args:
        queries: The queries, as they are.
        texts: The texts, as they are.
        threshold: Likeness from which two are near copies.
        told: Told how many queries are done, and how many there are.

    Raises:
        InvalidInput: The threshold is not over 0 and up to 1.
    """
    check_threshold(threshold)
    grouped = _Grouped.of(texts)
    sets = _Sets.of(grouped.normals, threshold)
    by_words = {_words(grouped.normals[grouped.number[members[0]]]): members for members in grouped.by_words}
    for place, query in enumerate(queries):
        normal = normalised(query)
        found = dict.fromkeys(by_words.get(_words(normal), []), 1.0)
        for other, likeness in sets.near(sets.tokens_of(normal), threshold):
            for member in grouped.members[other]:
                found.setdefault(member, likeness)
        yield [Pair(place, member, likeness) for member, likeness in sorted(found.items())]
        told(place + 1, len(queries))


def clusters(texts: Sequence[str], threshold: float, told: Steps = silent) -> list[Cluster]:
    """The connected components of near copies, in the order of their first members.

    Args:
        texts: The texts, as they are.
        threshold: Likeness from which two are near copies.
        told: Told how many distinct texts are done, and how many there are.

    Raises:
        InvalidInput: The threshold is not over 0 and up to 1.
    """
    check_threshold(threshold)
    grouped = _Grouped.of(texts)
    sets = _Sets.of(grouped.normals, threshold)
    components = _Components.of(len(grouped.by_words))
    groups = grouped.words[sets.order]
    for place, group in enumerate(groups.tolist()):
        tokens = sets.tokens_at(place)
        found = sets.candidates(tokens, threshold, place)
        step = _FIRST_BLOCK
        # In a large cluster the first few candidates, those nearest in size, bring a text in; the others are then in
        # the same component and need no comparison.
        while len(found):
            found, block = found[:-step], found[-step:]
            components.join(group, groups[block], sets.likeness(tokens, block), threshold)
            found = found[components.roots(groups[found]) != components.roots(groups[place : place + 1])]
            step *= 2
        told(place + 1, len(groups))
    united: dict[int, list[int]] = {}
    for group, root in enumerate(components.roots(np.arange(len(grouped.by_words))).tolist()):
        united.setdefault(root, []).extend(grouped.by_words[group])
    return [
        Cluster(tuple(sorted(members)), float(components.links[root]))
        for root, members in sorted(united.items(), key=lambda item: min(item[1]))
        if len(members) > 1
    ]


def said(text: str) -> tuple[str, str]:
    """What a text says: the same for texts that are equal after normalisation and ask the same.

    Beyond `normalised`, signs count (`3 + 5` is not `3 - 5`), so do combining marks, which are the vowels of many
    scripts, and so does punctuation where there is nothing else.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    signs = (one for one in _SIGN.findall(folded) if one.isascii() or unicodedata.category(one) in _COUNTING)
    return normalised(text) or text.strip(), "".join(signs)


def check_threshold(threshold: float) -> None:
    """Checks a likeness.

    Raises:
        InvalidInput: It is not over 0 and up to 1.
    """
    if not 0 < threshold <= 1:
        raise InvalidInput(f"threshold = {threshold}", expected="a number over 0, up to 1")


@dataclass(frozen=True)
class _Components:
    """Which nodes hang together.

    Attributes:
        parents: For each node another of its component, the root itself, the lowest; int64, shape (nodes,).
        links: For each root the smallest likeness that joined its component, float64, same shape.
    """

    parents: Integers
    links: Reals

    @classmethod
    def of(cls, nodes: int) -> _Components:
        """Each node alone."""
        return cls(np.arange(nodes), np.ones(nodes))

    def roots(self, nodes: Integers) -> Integers:
        """The roots of these nodes, int64, same shape."""
        roots = self.parents[nodes]
        while (self.parents[roots] != roots).any():
            roots = self.parents[roots]
        self.parents[nodes] = roots
        return roots

    def join(self, node: int, others: Integers, likeness: Reals, threshold: float) -> None:
        """Unites a node with those others that are alike enough, the most alike first."""
        for place in np.argsort(-likeness, kind="stable").tolist():
            if likeness[place] < threshold:
                return
            low, high = np.sort(self.roots(np.array([node, others[place]]))).tolist()
            if low != high:
                self.parents[high] = low
                self.links[low] = min(self.links[low], self.links[high], likeness[place])


def _words(normal: str) -> str:
    """The same for the same words in any order."""
    return " ".join(sorted(normal.split()))


@dataclass(frozen=True)
class _Grouped:
    """Texts by what is the same about them.

    Attributes:
        normals: The distinct normalised texts, in the order of their first occurrence.
        number: For each text the number of its normalised text.
        members: For each normalised text the texts.
        by_words: For each multiset of words the texts.
        words: For each normalised text the number of its multiset of words.
    """

    normals: list[str]
    number: list[int]
    members: list[list[int]]
    by_words: list[list[int]]
    words: Integers

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Grouped:
        """From texts as they are."""
        numbers: dict[str, int] = {}
        number = [numbers.setdefault(normalised(text), len(numbers)) for text in texts]
        multisets: dict[str, int] = {}
        words = [multisets.setdefault(_words(normal), len(multisets)) for normal in numbers]
        members: list[list[int]] = [[] for _ in numbers]
        by_words: list[list[int]] = [[] for _ in multisets]
        for text, group in enumerate(number):
            members[group].append(text)
            by_words[words[group]].append(text)
        return cls(
            normals=list(numbers),
            number=number,
            members=members,
            by_words=by_words,
            words=np.array(words, dtype=np.int64),
        )


@dataclass(frozen=True)
class _Sets:
    """Sets of 4-grams, the smallest first, with the lists by which candidates are found.

    Attributes:
        rank: The number of each 4-gram, the rarest first.
        order: The text of each set, int64, shape (sets,).
        sizes: How many elements each has, ascending, int64, shape (sets,).
        starts: Where each starts in `tokens`, int64, shape (sets,).
        tokens: The elements of every set, each set ascending, int32.
        offsets: Where each 4-gram's list starts in `places`, int64, shape (4-grams + 1,).
        places: For each 4-gram the sets that have it in their prefix, ascending, int64.
        marks: Room to mark the 4-grams of one set, all False in between, bool, shape (4-grams,).
    """

    rank: dict[str, int]
    order: Integers
    sizes: Integers
    starts: Integers
    tokens: NDArray[np.int32]
    offsets: Integers
    places: Integers
    marks: NDArray[np.bool_]

    @classmethod
    def of(cls, normals: Sequence[str], threshold: float) -> _Sets:
        """From distinct normalised texts."""
        numbers: dict[str, int] = {}
        drawn = [
            np.array([numbers.setdefault(gram, len(numbers)) for gram in dict.fromkeys(_grams(normal))], dtype=np.int32)
            for normal in normals
        ]
        order = np.argsort([len(one) for one in drawn], kind="stable")
        sizes = np.array([len(drawn[one]) for one in order.tolist()], dtype=np.int64)
        starts = np.cumsum(sizes) - sizes
        tokens = _joined([drawn[one] for one in order.tolist()])
        drawn.clear()
        ranks = np.empty(len(numbers), dtype=np.int32)
        ranks[np.argsort(np.bincount(tokens), kind="stable")] = np.arange(len(numbers), dtype=np.int32)
        tokens = ranks[tokens]
        prefixes = []
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            tokens[start : start + size].sort()
            prefixes.append(tokens[start : start + _prefix(size, threshold)])
        owners = np.repeat(np.arange(len(prefixes)), [len(one) for one in prefixes])
        elements = _joined(prefixes)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(elements, minlength=len(numbers)))])
        return cls(
            rank=dict(zip(numbers, ranks.tolist(), strict=True)),
            order=order,
            sizes=sizes,
            starts=starts,
            tokens=tokens,
            offsets=offsets,
            places=owners[np.argsort(elements, kind="stable")],
            marks=np.zeros(len(numbers), dtype=np.bool_),
        )

    def tokens_at(self, place: int) -> NDArray[np.int32]:
        """The elements of a set, ascending."""
        start = int(self.starts[place])
        return self.tokens[start : start + int(self.sizes[place])]

    def tokens_of(self, normal: str) -> NDArray[np.int32]:
        """The elements of another text, ascending; −1 for each that no set has."""
        return np.sort(np.array([self.rank.get(gram, -1) for gram in set(_grams(normal))], dtype=np.int32))

    def near(self, tokens: NDArray[np.int32], threshold: float) -> Iterator[tuple[int, float]]:
        """The texts whose Jaccard index with these elements reaches the threshold."""
        found = self.candidates(tokens, threshold, len(self.sizes))
        likeness = self.likeness(tokens, found)
        reached = likeness >= threshold
        yield from zip(self.order[found[reached]].tolist(), likeness[reached].tolist(), strict=True)

    def candidates(self, tokens: NDArray[np.int32], threshold: float, until: int) -> Integers:
        """The sets before `until` that may reach the threshold, ascending, int64, shape (candidates,)."""
        size = len(tokens)
        low = int(np.searchsorted(self.sizes, _least(size, threshold)))
        high = int(np.searchsorted(self.sizes, int(size / (threshold * _SLACK)), side="right"))
        drawn = np.zeros(len(self.sizes), dtype=np.bool_)
        for token in tokens[: _prefix(size, threshold)].tolist():
            if token >= 0:
                drawn[self.places[self.offsets[token] : self.offsets[token + 1]]] = True
        return low + np.flatnonzero(drawn[low : min(until, high)])

    def likeness(self, tokens: NDArray[np.int32], places: Integers) -> Reals:
        """The Jaccard index of these elements with each of these sets, none empty; float64, shape (places,)."""
        known = tokens[np.searchsorted(tokens, 0) :]
        self.marks[known] = True
        shared = np.empty(len(places), dtype=np.int64)
        step = max(1, _BLOCK_TOKENS // max(1, len(tokens)))
        for start in range(0, len(places), step):
            block = places[start : start + step]
            sizes = self.sizes[block]
            firsts = np.cumsum(sizes) - sizes
            elements = np.repeat(self.starts[block] - firsts, sizes) + np.arange(int(sizes.sum()))
            shared[start : start + step] = np.add.reduceat(self.marks[self.tokens[elements]], firsts, dtype=np.int64)
        self.marks[known] = False
        likeness: Reals = shared / (len(tokens) + self.sizes[places] - shared)
        return likeness


def _grams(normal: str) -> list[str]:
    return character_ngrams(normal, 4)


def _least(size: int, threshold: float) -> int:
    """⌈t · size⌉, and never more for rounding: one too few costs a comparison, one too many loses a pair."""
    return int(np.ceil(threshold * size * _SLACK))


def _prefix(size: int, threshold: float) -> int:
    return min(size, size - _least(size, threshold) + 1)


def _joined(arrays: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate([np.empty(0, dtype=np.int32), *arrays])
