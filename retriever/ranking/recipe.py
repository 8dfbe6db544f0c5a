"""Recipe: the settings of one selection, as data.

A recipe has one section per stage of the ranker. It can be written as TOML or JSON, compared, and is stored with every
exported record. A section that is left out has its defaults.

    [retrieve]
    mode = "hybrid"            # hybrid | dense | lexical
    weight = 0.7               # share of the dense channel; left out: as calibrated for the pool
    [guard]
    level = "near"             # off | self | exact | normalised | near
    [filter]
    where = 'language == "en" and priority <= 2'
    match = ["task"]           # the example's value must be the query's
    [rerank]
    by = "maxsim"              # token by token; or "cross-encoder:NAME"; left out: no reranking
    depth = 100                # how many of the best are scored again
    [select]
    strategy = "mmr"           # top, random, fixed, mmr, dpp, sift, coverage, balanced, cluster, complexity
    k = 8
    candidates = 100           # how many of the most relevant it looks at
    options = {weight = 0.5}   # the strategy's own settings
    [constraints]
    at_most = {template = 1}   # by template, label or field
    near = 0.95                # no two that are more alike
    [adaptive]
    by = "elbow"               # none | threshold | elbow | confidence: fewer than k where that is enough
    k_min = 2
    [order]
    by = "best-last"           # best-last | best-first | edges | random | complexity | label-interleaved
    [budget]
    tokens = 4000
    prune = ["rationale"]      # what is tried before a demonstration is left out
"""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, cast

from indexes.channels import MODES, RULES
from retriever.errors import InvalidInput
from retriever.example import Json
from retriever.ranking.adaptive import Adaptive
from retriever.ranking.constraints import Constraints
from retriever.ranking.guard import LEVELS, Guard
from retriever.ranking.order import ORDERS
from retriever.ranking.rerank import Rerank
from retriever.ranking.strategies import STRATEGIES, strategy, strategy_names
from retriever.ranking.strategies.fixed import FixedOptions
from retriever.ranking.typed import section
from retriever.ranking.where import predicate

Where: TypeAlias = "str | Mapping[str, Json] | None"


class Options(typing.TypedDict, total=False):
    """The keywords of `Retriever.select` and the options of the command line: single keys of a recipe by short name."""

    mode: str
    weight: float | None
    fusion: str
    guard: str
    threshold: float
    group: str | None
    where: Where
    match: Sequence[str]
    exclude: Sequence[str]
    rerank: str | None
    strategy: str
    k: int
    seed: int
    fixed: Sequence[str]
    candidates: int
    options: Mapping[str, Json]
    order: str
    tokens: int | None
    reserve: int
    counter: str


_KEY_OF_OPTION = {
    "mode": ("retrieve", "mode"),
    "weight": ("retrieve", "weight"),
    "fusion": ("retrieve", "rule"),
    "guard": ("guard", "level"),
    "threshold": ("guard", "threshold"),
    "group": ("guard", "group"),
    "where": ("filter", "where"),
    "match": ("filter", "match"),
    "exclude": ("filter", "exclude"),
    "rerank": ("rerank", "by"),
    "strategy": ("select", "strategy"),
    "k": ("select", "k"),
    "seed": ("select", "seed"),
    "fixed": ("select", "fixed"),
    "candidates": ("select", "candidates"),
    "options": ("select", "options"),
    "order": ("order", "by"),
    "tokens": ("budget", "tokens"),
    "reserve": ("budget", "reserve"),
    "counter": ("budget", "counter"),
}


@dataclass(frozen=True)
class Retrieve:
    """How rows are scored.

    Attributes:
        mode: `hybrid`, `dense` or `lexical`.
        weight: Share of the dense channel in `hybrid`, 0 to 1; None takes what was calibrated when the index was built.
        rule: `convex` or `rrf`.
        rrf_k: The constant of `rrf`.
    """

    mode: str = "hybrid"
    weight: float | None = None
    rule: str = "convex"
    rrf_k: int = 60


