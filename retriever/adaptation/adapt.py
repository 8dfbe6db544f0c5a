"""Adapting: from what an index holds to a map that is worth having, or to the word that none was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retriever.adaptation.evidence import evidence_of
from retriever.adaptation.feedback import Feedback, known_ids
from retriever.adaptation.learner import Batches, LearnerSettings, learn
from retriever.adaptation.linear_map import Matrix, toward_identity
from retriever.adaptation.logged import LogSupervision
from retriever.adaptation.pooled import PoolSupervision
from retriever.adaptation.sample import Sample
from retriever.adaptation.spaces import Mapped
from retriever.adaptation.stored import Adaptation
from retriever.adaptation.training import FinetuneSettings, Training
from retriever.adaptation.validation import FOLDS, SHARES, Compared, Learn, Verdict
from retriever.embedders import TunedModel
from retriever.errors import InvalidInput
from retriever.evaluation.calibration import Calibration
from retriever.example import Json
from retriever.listening import Progress
from retriever.query_encoder import QueryEncoder
from retriever.snapshot import Snapshot

Teacher: TypeAlias = Feedback | str | None
"""What says what is alike: a log, one of `SOURCES` of the pool, or None for its labels, else its outputs."""

FEWEST = 30
"""Examples or queries that a verdict needs at least."""


class Supervision(Protocol):
    """What says what should be alike, and judges what was learned of it."""

    @property
    def sample(self) -> Sample:
        """The pool."""

    @property
    def source(self) -> str:
        """One of `SOURCES`, or `feedback`."""

    @property
    def items(self) -> NDArray[np.int64]:
        """What is learned from, and held out: rows of the pool, or queries of a log."""

    def batches(self, items: NDArray[np.int64]) -> Batches:
        """What a map is learned from."""

    def training(self, items: NDArray[np.int64], settings: FinetuneSettings) -> Training:
        """What a model is fine-tuned on."""

    def judge(
        self, learn: Learn, *, fixed: Calibration | None, tried: int = FOLDS, shares: Sequence[float] = SHARES
    ) -> Verdict:
        """Whether what is learned is worth having.

        Args:
            learn: From items to the space that is learned from them; called once for each fold.
            fixed: The fusion weight when it is not to be chosen.
            tried: How many of the `FOLDS` folds are held out.
            shares: How far to go toward what was learned, to choose from.
        """


@dataclass(frozen=True)
class Tuned:
    """A model that was fine-tuned.

    Attributes:
        model: Its files.
        about: What the manifest says of how it was made.
    """

    model: TunedModel
    about: Mapping[str, object]


@dataclass(frozen=True)
class Adapted:
    """What came of it.

    Attributes:
        kept: Whether the index has what was learned now, a map or a model.
        reason: Why, or why not.
        source: What was learned from: one of `SOURCES`, or `feedback`.
        examples: How many examples that was, or queries of feedback.
        compared: What it changes on held-out examples, or on held-out queries of feedback.
        share: How far from the identity toward the learned map the one that was judged goes; 1 for a model.
        adaptation: The map, when it is worth having.
        tuned: The model that was fine-tuned, when it is.
        calibration: The fusion weight that goes with it; None to calibrate it when it is published.
        recipe_weight: The fusion weight of the index's default recipe, chosen for the former vectors, that gave way to
            the calibrated one; None where it had none.
    """

    kept: bool
    reason: str
    source: str
    examples: int
    compared: tuple[Compared, ...] = ()
    share: float = 0.0
    adaptation: Adaptation | None = None
    tuned: Tuned | None = None
    calibration: Calibration | None = None
    recipe_weight: float | None = None

    def to_dict(self) -> dict[str, Json]:
        """For JSON output."""
        return {
            "kept": self.kept,
            "reason": self.reason,
            "source": self.source,
            "examples": self.examples,
            "share": self.share,
            "weight": None if self.calibration is None else self.calibration.weight,
            "recipe_weight": self.recipe_weight,
            "compared": [one.to_dict() for one in self.compared],
        }


def supervision_of(snapshot: Snapshot, encoder: QueryEncoder, teacher: Teacher) -> Supervision:
    """What is learned from: the pool itself, or a log.

    Args:
        snapshot: The view of the index.
        encoder: Embeds queries, where they are embedded in another way than examples.
        teacher: A log, or what of the pool.

    Raises:
        InvalidInput: The pool has not what is to be learned from, or the log says nothing of its examples or has no
            line that can be used.
    """
    if not isinstance(teacher, Feedback):
        return PoolSupervision.of(Sample.of(snapshot, encoder), teacher, encoder.examples)
    teacher.check_lines()
    places, _ = known_ids(teacher, snapshot.places_of)
    sample = Sample.of(snapshot, encoder, np.array(sorted(places.values()), dtype=np.int64))
    rows = {identity: int(np.searchsorted(sample.places, place)) for identity, place in places.items()}
    evidence = evidence_of(teacher, rows, snapshot.key.text)
    if not any(one.credit.any() for one in evidence.queries):
        raise InvalidInput(
            f"{teacher.name} prefers no example of the pool to another",
            expected="outcomes that differ, of demonstrations that are in the pool",
        )
    return LogSupervision(sample, evidence, snapshot.base.calibration)


def adapt(
    snapshot: Snapshot,
    encoder: QueryEncoder,
    settings: LearnerSettings,
    progress: Progress,
    teacher: Teacher = None,
) -> Adapted:
    """Learns which examples are alike, from the examples themselves or from a log.

    Args:
        snapshot: The view of the index.
        encoder: Embeds queries, where they are embedded in another way than examples.
        settings: How the map is learned.
        progress: Told how far the work is.
        teacher: A log, or one of `SOURCES` of the pool; None for its labels, else its outputs.

    Raises:
        InvalidInput: As `supervision_of`.
    """
    supervision = supervision_of(snapshot, encoder, teacher)
    items = supervision.items
    if len(items) < FEWEST:
        return Adapted(False, too_few(supervision), supervision.source, len(items))
    fixed = snapshot.base.calibration.if_given()
    verdict, matrix = _judged(supervision, encoder.stored.dim, settings, fixed, progress)
    found = Adapted(
        kept=matrix is not None,
        reason=reason(verdict),
        source=supervision.source,
        examples=len(items),
        compared=verdict.compared,
        share=verdict.share,
    )
    if matrix is None:
        return found
    about = {**about_learned(supervision, verdict, teacher), "settings": asdict(settings)}
    return replace(
        found,
        adaptation=Adaptation.learned(matrix, about),
        calibration=verdict.calibration,
    )


def _judged(
    supervision: Supervision, dim: int, settings: LearnerSettings, fixed: Calibration | None, progress: Progress
) -> tuple[Verdict, Matrix | None]:
    """The verdict, and the map that is learned from everything when it is favourable."""
    learned = 0

    def learn_from(items: NDArray[np.int64]) -> Matrix:
        nonlocal learned
        before, total = learned * settings.steps, (FOLDS + 1) * settings.steps
        learned += 1
        batches = supervision.batches(items)
        return learn(batches, dim, settings, lambda done, _: progress("learning", before + done, total))

    verdict = supervision.judge(lambda items: Mapped(supervision.sample.frozen, learn_from(items)), fixed=fixed)
    return verdict, toward_identity(learn_from(supervision.items), verdict.share) if verdict.kept else None


def about_learned(supervision: Supervision, verdict: Verdict, teacher: Teacher) -> dict[str, Json]:
    """What the manifest says of what was learned, but for how."""
    log: dict[str, Json] = {}
    if isinstance(teacher, Feedback):
        log = {"log": {"name": teacher.name, "lines": len(teacher.lines), "sha256": teacher.digest}}
    return {
        "source": supervision.source,
        "examples": len(supervision.items),
        **log,
        "share": verdict.share,
        "compared": [one.to_dict() for one in verdict.compared],
    }


def too_few(supervision: Supervision) -> str:
    """Why nothing was learned."""
    kind = "queries" if supervision.source == "feedback" else "examples"
    return f"only {len(supervision.items)} {kind} say what is alike, and {FEWEST} are needed to tell whether it helps"


def reason(verdict: Verdict) -> str:
    """Why what was learned is kept, or why not."""
    hybrid = verdict.compared[1]
    difference = f"{hybrid.gain:+.4f} ± {hybrid.error:.4f} ({hybrid.before:.4f} → {hybrid.after:.4f})"
    if verdict.kept:
        return f"on {verdict.sample} held-out {verdict.items} the hybrid gains {difference}"
    losses = [f"{one.metric} falls by {-one.gain:.4f}" for one in verdict.compared if one.gain < 0]
    more = f" and {', '.join(losses)}" if losses else ""
    return f"no gain: on {verdict.sample} held-out {verdict.items} the hybrid changes by {difference}{more}"
