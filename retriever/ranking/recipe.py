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
    [select]
    strategy = "top"           # top | random | fixed
    k = 8
    [order]
    by = "best-last"           # best-last | best-first | edges | random
    [budget]
    tokens = 4000
"""

from __future__ import annotations

import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TypeAlias

from indexes.hybrid import MODES, RULES
from retriever.errors import InvalidInput
from retriever.example import Json
from retriever.ranking.guard import LEVELS, Guard
from retriever.ranking.order import ORDERS
from retriever.ranking.strategies import STRATEGIES

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
    strategy: str
    k: int
    seed: int
    fixed: Sequence[str]
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
    "strategy": ("select", "strategy"),
    "k": ("select", "k"),
    "seed": ("select", "seed"),
    "fixed": ("select", "fixed"),
    "order": ("order", "by"),
    "tokens": ("budget", "tokens"),
    "reserve": ("budget", "reserve"),
    "counter": ("budget", "counter"),
}

MAX_K = 10_000


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
    """

    where: Where = None
    match: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Select:
    """How the k demonstrations are chosen.

    Attributes:
        strategy: `top`, `random` or `fixed`.
        k: How many, at most.
        seed: For `random`.
        fixed: Ids that come first, in this order; the strategy chooses the rest (`fixed` chooses none).
    """

    strategy: str = "top"
    k: int = 8
    seed: int = 0
    fixed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Order:
    """Where each demonstration stands in the prompt.

    Attributes:
        by: `best-last`, `best-first`, `edges` (best last, second best first, and so on inwards) or `random`.
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
    """

    tokens: int | None = None
    reserve: int = 0
    counter: str = "estimate"

    def __post_init__(self) -> None:
        _within("budget.tokens", self.tokens, 1, 100_000_000)
        _within("budget.reserve", self.reserve, 0, 100_000_000)

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
    select: Select = field(default_factory=Select)
    order: Order = field(default_factory=Order)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        _one_of("retrieve.mode", self.retrieve.mode, MODES)
        _one_of("retrieve.rule", self.retrieve.rule, RULES)
        _one_of("guard.level", self.guard.level, LEVELS)
        _one_of("select.strategy", self.select.strategy, tuple(STRATEGIES))
        _one_of("order.by", self.order.by, tuple(ORDERS))
        _within("retrieve.weight", self.retrieve.weight, 0, 1)
        _within("retrieve.rrf_k", self.retrieve.rrf_k, 1, 1_000_000)
        _within("guard.threshold", self.guard.threshold, 0, 1)
        _within("select.k", self.select.k, 0, MAX_K)

    @classmethod
    def of(cls, source: Recipe | Mapping[str, Json] | str | Path | None) -> Recipe:
        """A recipe from a recipe, a mapping, the path of a TOML file, or None for the defaults.

        Raises:
            InvalidInput: An unknown section or key, a value of the wrong type or out of range, or no such file.
        """
        if isinstance(source, Recipe):
            return source
        if source is None:
            return cls()
        if isinstance(source, Mapping):
            return _from_mapping(source)
        path = Path(source)
        try:
            return _from_mapping(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise InvalidInput(f"recipe {path}: {error.strerror}", expected="a TOML file") from error
        except ValueError as error:
            raise InvalidInput(f"recipe {path}: {error}", expected="a TOML file") from error

    def with_options(self, options: Options) -> Recipe:
        """The recipe with some keys changed; `seed` sets both the strategy's and the order's.

        Raises:
            InvalidInput: An unknown option, or a value of the wrong type or out of range.
        """
        sections: dict[str, dict[str, object]] = {name: dict(values) for name, values in asdict(self).items()}
        for name, value in options.items():
            if name not in _KEY_OF_OPTION:
                raise InvalidInput(f"option {name!r}", expected=f"one of {', '.join(_KEY_OF_OPTION)}")
            section, key = _KEY_OF_OPTION[name]
            sections[section][key] = value
        if "seed" in options:
            sections["order"]["seed"] = options["seed"]
        return _from_mapping(sections)

    def to_dict(self) -> dict[str, Json]:
        """The recipe as plain data; `Recipe.of` gives it back."""
        return {name: {k: _plain(v) for k, v in section.items()} for name, section in asdict(self).items()}


def _plain(value: object) -> Json:
    return list(value) if isinstance(value, tuple) else value  # type: ignore[return-value]


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
        made[name] = _section(sections[name], values, name)  # type: ignore[arg-type]
    return Recipe(**made)  # type: ignore[arg-type]


@cache
def _types(section: str) -> Mapping[str, object]:
    """The declared types of a section's keys; working them out costs more than a selection's bookkeeping."""
    return typing.get_type_hints(next(f.default_factory for f in fields(Recipe) if f.name == section))


def _section(kind: type[object], values: Mapping[str, object], name: str) -> object:
    """One section from its keys, each checked against the type that the dataclass declares."""
    types_of = _types(name)
    unknown = sorted(set(values) - set(types_of))
    if unknown:
        raise InvalidInput(f"recipe key {name}.{unknown[0]}", expected=f"one of {', '.join(types_of)}")
    return kind(**{key: _typed(value, types_of[key], f"{name}.{key}") for key, value in values.items()})


def _typed(value: object, wanted: object, key: str) -> object:
    """The value, with a list made a tuple and a whole number a float where that is what is declared."""
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType | typing._UnionGenericAlias) else (wanted,)  # type: ignore[attr-defined]
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is tuple and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        if origin is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(origin, type) and isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
            return value
    raise InvalidInput(
        f"{key} = {value!r}", expected=str(getattr(wanted, "__name__", wanted)).replace("NoneType", "none")
    )