@dataclass(frozen=True)
class Filter:
    """Which examples may be chosen.

    Attributes:
        where: An expression or a mapping; see `retriever.ranking.where`.
        match: Fields in which the example must have the query's value.
        exclude: Ids of examples that must not be chosen.

    Raises:
        InvalidInput: `where` cannot be parsed, or holds what is no JSON.
    """

    where: Where = None
    match: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.where, Mapping):
            # As it is stored, where a tuple is a list: what was asked and what is recorded must be the same.
            try:
                object.__setattr__(self, "where", json.loads(json.dumps(dict(self.where))))
            except TypeError as error:
                raise InvalidInput(f"where = {self.where!r}: {error}", expected="a mapping of JSON values") from error
        if self.where is not None:
            predicate(self.where)


@dataclass(frozen=True)
class Part:
    """Some of the demonstrations, chosen in a way of their own.

    Attributes:
        strategy: The name of a strategy.
        k: How many, at most.
        options: The strategy's own settings.
        shared: Whether they are chosen once, for all queries, and stand first in every prompt, so that the beginning of
            the prompt is the same and a language model's cache serves it. The strategy must do without a query.
    """

    strategy: str = "top"
    k: int = 1
    options: Mapping[str, Json] = field(default_factory=dict)
    shared: bool = False

    def settings(self, name: str = "select") -> object:
        """The strategy's settings, defaults filled in.

        Raises:
            InvalidInput: An unknown strategy or setting, or a value that cannot be used.
        """
        if "_settings" not in self.__dict__:  # asked for several times by each selection
            made: object = section(strategy(self.strategy).options, self.options, f"{name}.options")
            object.__setattr__(self, "_settings", made)
        settings: object = self.__dict__["_settings"]
        return settings

    @property
    def by_relevance(self) -> bool:
        """Whether it chooses among the examples that are most relevant to the query."""
        settings = self.settings()
        shuffled = strategy(self.strategy).shuffled_by(settings, "") is not None
        return not (self.shared or shuffled or isinstance(settings, FixedOptions))

    def filled(self) -> Part:
        """The same with the default of every setting that was left out."""
        return replace(self, options={k: _plain(v) for k, v in asdict(self.settings()).items()})  # type: ignore[call-overload]


@dataclass(frozen=True)
class Select:
    """How the k demonstrations are chosen: `fixed` and each of `parts` first, then the strategy fills up to k.

    Attributes:
        strategy: The name of a strategy; `fixed` fills up with none.
        k: How many, at most, altogether.
        seed: For what is random.
        fixed: Ids that come first, in this order.
        candidates: How many of the most relevant examples a strategy that weighs them against each other looks at.
        options: The strategy's own settings.
        parts: Further parts, chosen before what the strategy fills up.
    """

    strategy: str = "top"
    k: int = 8
    seed: int = 0
    fixed: tuple[str, ...] = ()
    candidates: int = 100
    options: Mapping[str, Json] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()

    @cached_property
    def last(self) -> Part:
        """The part that fills up to k."""
        return Part(self.strategy, self.k, self.options)

    @cached_property
    def plan(self) -> tuple[Part, ...]:
        """All parts in the order in which they choose: shared ones, `fixed`, the other ones, the last."""
        shared = [part for part in self.parts if part.shared]
        others = [part for part in self.parts if not part.shared]
        fixed = [Part("fixed", len(self.fixed), {"ids": list(self.fixed)})] if self.fixed else []
        return (*shared, *fixed, *others, self.last)

    def filled(self) -> Select:
        """The same with the default of every setting that was left out."""
        return replace(self, options=self.last.filled().options, parts=tuple(part.filled() for part in self.parts))


@dataclass(frozen=True)
class Order:
    """Where each demonstration stands in the prompt.

    Attributes:
        by: `best-last`, `best-first`, `edges` (best last, second best first, and so on inwards), `random`, `complexity`
            (easy to hard) or `label-interleaved`.
        seed: For `random`.
    """

    by: str = "best-last"
    seed: int = 0


