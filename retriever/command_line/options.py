"""The options that several commands share, in groups, and what they mean to the library."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict, TypeVar, cast, get_args

import typer

if TYPE_CHECKING:
    from retriever import EmbedderSettings, Fields, Limits, PromptOptions
    from retriever.adaptation.training import FinetuneSettings
    from retriever.evaluation.asking import Asking
    from retriever.evaluation.evaluate import EvalSettings
    from retriever.evaluation.tune import TuneSettings
    from retriever.example import Json
    from retriever.ranking.recipe import Options

Result = TypeVar("Result")
Mode = Literal["hybrid", "dense", "lexical"]
Guard = Literal["off", "self", "exact", "normalised", "near"]
Engine = Literal["onnx", "torch"]
Precision = Literal["float32", "bfloat16"]
AdaptKind = Literal["linear", "low-rank", "per-dimension"]
Curate = Literal["votek", "kcenter", "facility", "dpp", "cluster"]
OrderBy = Literal["best-last", "best-first", "edges", "random", "complexity", "label-interleaved"]
Rule = Literal["convex", "rrf"]
Collisions = Literal["error", "escape", "drop"]
PromptForm = Literal["messages", "text"]
ExportForm = Literal["demos", "prompts", "messages", "openai-batch", "anthropic-batch"]
MapBy = Literal["pca", "umap"]
EvalForm = Literal["table", "json", "csv"]

_SELECTION = "Selection"
_PROMPT = "Prompt"
_MODEL = "Embedder"
_LIMITS = "Limits"
_FIELDS = "Fields"
_SOURCE = "File"
_EVALUATION = "Evaluation"
_ASKING = "Language model"
_FINE_TUNING = "Fine-tuning, with --full"


def size(text: str) -> int:
    """A number of bytes or characters, such as 2000000, 500K, 64M or 4G."""
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper(), 1)
    digits = text[:-1] if factor > 1 else text
    if not digits.isascii() or not digits.isdigit():
        raise typer.BadParameter(f"{text!r} is no size; expected one such as 2000000, 500K, 64M or 4G")
    return int(digits) * factor


def _size_option(*names: str, help: str) -> object:
    option = typer.Option(*names, parser=size, metavar="SIZE", help=help, rich_help_panel=_LIMITS, show_default=False)
    return Annotated[int | None, option]


def _option(kind: object, *names: str, help: str, panel: str) -> object:
    return Annotated[kind, typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)]


RECIPE: Mapping[str, object] = {
    "k": _option(int | None, "-k", "--k", help="How many demonstrations (8).", panel=_SELECTION),
    "mode": _option(Mode | None, "--mode", help="Which channels rank (hybrid).", panel=_SELECTION),
    "weight": _option(float | None, "--weight", help="Share of the dense channel, 0 to 1.", panel=_SELECTION),
    "fusion": _option(Rule | None, "--fusion", help="How channels are combined (convex).", panel=_SELECTION),
    "guard": _option(Guard | None, "--guard", help="Leak guard level (self).", panel=_SELECTION),
    "threshold": _option(float | None, "--threshold", help="Likeness of a near copy (0.9).", panel=_SELECTION),
    "group": _option(str | None, "--group", help="Leave out the query's own group in FIELD.", panel=_SELECTION),
    "where": _option(list[str] | None, "--where", help="Filter, e.g. 'language == \"en\"'.", panel=_SELECTION),
    "match": _option(list[str] | None, "--match", help="FIELD must be as in the query.", panel=_SELECTION),
    "exclude": _option(list[str] | None, "--exclude", help="ID that must not be chosen.", panel=_SELECTION),
    "rerank": _option(str | None, "--rerank", help="maxsim, cross-encoder:MODEL or none.", panel=_SELECTION),
    "strategy": _option(str | None, "--strategy", help="How to choose (top); see recipe list.", panel=_SELECTION),
    "option": _option(list[str] | None, "--option", help="NAME=VALUE for the strategy.", panel=_SELECTION),
    "candidates": _option(int | None, "--candidates", help="How many it weighs (100).", panel=_SELECTION),
    "fixed": _option(list[str] | None, "--fixed", help="ID that always comes first.", panel=_SELECTION),
    "seed": _option(int | None, "--seed", help="For what is random (0).", panel=_SELECTION),
    "order": _option(OrderBy | None, "--order", help="Order in the prompt (best-last).", panel=_SELECTION),
}
Where = Annotated[list[str] | None, typer.Option(help="Filter, e.g. 'language == \"en\"'.", show_default=False)]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="Recipe, TOML or .json; options override it.", rich_help_panel=_SELECTION),
]
BUDGET: Mapping[str, object] = {
    "tokens": _option(int | None, "--tokens", help="Token budget of prompt and answer.", panel=_PROMPT),
    "reserve": _option(int | None, "--reserve", help="Of these, tokens for the answer.", panel=_PROMPT),
    "counter": _option(str | None, "--tokenizer", help="tiktoken:NAME or tokenizer.json.", panel=_PROMPT),
}
PROMPT: Mapping[str, object] = {
    "template": _option(str | None, "--template", help="io, classification, cot, sql, program, FILE.", panel=_PROMPT),
    "slot": _option(list[str] | None, "--slot", help="NAME=VALUE for the template.", panel=_PROMPT),
    "collisions": _option(Collisions | None, "--collisions", help="Delimiters in data (error).", panel=_PROMPT),
    "zero_shot": _option(bool, "--zero-shot", help="Trigger line without demonstrations.", panel=_PROMPT),
}
EMBEDDER: Mapping[str, object] = {
    "embedder": _option(
        str | None, "--embedder", help="auto, static:auto, latent, openai:MODEL, name, folder.", panel=_MODEL
    ),
    "embedder_url": _option(str | None, "--embedder-url", help="Where an openai: embedder is.", panel=_MODEL),
    "query_prompt": _option(str | None, "--query-prompt", help="Put before queries.", panel=_MODEL),
    "example_prompt": _option(str | None, "--example-prompt", help="Put before examples.", panel=_MODEL),
    "engine": _option(Engine | None, "--engine", help="What runs it (onnx where it can).", panel=_MODEL),
    "precision": _option(Precision | None, "--precision", help="bfloat16: a pool in less time.", panel=_MODEL),
    "device": _option(str | None, "--device", help="cpu, cuda:0 and the like.", panel=_MODEL),
}
FIELDS: Mapping[str, object] = {
    "input": _option(str | None, "--input", help="Field of the input (input); name, path, $template.", panel=_FIELDS),
    "output": _option(str | None, "--output", help="Field of the output (output).", panel=_FIELDS),
    "no_output": _option(bool, "--no-output", help="The examples have no outputs.", panel=_FIELDS),
    "label": _option(str | None, "--label", help="Field of the label (label).", panel=_FIELDS),
    "rationale": _option(str | None, "--rationale", help="Field of the rationale (rationale).", panel=_FIELDS),
    "id": _option(str | None, "--id", help="Field of the id (id).", panel=_FIELDS),
    "task": _option(str | None, "--task", help="Field of the task (task).", panel=_FIELDS),
}
SOURCE: Mapping[str, object] = {
    "format": _option(str | None, "--format", help="jsonl, json, csv, tsv, parquet or sqlite.", panel=_SOURCE),
    "table": _option(str | None, "--table", help="Table of a SQLite file.", panel=_SOURCE),
    "encoding": _option(str | None, "--encoding", help="Encoding of a text file (utf-8).", panel=_SOURCE),
}
ROW_LIMITS: Mapping[str, object] = {
    "max_rows": _option(int | None, "--max-rows", help="Most examples of the pool (100 million).", panel=_LIMITS),
    "max_field_bytes": _size_option("--max-field", help="Most bytes of a field (16M)."),
    "max_row_bytes": _size_option("--max-row", help="Most bytes of a row (64M)."),
}
PROMPT_LIMITS: Mapping[str, object] = {
    "max_k": _option(int | None, "--max-k", help="Most demonstrations (10,000).", panel=_LIMITS),
    "max_prompt_characters": _size_option("--max-prompt", help="Most characters in a prompt (64M)."),
}
EVALUATION: Mapping[str, object] = {
    "metrics": _option(list[str] | None, "--metric", help="NAME or NAME@N; see the README.", panel=_EVALUATION),
    "k": _option(int | None, "-k", "--k", help="How many demonstrations (as the recipes say).", panel=_EVALUATION),
    "guard": _option(Guard | None, "--guard", help="Leak guard level (near).", panel=_EVALUATION),
    "seed": _option(int | None, "--seed", help="Of the sample and of the resamples (0).", panel=_EVALUATION),
    "resamples": _option(int | None, "--resamples", help="Of the bootstrap (10,000).", panel=_EVALUATION),
    "level": _option(float | None, "--level", help="Of the intervals (0.95).", panel=_EVALUATION),
    "worst": _option(int | None, "--worst", help="Labels and queries that are told (10).", panel=_EVALUATION),
}
TUNING: Mapping[str, object] = {
    "metric": _option(str | None, "--metric", help="What is to be high (eval's first; exact).", panel=_EVALUATION),
    "ks": _option(list[int] | None, "--try-k", help="K to try; see the README.", panel=_EVALUATION),
    "token_cost": _option(float | None, "--token-cost", help="What 1,000 tokens take off.", panel=_EVALUATION),
    "seed": EVALUATION["seed"],
    "resamples": EVALUATION["resamples"],
    "level": _option(float | None, "--level", help="Of the intervals (0.8).", panel=_EVALUATION),
}
FINE_TUNING: Mapping[str, object] = {
    "epochs": _option(int | None, "--epochs", help="With --full: rounds over the examples (1).", panel=_FINE_TUNING),
    "examples": _option(int | None, "--examples", help="With --full: most of an epoch (5,000).", panel=_FINE_TUNING),
    "batch": _option(int | None, "--batch", help="With --full: the most of a step (32).", panel=_FINE_TUNING),
    "rate": _option(float | None, "--rate", help="With --full: the largest step size (0.00005).", panel=_FINE_TUNING),
    "seed": _option(int | None, "--seed", help="With --full: of data and dropout (0).", panel=_FINE_TUNING),
}
ASKING: Mapping[str, object] = {
    "backend": _option(str | None, "--backend", help="As of ask; its answers are judged.", panel=_ASKING),
    "base_url": _option(str | None, "--base-url", help="Where an OpenAI-compatible server is.", panel=_ASKING),
    "temperature": _option(float | None, "--temperature", help="0 for the most likely answer (0).", panel=_ASKING),
    "timeout": _option(float | None, "--timeout", help="Seconds to wait (60).", panel=_ASKING),
    "retries": _option(int | None, "--retries", help="How often a failed call is repeated (2).", panel=_ASKING),
    "answer_tokens": _option(int | None, "--answer-tokens", help="The most of an answer (256).", panel=_ASKING),
    "concurrency": _option(int | None, "--concurrency", help="Calls at once (4).", panel=_ASKING),
    "max_calls": _option(int | None, "--max-calls", help="The most calls of this run.", panel=_ASKING),
    "max_tokens": _option(int | None, "--max-tokens", help="The most tokens, prompts and answers.", panel=_ASKING),
    "cache": _option(Path | None, "--cache", help="File of answers (in the user's cache).", panel=_ASKING),
}
Query = Annotated[
    str, typer.Argument(help="The query; - reads it from standard input, text or a JSON object.", show_default=False)
]
Index = Annotated[Path, typer.Argument(help="The index directory.", show_default=False)]
JsonFlag = Annotated[bool, typer.Option("--json", help="JSON even on a terminal.")]
Trust = Annotated[bool, typer.Option("--trust", help="Skip the comparison of hashes.")]


def with_options(**groups: Mapping[str, object]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds groups of options to a command, which gets each group as one mapping of the values that were given."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name not in groups]
        added = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if get_args(annotation)[0] is bool else None,
                annotation=annotation,
            )
            for group in groups.values()
            for name, annotation in group.items()
        ]

        @functools.wraps(command)
        def run(*args: object, **kwargs: object) -> None:
            gathered = {group: {name: kwargs.pop(name) for name in options} for group, options in groups.items()}
            given = {g: {n: v for n, v in values.items() if not _left_out(v)} for g, values in gathered.items()}
            command(*args, **kwargs, **given)

        return with_parameters(run, [*own, *added])

    return decorate


def with_parameters(run: Callable[..., Result], parameters: Sequence[inspect.Parameter]) -> Callable[..., Result]:
    """A function that `functools.wraps` another, with parameters of its own: what typer makes arguments of."""
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__  # type: ignore[attr-defined]
    return run


def _left_out(value: object) -> bool:
    """Whether an option was not given; 0 and the empty text are values."""
    return value is None or value is False or value == []


def recipe_options(recipe: Mapping[str, object]) -> Options:
    """The group `RECIPE` as keyword arguments of `Retriever.select`."""
    options = {name: _off(name, value) for name, value in recipe.items()}
    if "where" in options:
        options["where"] = single_where(cast("list[str]", options["where"]))
    if "option" in options:
        options["options"] = settings_of(cast("list[str]", options.pop("option")))
    return cast("Options", options)


def single_where(values: Sequence[str] | None) -> str | None:
    """The filter, if there is one.

    Raises:
        InvalidInput: There are several, of which the last would take the place of the others.
    """
    from retriever.errors import InvalidInput

    if values and len(values) > 1:
        joined = " and ".join(f"({value})" for value in values)
        raise InvalidInput(f"--where {len(values)} times", expected="once", fix=f"join them: --where '{joined}'")
    return values[0] if values else None


def _off(name: str, value: object) -> object:
    """The value of an option; nothing where it switches off what the index's recipe says."""
    if value == "" or (name == "rerank" and value == "none"):
        return None
    return [] if value == [""] else value


