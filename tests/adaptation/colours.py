"""A pool in which what matters is a faint part of the vectors: the colour decides, the noise is loud, no term tells."""

from __future__ import annotations

import hashlib
import re

import numpy as np

COLOURS = ("red", "green", "blue", "grey")
DIM = 12


def colour(text):
    """That of a text with a number in it."""
    return COLOURS[int(re.search(r"\d+", text).group()) % 4]


def embed(texts):
    """Eight components are hashed noise; four faint ones say the colour."""
    vectors = np.zeros((len(texts), DIM), dtype=np.float32)
    for row, text in enumerate(texts):
        if re.search(r"\d", text):
            vectors[row, COLOURS.index(colour(text))] = 0.35
        digest = hashlib.blake2b(text.encode(), digest_size=DIM - len(COLOURS)).digest()
        vectors[row, len(COLOURS) :] = [byte / 128 - 1 for byte in digest]
    return vectors


def rows(count, start=0, label=lambda colour, number: colour):
    """Examples whose label is their colour, unless told otherwise."""
    return [
        {
            "id": f"e{number}",
            "input": f"word{number}",
            "output": f"answer {number % 4}",
            "label": label(colour(f"word{number}"), number),
        }
        for number in range(start, start + count)
    ]