@dataclass(frozen=True)
class Budget:
    """How long the prompt may be.

    Attributes:
        tokens: The most tokens, the reserve included; None for no limit.
        reserve: Tokens kept free for the answer.
        counter: What counts them: `estimate`, `tiktoken:NAME` or a `tokenizer.json` file.
        fill: Which demonstrations come first: by `order` of the selector, or by `density`, the score for each token.
        max_field_tokens: The most tokens of a demonstration's field: `input`, `output`, `rationale` or `meta.KEY`. A
            longer text is cut, with a visible mark.
        prune: What is tried, in this order, before a demonstration that does not fit is left out: its `rationale` is
            dropped; the `longest` of input and rationale is cut, down to half of it.
    """

    tokens: int | None = None
    reserve: int = 0
    counter: str = "estimate"
    fill: typing.Literal["order", "density"] = "order"
    max_field_tokens: Mapping[str, int] = field(default_factory=dict)
    prune: tuple[typing.Literal["rationale", "longest"], ...] = ()

    def __post_init__(self) -> None:
        _within("budget.tokens", self.tokens, 1, 100_000_000)
        _within("budget.reserve", self.reserve, 0, 100_000_000)
        _one_of("budget.fill", self.fill, ("order", "density"))
        for name, tokens in self.max_field_tokens.items():
            if not name.startswith("meta."):
                _one_of("budget.max_field_tokens", name, ("input", "output", "rationale", "meta.KEY"))
            if type(tokens) is not int:
                raise InvalidInput(f"budget.max_field_tokens.{name} = {tokens!r}", expected="a whole number")
            _within(f"budget.max_field_tokens.{name}", tokens, 1, 100_000_000)
        for stage in self.prune:
            _one_of("budget.prune", stage, ("rationale", "longest"))

    @property
    def limit(self) -> int | None:
        """The most tokens that the prompt may have; None for no limit."""
        return None if self.tokens is None else self.tokens - self.reserve


@dataclass(frozen=True)
class Recipe:
    """The settings of one selection: one section per stage.

    Raises:
        InvalidInput: A value is not one of those allowed.
    """

    retrieve: Retrieve = field(default_factory=Retrieve)
    guard: Guard = field(default_factory=Guard)
    filter: Filter = field(default_factory=Filter)
    rerank: Rerank = field(default_factory=Rerank)
    select: Select = field(default_factory=Select)
    constraints: Constraints = field(default_factory=Constraints)
    adaptive: Adaptive = field(default_factory=Adaptive)
    order: Order = field(default_factory=Order)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        _one_of("retrieve.mode", self.retrieve.mode, MODES)
        _one_of("retrieve.rule", self.retrieve.rule, RULES)
        _one_of("guard.level", self.guard.level, LEVELS)
        _check_part(self.select.last, "select")
        if self.adaptive.by == "confidence" and self.select.strategy != "sift":
            raise InvalidInput(
                f"adaptive.by = 'confidence' with {self.select.strategy}",
                expected="the strategy sift, which tells",
            )
        for number, part in enumerate(self.select.parts):
            _check_part(part, f"select.parts[{number}]")
        _within("select.candidates", self.select.candidates, 1, 100_000)
        self._check_rerank()
        _one_of("order.by", self.order.by, tuple(ORDERS))
        _within("retrieve.weight", self.retrieve.weight, 0, 1)
        _within("retrieve.rrf_k", self.retrieve.rrf_k, 1, 1_000_000)
        _within("guard.threshold", self.guard.threshold, 0, 1)

    def _check_rerank(self) -> None:
        """Refuses a reranker that no part of the recipe would notice.

        Raises:
            InvalidInput: There is one.
        """
        if self.rerank.by is None:
            return
        methods = [strategy(part.strategy) for part in self.select.plan if part.by_relevance]
        narrows = self.rerank.depth > self.select.candidates
        if not any(method.ranked or narrows for method in methods):
            raise InvalidInput(
                f"rerank.by = {self.rerank.by!r} with the strategy {self.select.strategy}, which does not ask how "
                "relevant a candidate is",
                expected="another strategy, no reranker"
                + (", or rerank.depth above select.candidates" if methods else ""),
            )

    @classmethod
    def of(cls, source: Recipe | Mapping[str, Json] | str | Path | None) -> Recipe:
        """A recipe from a recipe, a mapping, the path of a TOML or `.json` file, or None for the defaults.

        Raises:
            InvalidInput: An unknown section or key, a value of the wrong type or out of range, or no such file; of a
                file the message names it.
        """
        if isinstance(source, Recipe):
            return source
        if source is None:
            return cls()
        if isinstance(source, Mapping):
            return _from_mapping(source)
        path = Path(source)
        kind, parse = ("JSON", json.loads) if path.suffix == ".json" else ("TOML", tomllib.loads)
        try:
            parsed = parse(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise InvalidInput(f"recipe {path}: {error.strerror}", expected=f"a {kind} file") from error
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"recipe {path}: {error}", expected=f"a {kind} file") from error
        if not isinstance(parsed, dict):
            raise InvalidInput(f"recipe {path}: {type(parsed).__name__}", expected="sections of keys")
        try:
            return _from_mapping(parsed)
        except InvalidInput as error:  # of several files, which one
            raise InvalidInput(f"recipe {path}: {error.seen}", expected=error.expected, fix=error.fix) from error

    def with_options(self, options: Options) -> Recipe:
        """The recipe with some keys changed; `seed` sets both the strategy's and the order's.

        Raises:
            InvalidInput: An unknown option, or a value of the wrong type or out of range.
        """
        if not options:
            return self
        changes: dict[str, dict[str, object]] = {}
        if options.get("strategy", self.select.strategy) != self.select.strategy:
            changes["select"] = {"options": {}}  # those of another strategy mean nothing to this one
        for name, value in options.items():
            if name not in _KEY_OF_OPTION:
                raise InvalidInput(f"option {name!r}", expected=f"one of {', '.join(_KEY_OF_OPTION)}")
            where, key = _KEY_OF_OPTION[name]
            changes.setdefault(where, {})[key] = value
        if "seed" in options:
            changes.setdefault("order", {})["seed"] = options["seed"]
        if options.get("rerank", self.rerank.by) != self.rerank.by:
            changes["rerank"].setdefault("idf", False)  # of the reranker before
        made: dict[str, Any] = {}
        for name, values in changes.items():
            before = getattr(self, name)
            kept = {f.name: getattr(before, f.name) for f in fields(before)}
            made[name] = section(type(before), {**kept, **values}, name)
        return replace(self, **made)

    def to_dict(self) -> dict[str, Json]:
        """The recipe as plain data; `Recipe.of` gives it back."""
        return {name: {k: _plain(v) for k, v in section.items()} for name, section in asdict(self).items()}

    @cached_property
    def data(self) -> Mapping[str, Json]:
        """What `to_dict` gives, worked out once and for reading only: every record of an export holds it."""
        return self.to_dict()

    def filled(self) -> Recipe:
        """The same with the default of every strategy's settings that were left out."""
        return replace(self, select=self.select.filled())

    def to_toml(self) -> str:
        """The recipe as a TOML file, which `Recipe.of` reads; what is None is left out, as TOML has no word for it."""
        import tomli_w

        return str(tomli_w.dumps(cast("dict[str, object]", _without_none(self.to_dict()))))