def settings_of(texts: Sequence[str]) -> dict[str, Json]:
    """A strategy's own settings from NAME=VALUE texts."""
    return dict(_setting(text) for text in texts)


def _setting(text: str) -> tuple[str, Json]:
    """A setting from NAME=VALUE; the value is TOML, or else a text."""
    import tomllib

    from retriever.errors import InvalidInput

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InvalidInput(f"--option {text!r}", expected="NAME=VALUE")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value


def fields_of(options: Mapping[str, object]) -> Fields:
    """Where the group `FIELDS` says that an example's attributes are."""
    from retriever import Fields

    named = {name: value for name, value in options.items() if name != "no_output"}
    if options.get("no_output"):
        named["output"] = None
    return Fields(**cast("dict[str, str]", named))


class Reading(TypedDict, total=False):
    """How a file is read; what is left out has its default."""

    format: str
    table: str
    encoding: str


def reading_of(options: Mapping[str, object]) -> Reading:
    """The group `SOURCE` as keyword arguments of whatever reads a file."""
    return cast("Reading", dict(options))


def embedder_of(options: Mapping[str, object]) -> EmbedderSettings | None:
    """The embedder that the group `EMBEDDER` names; None when it names none."""
    from retriever import EmbedderSettings

    if not options:
        return None
    named = {"embedder": "name", "embedder_url": "base_url"}
    given = {named.get(option, option): value for option, value in options.items()}
    return EmbedderSettings(**cast("dict[str, str]", given))  # type: ignore[arg-type]


