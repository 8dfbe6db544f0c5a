"""Adapting: from what an index holds to a map that is worth having, or to the word that none was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.hybrid import Query
from indexes.lexical import BM25Index
from indexes.postings import Postings
from retriever.adaptation.learner import LearnerSettings, learn
from retriever.adaptation.linear_map import Matrix, toward_identity
from retriever.adaptation.stored import Adaptation
from retriever.adaptation.supervision import Aim, OverlapBatches, aim_of
from retriever.adaptation.validation import FOLDS, Compared, Held, Verdict, folds, judge
from retriever.errors import InvalidInput
from retriever.evaluation.calibration import Calibration
from retriever.example import Json
from retriever.query_encoder import QueryEncoder
from retriever.ranking.seeding import permutation
from retriever.snapshot import Snapshot

Progress: TypeAlias = Callable[[str, int, int], None]

MOST_ROWS = 50_000
"""Rows that are learned from at most; the steps would not see more of them often enough."""
FEWEST_ROWS = 30


@dataclass(frozen=True)
class Adapted:
    """What came of it.

    Attributes:
        kept: Whether the index has the map now.
        reason: Why, or why not.
        source: What was learned from: `labels` or `outputs`.
        examples: How many examples that was.
        compared: What the map changes on held-out examples.
        share: How far from the identity toward the learned map the one that was judged goes.
        adaptation: The map, when it is worth having.
        calibration: The fusion weight that goes with it; None to calibrate it when it is published.
    """

    kept: bool
    reason: str
    source: str
    examples: int
    compared: tuple[Compared, ...] = ()
    share: float = 0.0
    adaptation: Adaptation | None = None
    calibration: Calibration | None = None

    def to_dict(self) -> dict[str, Json]:
        """For JSON output."""
        return {
            "kept": self.kept,
            "reason": self.reason,
            "source": self.source,
            "examples": self.examples,
            "share": self.share,
            "weight": None if self.calibration is None else self.calibration.weight,
            "compared": [one.to_dict() for one in self.compared],
        }


@dataclass(frozen=True)
class Sample:
    """What is learned from: the examples of an index, or as many of them as can be.

    Attributes:
        places: Their rows of the index, ascending.
        held: The same for validation.
    """

    places: NDArray[np.int64]
    held: Held

    @classmethod
    def of(cls, snapshot: Snapshot, encoder: QueryEncoder) -> Sample:
        """Reads them."""
        alive = np.arange(len(snapshot.rows)) if snapshot.alive is None else np.flatnonzero(snapshot.alive)
        places = np.sort(alive[permutation(len(alive), 0, "", "learned from")[:MOST_ROWS]])
        examples = snapshot.examples(places)
        texts = [snapshot.key.text(example) for example in examples]
        terms = [tuple(snapshot.analyze(text)) for text in texts]
        vectors = snapshot.embedded(places)
        prompts = encoder.stored.prompts
        numbers: dict[str, int] = {}

        def queries(rows: Sequence[int]) -> list[Query]:
            asked = vectors[list(rows)]
            if prompts.query != prompts.example:
                asked = encoder.queries([texts[row] for row in rows])
            return [Query(vector, terms[row]) for vector, row in zip(asked, rows, strict=True)]

        held = Held(
            vectors,
            BM25Index([Postings.from_documents(terms)], snapshot.base.settings.scoring()),
            np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64),
            lambda rows: [examples[row] for row in rows],
            queries,
        )
        return cls(places, held)


def adapt(snapshot: Snapshot, encoder: QueryEncoder, settings: LearnerSettings, progress: Progress) -> Adapted:
    """Learns from the examples themselves which ones are alike.

    Args:
        snapshot: The view of the index.
        encoder: Embeds queries, where they are embedded in another way than examples.
        settings: How the map is learned.
        progress: Told how far the work is.

    Raises:
        InvalidInput: The pool has neither labels nor outputs that differ.
    """
    sample = Sample.of(snapshot, encoder)
    examples = sample.held.examples(range(len(sample.places)))
    aim = aim_of(examples)
    if aim is None:
        raise InvalidInput("a pool without labels that repeat and without outputs", expected="either, to learn from")
    rows = np.flatnonzero(aim.sets.sizes > 0)
    if len(rows) < FEWEST_ROWS:
        few = f"only {len(rows)} examples say what is alike, and {FEWEST_ROWS} are needed to tell whether a map helps"
        return Adapted(False, few, aim.judged.name, len(rows))
    verdict, matrix = _judged(sample.held, aim, rows, settings, _given_weight(snapshot), progress)
    if matrix is None:
        return Adapted(False, _no_gain(verdict), aim.judged.name, len(rows), verdict.compared, verdict.share)
    about = about_map(aim.judged.name, len(rows), settings, verdict)
    calibration = Calibration(verdict.weight, aim.judged.name, verdict.sample, verdict.utilities)
    if _given_weight(snapshot) is not None:
        calibration = Calibration(verdict.weight, "given")
    return Adapted(
        True,
        _gain(verdict),
        aim.judged.name,
        len(rows),
        verdict.compared,
        verdict.share,
        Adaptation.learned(matrix, about),
        calibration,
    )


def _judged(
    held: Held,
    aim: Aim,
    rows: NDArray[np.int64],
    settings: LearnerSettings,
    weight: float | None,
    progress: Progress,
) -> tuple[Verdict, Matrix | None]:
    """The verdict, and the map that is learned from everything when it is favourable."""
    learned = 0

    def learn_from(some: NDArray[np.int64]) -> Matrix:
        nonlocal learned
        before, total = learned * settings.steps, (FOLDS + 1) * settings.steps
        learned += 1
        batches = OverlapBatches(held.vectors, aim.sets, some)
        dim = held.vectors.shape[1]
        return learn(batches, dim, settings, lambda done, _: progress("learning", before + done, total))

    parts = folds(held, rows, learn_from)
    verdict = judge(held, parts, aim.judged, guarded=aim.guarded, weight=weight)
    return verdict, toward_identity(learn_from(rows), verdict.share) if verdict.kept else None


def about_map(source: str, examples: int, settings: LearnerSettings, verdict: Verdict) -> dict[str, Json]:
    """What the manifest says of a map, but for its fingerprint."""
    return {
        "source": source,
        "examples": examples,
        "share": verdict.share,
        "settings": asdict(settings),
        "compared": [one.to_dict() for one in verdict.compared],
    }


def _given_weight(snapshot: Snapshot) -> float | None:
    """The fusion weight, if the user has set it."""
    fusion = Calibration.from_dict(snapshot.base.generation.manifest["fusion"])
    return fusion.weight if fusion.objective == "given" else None


def _gain(verdict: Verdict) -> str:
    return f"on {verdict.sample} held-out examples the hybrid gains {_difference(verdict)}"


def _no_gain(verdict: Verdict) -> str:
    losses = [f"{one.metric} falls by {-one.gain:.4f}" for one in verdict.compared if one.gain < 0]
    more = f" and {', '.join(losses)}" if losses else ""
    return f"no gain: on {verdict.sample} held-out examples the hybrid changes by {_difference(verdict)}{more}"


def _difference(verdict: Verdict) -> str:
    [hybrid] = [one for one in verdict.compared if one.metric == f"hybrid, {verdict.objective}"]
    return f"{hybrid.gain:+.4f} ± {hybrid.error:.4f} ({hybrid.before:.4f} → {hybrid.after:.4f})"