def _without_none(value: Json) -> Json:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _plain(value: object) -> Json:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value  # type: ignore[return-value]


def _check_part(part: Part, name: str) -> None:
    if part.strategy not in STRATEGIES:  # to look for those of other packages takes its time
        _one_of(f"{name}.strategy", part.strategy, strategy_names())
    _within(f"{name}.k", part.k, 0, 100_000_000)
    part.settings(name)
    if part.shared and not strategy(part.strategy).blind:
        blind = [other for other in strategy_names() if strategy(other).blind]
        raise InvalidInput(f"{name}: {part.strategy} for all queries at once", expected=f"one of {', '.join(blind)}")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInput(f"{key} = {value!r}", expected=f"one of {', '.join(allowed)}")


def _within(key: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidInput(f"{key} = {value}", expected=f"a number from {low:,} to {high:,}")


def _from_mapping(source: Mapping[str, object]) -> Recipe:
    sections = {f.name: f.default_factory for f in fields(Recipe)}
    unknown = sorted(set(source) - set(sections))
    if unknown:
        raise InvalidInput(f"recipe section {unknown[0]!r}", expected=f"one of {', '.join(sections)}")
    made: dict[str, object] = {}
    for name, values in source.items():
        if not isinstance(values, Mapping):
            raise InvalidInput(f"recipe section {name!r} is {values!r}", expected="a table of keys")
        made[name] = section(sections[name], values, name)  # type: ignore[arg-type]
    return Recipe(**made)  # type: ignore[arg-type]