def prompt_options_of(options: Mapping[str, object]) -> PromptOptions:
    """The group `PROMPT` as the library takes it."""
    from retriever.errors import InvalidInput

    chosen = dict(options)
    slots = {}
    for slot in cast("list[str]", chosen.pop("slot", [])):
        name, equals, value = slot.partition("=")
        if not equals:
            raise InvalidInput(f"--slot {slot!r}", expected="NAME=VALUE")
        slots[name] = value
    return cast("PromptOptions", {**chosen, "slots": slots} if slots else chosen)


def limits_of(options: Mapping[str, object]) -> Limits:
    """The limits that the groups `ROW_LIMITS` and `PROMPT_LIMITS` change."""
    from retriever import Limits

    return Limits(**{name.removeprefix("max_"): cast("int", value) for name, value in options.items()})


def eval_settings_of(options: Mapping[str, object], prompt: Mapping[str, object]) -> EvalSettings:
    """The groups `EVALUATION` and `PROMPT` as `evaluate` takes them."""
    from retriever.evaluation.evaluate import EvalSettings

    given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return EvalSettings(**given, prompt=prompt_options_of(prompt))  # type: ignore[arg-type]


def tune_settings_of(options: Mapping[str, object], prompt: Mapping[str, object]) -> TuneSettings:
    """The groups `TUNING` and `PROMPT` as `tune` takes them."""
    from retriever.evaluation.tune import TuneSettings

    given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return TuneSettings(**given, prompt=prompt_options_of(prompt))  # type: ignore[arg-type]


