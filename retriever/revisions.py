"""Revisions: the states of a pool, each with a digest that is chained to the one before.

The chain is what makes a lost or altered change visible: whoever knows the newest digest, and starts from an older one
that is known to be right, finds the newest only if every change in between is there and is what was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GENESIS = "0" * 64
"""The chain before the first revision."""


@dataclass(frozen=True)
class Revision:
    """A state of the pool.

    Attributes:
        number: Counted from 1; 0 for an empty pool that was never written.
        chain: The digest of this revision and all before it.
    """

    number: int = 0
    chain: str = GENESIS


class Link:
    """The digest of one revision: SHA-256 over the one before and over what the revision changed.

    Args:
        before: The revision it follows.
    """

    def __init__(self, before: Revision) -> None:
        self.number = before.number + 1
        self._digest = hashlib.sha256(f"{before.chain} {self.number}\n".encode())

    def remove(self, row: int) -> None:
        """Takes in a removal; all of them come before the first addition, by ascending row."""
        self._digest.update(f"-{row}\n".encode())

    def add(self, row_hash: str, vector: bytes | None) -> None:
        """Takes in an addition, by ascending row; a build has no vectors in the pool."""
        stored = "" if vector is None else hashlib.sha256(vector).hexdigest()
        self._digest.update(f"+{row_hash} {stored}\n".encode())

    def revision(self) -> Revision:
        """The revision."""
        return Revision(self.number, self._digest.hexdigest())


def chain(
    since: Revision,
    until: int,
    removals: Mapping[int, Sequence[int]],
    additions: Mapping[int, Sequence[tuple[str, bytes | None]]],
) -> str:
    """The digest of a revision, worked out from what the revisions up to it have changed.

    Args:
        since: The revision to start from.
        until: The number of the one to end with.
        removals: For each revision the rows it removed, ascending.
        additions: For each revision the hashes of the rows it added and their vectors, by ascending row.
    """
    revision = since
    newest = min(until, max([since.number, *removals, *additions]))
    while revision.number < newest:
        link = Link(revision)
        for row in removals.get(link.number, ()):
            link.remove(row)
        for digest, vector in additions.get(link.number, ()):
            link.add(digest, vector)
        revision = link.revision()
    return revision.chain