def finetune_settings_of(options: Mapping[str, object]) -> FinetuneSettings:
    """The group `FINE_TUNING` as `Retriever.fine_tune` takes it."""
    from retriever.adaptation.training import FinetuneSettings

    return FinetuneSettings(**options)  # type: ignore[arg-type]


def asking_of(options: Mapping[str, object]) -> Asking | None:
    """The language model that the group `ASKING` names, and how much may be asked of it; None when it names none."""
    from retriever.backends import BackendSettings, load_backend
    from retriever.errors import InvalidInput
    from retriever.evaluation.answers import AnswerCache, backend_identity, default_cache, shown_backend
    from retriever.evaluation.asking import Asking

    if "backend" not in options:
        if options:
            raise InvalidInput(f"--{next(iter(options)).replace('_', '-')} without --backend")
        return None
    backend = str(options["backend"])
    given = {name: options[name] for name in ("base_url", "temperature", "timeout", "retries") if name in options}
    if "answer_tokens" in options:
        given["max_tokens"] = options["answer_tokens"]
    settings = BackendSettings(**given)  # type: ignore[arg-type]
    cache = cast("Path | None", options.get("cache"))
    if cache is None:
        cache = default_cache()
        cache.parent.mkdir(parents=True, exist_ok=True)
    budget = {name: options[name] for name in ("concurrency", "max_calls", "max_tokens") if name in options}
    with AnswerCache(cache):  # one that cannot be used is told now, not after the work
        call = load_backend(backend, settings=settings)
    return Asking(
        call,
        backend_identity(backend, settings),
        shown_backend(backend),
        cache,
        answer_tokens=settings.max_tokens,
        **cast("dict[str, int]", budget),
    )
