"""The command line: verbs, options, printing. What they do is in `retriever`."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from retriever.display import (
    BadRows,
    emit_csv,
    note,
    show_adaptation,
    show_audit,
    show_cost,
    show_curation,
    show_evaluation,
    show_plan,
    show_prompt,
    show_selection,
    show_tuning,
    show_verification,
)
from retriever.interrupt import insisting
from retriever.options import (
    ASKING,
    BUDGET,
    EMBEDDER,
    EVALUATION,
    FIELDS,
    PROMPT,
    PROMPT_LIMITS,
    RECIPE,
    ROW_LIMITS,
    TUNING,
    AdaptKind,
    Curate,
    EvalForm,
    ExportForm,
    Index,
    JsonFlag,
    PromptForm,
    Query,
    RecipeFile,
    Trust,
    asking_of,
    embedder_of,
    eval_settings_of,
    fields_of,
    limits_of,
    prompt_options_of,
    recipe_options,
    settings_of,
    size,
    tune_settings_of,
    with_options,
)
from retriever.terminal import amount, columns, inert_json, printable, printable_lines, progress, table

if TYPE_CHECKING:
    from retriever import Retriever
    from retriever.example import Example, Json

Result = TypeVar("Result")
Source = Annotated[Path, typer.Argument(metavar="FILE", help="File of examples; - is standard input.")]
DefaultRecipe = Annotated[
    Path | None,
    typer.Option("--recipe", help="Recipe, TOML or .json: the index's default.", rich_help_panel="Selection"),
]
TrueQueries = Annotated[
    Path | None, typer.Argument(help="File of queries with their true outputs or labels.", show_default=False)
]
ComparedRecipes = Annotated[
    list[Path] | None, typer.Option("--recipe", help="Recipe to compare; left out: every mode.", show_default=False)
]
QrelsFile = Annotated[Path | None, typer.Option("--qrels", help="File of relevance judgements.", show_default=False)]
MaxMemory = Annotated[
    int | None,
    typer.Option(
        "--max-memory",
        parser=size,
        metavar="SIZE",
        help="Most memory for a build; more is refused.",
        show_default=False,
    ),
]

app = typer.Typer(
    name="retriever",
    help="Find the worked examples that help a language model most, and put them into the prompt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Data goes to standard output, everything else to standard error. JSON when piped or with --json.",
    rich_markup_mode=None,
)
_state = {"debug": False}


# Output


def _emit(value: object) -> None:
    typer.echo(inert_json(value, indent=2 if sys.stdout.isatty() else None))


def _wants_json(flag: bool) -> bool:
    return flag or not sys.stdout.isatty()


# Errors


def _reported(command: Callable[..., Result]) -> Callable[..., Result]:
    """The command with its errors in one line and as exit codes; a traceback only with --debug."""

    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> Result:
        from retriever.errors import RetrieverError

        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of our output has gone; Python must not complain about it while it exits.
            sys.stdout = open("/dev/null", "w", encoding="utf-8")  # noqa: PTH123, SIM115
            raise typer.Exit(0) from None
        except (RetrieverError, OSError) as error:
            if _state["debug"]:
                raise
            typer.echo(f"error: {printable(str(error))}", err=True)
            raise typer.Exit(getattr(error, "exit_code", 1)) from None

    return run


def _open(
    index: Path, embedder: Mapping[str, object], *, trust: bool = False, limits: Mapping[str, object] | None = None
) -> Retriever:
    from retriever import Retriever

    return Retriever.open(index, embedder=embedder_of(embedder), trust=trust, limits=limits_of(limits or {}), note=note)


def _read_query(query: str) -> str | dict[str, Json]:
    """The query; on standard input a JSON object gives further fields, anything else is its text."""
    from retriever.errors import InvalidInput

    try:
        text = sys.stdin.read().strip("\n") if query == "-" else query
        text.encode()
    except UnicodeError:
        raise InvalidInput("a query that is not UTF-8", expected="text in UTF-8") from None
    if query != "-":
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _version(wanted: bool) -> None:
    if not wanted:
        return
    import sqlite3
    from importlib.metadata import version

    from indexes.generation import FORMAT_VERSION

    typer.echo(f"demonstration-retriever {version('demonstration-retriever')}, index format {FORMAT_VERSION}")
    typer.echo(f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}")
    names = ("numpy", "faiss-cpu", "sentence-transformers", "torch", "scikit-learn", "PyStemmer", "sqlite-utils")
    typer.echo(", ".join(f"{name} {version(name)}" for name in names))
    raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show versions, of native parts too.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    _state["debug"] = debug


# Commands


@app.command(no_args_is_help=True)
@_reported
@with_options(fields=FIELDS, embedder=EMBEDDER, limits=ROW_LIMITS)
def build(
    pools: Annotated[list[Path], typer.Argument(metavar="POOL...", help="Files of examples; - is standard input.")],
    output_path: Annotated[Path, typer.Option("-o", "--out", metavar="INDEX", help="The index directory to make.")],
    format: Annotated[str | None, typer.Option(help="jsonl, json, csv, tsv, parquet or sqlite.")] = None,
    table: Annotated[str | None, typer.Option(help="Table of a SQLite file.")] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of a text file.")] = "utf-8",
    key: Annotated[str, typer.Option(help="What is indexed: a field, a+b, or a $template.")] = "input",
    analyzer: Annotated[str, typer.Option(help="default, stem:LANGUAGE, code or char:N.")] = "default",
    lexical: Annotated[str, typer.Option(help="bm25, or rank-bm25 for checking.")] = "bm25",
    bm25: Annotated[str, typer.Option(help="lucene, okapi, plus or l.")] = "lucene",
    ann: Annotated[str | None, typer.Option(help="FAISS factory string, e.g. HNSW32.")] = None,
    recall: Annotated[float | None, typer.Option(help="Choose a FAISS index that finds this share, e.g. 0.98.")] = None,
    vectors: Annotated[str, typer.Option(help="float32, float16 or int8: how vectors are stored.")] = "float32",
    token_vectors: Annotated[bool, typer.Option("--token-vectors", help="Store a vector for each token.")] = False,
    weight: Annotated[float | None, typer.Option(help="Share of the dense channel; left out: calibrated.")] = None,
    recipe_file: DefaultRecipe = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse the pool if a row is bad (exit 7).")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the examples of an index.")] = False,
    max_memory: MaxMemory = None,
    json_output: JsonFlag = False,
    *,
    fields: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Build an index from files of examples.

    \b
    retriever build tickets.jsonl -o tickets.index --input text --output intent
    retriever build faq.csv -o faq.index --key '$input $meta.product' --embedder latent
    """
    from retriever import IndexSettings, Retriever

    bad = BadRows()
    started = time.monotonic()
    with progress() as shown:
        retriever = Retriever.build(
            "-" if pools == [Path("-")] else pools,
            output_path,
            **asdict(fields_of(fields)),
            format=format,
            table=table,
            encoding=encoding,
            settings=IndexSettings(
                key, analyzer, lexical, bm25, ann=ann, token_vectors=token_vectors, vectors=vectors, recall=recall
            ),
            embedder=embedder_of(embedder) or "auto",
            weight=weight,
            strict=strict,
            overwrite=overwrite,
            max_memory=max_memory,
            recipe=recipe_file,
            limits=limits_of(limits),
            on_bad=bad,
            on_plan=show_plan,
            note=note,
            progress=shown,
        )
    with retriever:
        bad.report()
        info = retriever.info()
    if _wants_json(json_output):
        _emit({**info, "bad_rows": bad.count})
    else:
        typer.echo(
            f"{info['examples']:,} examples in {output_path} ({time.monotonic() - started:.1f} s), "
            f"embedder {_at(info, 'embedder', 'name')}, "
            f"fusion weight {_at(info, 'fusion', 'weight')} ({_at(info, 'fusion', 'objective')})"
        )


def _at(info: Mapping[str, Json], section: str, name: str) -> Json:
    inside = info[section]
    assert isinstance(inside, dict)
    return inside[name]


@app.command(no_args_is_help=True)
@_reported
@with_options(recipe=RECIPE, embedder=EMBEDDER, limits=PROMPT_LIMITS)
def select(
    index: Index,
    query: Query,
    recipe_file: RecipeFile = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show what was left out, and the recipe.")] = False,
    json_output: JsonFlag = False,
    trust: Trust = False,
    *,
    recipe: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Show the demonstrations for a query, best first.

    \b
    retriever select tickets.index "my card still has not arrived" -k 4
    retriever select tickets.index "where is my order" --where 'language == "en"' --explain
    """
    with _open(index, embedder, trust=trust, limits=limits) as retriever:
        selection = retriever.select(_read_query(query), recipe=recipe_file, **recipe_options(recipe))
    if _wants_json(json_output):
        _emit(selection.to_dict())
    else:
        show_selection(selection, explain=explain)


@app.command(no_args_is_help=True)
@_reported
@with_options(recipe={**RECIPE, **BUDGET}, prompt_options=PROMPT, embedder=EMBEDDER, limits=PROMPT_LIMITS)
def prompt(
    index: Index,
    query: Query,
    recipe_file: RecipeFile = None,
    format: Annotated[PromptForm | None, typer.Option("--format", help="messages (JSON) or text.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Tell what each demonstration takes.")] = False,
    trust: Trust = False,
    *,
    recipe: Mapping[str, object],
    prompt_options: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Print the prompt for a query: text on a terminal, else messages.

    \b
    retriever prompt tickets.index "my card still has not arrived" --format text
    retriever prompt tickets.index "where is my order" --template classification --tokens 2000
    """
    form = format or ("text" if sys.stdout.isatty() else "messages")
    with _open(index, embedder, trust=trust, limits=limits) as retriever:
        selection = retriever.select(_read_query(query), recipe=recipe_file, **recipe_options(recipe))
        made = retriever.prompt(selection, prompt_options={**prompt_options_of(prompt_options), "form": form})
        text = made.text if form == "text" else ""
    show_prompt(made, selection, explain=explain)
    if form == "messages":
        _emit(made.messages)
    else:
        typer.echo(printable_lines(text) if sys.stdout.isatty() else text)


@app.command(no_args_is_help=True)
@_reported
@with_options(recipe={**RECIPE, **BUDGET}, prompt_options=PROMPT, embedder=EMBEDDER, limits=PROMPT_LIMITS)
def ask(
    index: Index,
    query: Query,
    backend: Annotated[str, typer.Option(help="openai:MODEL, transformers:PATH or command:PROGRAM.")],
    recipe_file: RecipeFile = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the demonstrations, too.")] = False,
    base_url: Annotated[str | None, typer.Option("--base-url", help="Where an OpenAI-compatible server is.")] = None,
    max_tokens: Annotated[int, typer.Option(help="The most tokens of the answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 for the most likely answer.")] = 0.0,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 60.0,
    json_output: JsonFlag = False,
    trust: Trust = False,
    *,
    recipe: Mapping[str, object],
    prompt_options: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Ask a language model, with demonstrations in the prompt.

    \b
    retriever ask tickets.index "where is my order" --backend openai:gpt-4o-mini
    retriever ask tickets.index "where is my order" --backend openai:qwen --base-url http://localhost:8000/v1
    """
    from retriever.backends import BackendSettings, load_backend

    settings = BackendSettings(max_tokens=max_tokens, temperature=temperature, timeout=timeout, base_url=base_url)
    call = load_backend(backend, settings=settings)
    with _open(index, embedder, trust=trust, limits=limits) as retriever:
        selection = retriever.select(_read_query(query), recipe=recipe_file, **recipe_options(recipe))
        made = retriever.prompt(selection, prompt_options=prompt_options_of(prompt_options))
    answer = call(made)
    if json_output:
        _emit({"answer": answer, "tokens": made.tokens, "selection": selection.to_dict()})
        return
    if explain:
        show_selection(selection, explain=True)
        typer.echo()
    typer.echo(printable_lines(answer) if sys.stdout.isatty() else answer)


@app.command(no_args_is_help=True)
@_reported
@with_options(recipe={**RECIPE, **BUDGET}, prompt_options=PROMPT, embedder=EMBEDDER, limits=PROMPT_LIMITS)
def export(
    index: Index,
    queries: Annotated[Path, typer.Argument(help="File of queries; - is standard input.", show_default=False)],
    output_path: Annotated[Path, typer.Option("-o", "--out", help="A .jsonl, .parquet, .csv or .tsv file, or -.")],
    form: Annotated[ExportForm, typer.Option("--as", help="What is written.")] = "demos",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an export that was interrupted.")] = False,
    recipe_file: RecipeFile = None,
    input: Annotated[str, typer.Option(help="Field of the input; a name, path or $template.")] = "input",
    id: Annotated[str, typer.Option(help="Field of the id.")] = "id",
    format: Annotated[str | None, typer.Option(help="Format of QUERIES.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Write nothing if a query is bad (exit 7).")] = False,
    model: Annotated[str | None, typer.Option(help="Model, for the batch forms.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each answer, for the batch forms.")] = 1024,
    temperature: Annotated[float | None, typer.Option(help="For the batch forms.")] = None,
    trust: Trust = False,
    *,
    recipe: Mapping[str, object],
    prompt_options: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Write demonstrations or prompts for a file of queries.

    \b
    retriever export tickets.index queries.jsonl -o demos.jsonl -k 4
    retriever export tickets.index queries.csv -o batch.jsonl --as openai-batch --model gpt-4o-mini
    """
    from retriever import Fields
    from retriever.export import ExportSettings
    from retriever.export import export as write
    from retriever.formats import read_queries
    from retriever.prompting import BatchSettings

    batch = None if model is None else BatchSettings(model, max_tokens, temperature)
    bad = BadRows(strict=strict)
    with _open(index, embedder, trust=trust, limits=limits) as retriever, progress() as shown:
        chosen = retriever.effective_recipe(recipe_file, **recipe_options(recipe))
        settings = ExportSettings(form, chosen, prompt_options_of(prompt_options), batch)
        found = read_queries(str(queries), fields=Fields(input=input, id=id), format=format, on_bad=bad)
        count = write(retriever, found, output_path, settings, resume=resume, note=note, progress=shown)
    bad.report()
    typer.echo(f"{count:,} records in {output_path}", err=True)


@app.command(no_args_is_help=True)
@_reported
@with_options(fields=FIELDS, embedder=EMBEDDER, limits=ROW_LIMITS)
def add(
    index: Index,
    source: Source,
    strict: Annotated[bool, typer.Option("--strict", help="Add nothing if a row is bad (exit 7).")] = False,
    json_output: JsonFlag = False,
    *,
    fields: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Add examples to an index; an id that it has already is set aside.

    \b
    retriever add tickets.index new.jsonl --input text --output intent
    echo '{"input": "hi", "output": "hello"}' | retriever add tickets.index -
    """
    bad = BadRows()
    with _open(index, embedder, limits=limits) as retriever:
        ids = retriever.add(str(source), fields=fields_of(fields), strict=strict, on_bad=bad)
        count = len(retriever)
    bad.report()
    if _wants_json(json_output):
        _emit({"added": list(ids), "bad_rows": bad.count, "examples": count})
    else:
        typer.echo(f"{len(ids):,} added, {count:,} examples now")


@app.command(no_args_is_help=True)
@_reported
@with_options(fields=FIELDS, embedder=EMBEDDER, limits=ROW_LIMITS)
def update(
    index: Index,
    source: Source,
    strict: Annotated[bool, typer.Option("--strict", help="Change nothing if a row is bad (exit 7).")] = False,
    json_output: JsonFlag = False,
    *,
    fields: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Add examples to an index, in place of those with the same ids.

    \b
    retriever update tickets.index corrected.jsonl --input text --output intent
    echo '{"id": "s017", "input": "hi", "output": "hello"}' | retriever update tickets.index -
    """
    bad = BadRows()
    with _open(index, embedder, limits=limits) as retriever:
        done = retriever.update(str(source), fields=fields_of(fields), strict=strict, on_bad=bad)
        count = len(retriever)
    bad.report()
    if _wants_json(json_output):
        _emit({**asdict(done), "bad_rows": bad.count, "examples": count})
    else:
        parts = f"{len(done.added):,} added, {len(done.replaced):,} replaced, {len(done.unchanged):,} unchanged"
        typer.echo(f"{parts}, {count:,} examples now")


@app.command(no_args_is_help=True)
@_reported
def remove(
    index: Index,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of examples.", show_default=False)],
    json_output: JsonFlag = False,
) -> None:
    """Remove examples from an index.

    \b
    retriever remove tickets.index s017
    retriever remove tickets.index s017 s018 --json
    """
    with _open(index, {}) as retriever:
        removed = retriever.remove(ids)
        count = len(retriever)
    if _wants_json(json_output):
        _emit({"removed": removed, "examples": count})
    else:
        typer.echo(f"{removed:,} removed, {count:,} examples now")


@app.command(no_args_is_help=True)
@_reported
def compact(index: Index, json_output: JsonFlag = False) -> None:
    """Fold the changes since the last generation into a new one.

    \b
    retriever compact tickets.index
    retriever compact tickets.index --json
    """
    with _open(index, {}) as retriever:
        generation = retriever.compact()
    if _wants_json(json_output):
        _emit({"generation": generation})
    else:
        typer.echo(f"{generation} holds all changes")


@app.command(no_args_is_help=True)
@_reported
def gc(index: Index, json_output: JsonFlag = False) -> None:
    """Remove generations that nobody needs.

    \b
    retriever gc tickets.index
    retriever gc tickets.index --json
    """
    from retriever.writing import collect

    removed = collect(index)
    if _wants_json(json_output):
        _emit({"removed": list(removed)})
    else:
        typer.echo(f"removed: {', '.join(removed) or 'nothing'}")


@app.command(no_args_is_help=True)
@_reported
@with_options(embedder=EMBEDDER)
def verify(
    index: Index,
    mend: Annotated[bool, typer.Option("--repair", help="Build what is damaged again, from the pool.")] = False,
    json_output: JsonFlag = False,
    *,
    embedder: Mapping[str, object],
) -> None:
    """Check every file and example of an index (exit 4: damaged).

    \b
    retriever verify tickets.index
    retriever verify tickets.index --repair
    """
    from retriever.repair import repair
    from retriever.verification import verify as check

    made = None
    with progress() as shown:
        found = check(index, progress=shown)
        if mend and not found.intact:
            for problem in found.problems:
                note(str(problem))
            made = repair(index, embedder=embedder_of(embedder), note=note, progress=shown)
            found = check(index, progress=shown)
    if _wants_json(json_output):
        problems = [{**asdict(problem), "path": str(problem.path)} for problem in found.problems]
        repaired = None if made is None else asdict(made)
        _emit({"intact": found.intact, "rows": found.rows, "problems": problems, "repaired": repaired})
    else:
        show_verification(found, made)
    if not found.intact:
        raise typer.Exit(4)


@app.command(no_args_is_help=True)
@_reported
def info(index: Index, json_output: JsonFlag = False, trust: Trust = False) -> None:
    """Show what an index holds and how it was built.

    \b
    retriever info tickets.index
    retriever info tickets.index --json
    """
    with _open(index, {}, trust=trust) as retriever:
        found = retriever.info()
    if _wants_json(json_output):
        _emit(found)
        return
    for name, value in found.items():
        inside = value if isinstance(value, dict) else {"": value}
        for key, part in inside.items():
            shown = part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
            typer.echo(f"{f'{name}.{key}'.rstrip('.'):26}  {printable(shown, width=max(40, columns() - 28))}")


@app.command()
@_reported
def demo(
    query: Annotated[str | None, typer.Argument(help="A message to a support desk.", show_default=False)] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="How many demonstrations.")] = 4,
    embedder: Annotated[str, typer.Option(help="auto, latent, or any other.")] = "auto",
) -> None:
    """Try it on the built-in sample: index, demonstrations, prompt.

    \b
    retriever demo
    retriever demo "the parcel is late again" -k 3
    """
    import tempfile

    from retriever import Retriever
    from retriever.data import sample_pool, sample_queries

    asked = query if query is not None else sample_queries()[0].input_text
    with tempfile.TemporaryDirectory() as folder, progress() as shown:
        made = Retriever.build(sample_pool(), Path(folder) / "demo.index", embedder=embedder, note=note, progress=shown)
        with made as retriever:
            found = retriever.info()
            selection = retriever.select(asked, k=k)
            text = retriever.prompt(selection).text
    typer.echo(f"Pool: {found['examples']} support messages with replies. Embedder: {_at(found, 'embedder', 'name')}.")
    typer.echo(f"Query: {printable(asked)}\n")
    show_selection(selection, explain=True)
    typer.echo("\nThe prompt (best demonstration last, next to the query):\n")
    typer.echo(printable_lines(text))


@app.command(no_args_is_help=True)
@_reported
def curate(
    index: Index,
    budget: Annotated[int, typer.Option(help="How many examples, at most.")],
    strategy: Annotated[Curate, typer.Option(help="How they are chosen.")] = "votek",
    where: Annotated[str | None, typer.Option(help="Choose among these, e.g. 'language == \"en\"'.")] = None,
    held: Annotated[list[str] | None, typer.Option(help="ID that is chosen already.", show_default=False)] = None,
    option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the strategy.", show_default=False)] = None,
    json_output: JsonFlag = False,
    trust: Trust = False,
) -> None:
    """Choose examples to annotate, or to show with every query.

    \b
    retriever curate unlabelled.index --budget 100 > to_annotate.json
    retriever curate tickets.index --strategy cluster --budget 8 --where 'language == "en"'
    """
    from retriever.curation.curate import CurateSettings
    from retriever.curation.curate import curate as choose

    settings = CurateSettings(strategy, budget, where, tuple(held or ()), settings_of(option or []))
    with _open(index, {}, trust=trust) as retriever, progress() as shown:
        found = choose(retriever.snapshot, settings, shown)
    if _wants_json(json_output):
        _emit(found.to_dict())
    else:
        show_curation(found)


@app.command(no_args_is_help=True)
@_reported
def audit(
    index: Index,
    queries: Annotated[
        Path | None, typer.Argument(help="File of queries that must not be in the pool.", show_default=False)
    ] = None,
    threshold: Annotated[float, typer.Option(help="Likeness of near copies, up to 1.")] = 0.9,
    neighbours: Annotated[int, typer.Option(help="How many of the nearest must agree against a label.")] = 10,
    most: Annotated[int | None, typer.Option(help="Findings of each kind (20 in a table, else all).")] = None,
    input: Annotated[str, typer.Option(help="Field of a query's input; a name, path or $template.")] = "input",
    id: Annotated[str, typer.Option(help="Field of a query's id.")] = "id",
    format: Annotated[str | None, typer.Option(help="Format of QUERIES.")] = None,
    json_output: JsonFlag = False,
    trust: Trust = False,
) -> None:
    """Find contradictions, copies, leaks and odd examples in a pool.

    \b
    retriever audit tickets.index
    retriever audit tickets.index test.jsonl > findings.json
    """
    from retriever import Fields
    from retriever.curation.audit import AuditSettings
    from retriever.curation.audit import audit as look
    from retriever.formats import read_queries

    bad = BadRows()
    listed = most if most is not None or _wants_json(json_output) else 20
    settings = AuditSettings(threshold, neighbours, listed)
    asked = (
        () if queries is None else read_queries(str(queries), fields=Fields(input, id=id), format=format, on_bad=bad)
    )
    with _open(index, {}, trust=trust) as retriever, progress() as shown:
        found = look(retriever.snapshot, asked, settings, shown)
    bad.report()
    if _wants_json(json_output):
        _emit(found.to_dict())
    else:
        show_audit(found)


def _true_queries(
    queries: Path | None, fields: Mapping[str, object], format: str | None, bad: BadRows
) -> Iterator[Example] | None:
    """The queries of a file, if one was named."""
    from retriever.formats import read_queries

    return None if queries is None else read_queries(str(queries), fields=fields_of(fields), format=format, on_bad=bad)


@app.command(name="eval", no_args_is_help=True)
@_reported
@with_options(
    evaluation=EVALUATION,
    model=ASKING,
    fields=FIELDS,
    prompt_options=PROMPT,
    embedder=EMBEDDER,
    limits=PROMPT_LIMITS,
)
def evaluate_(
    index: Index,
    queries: TrueQueries = None,
    leave_one_out: Annotated[
        int | None, typer.Option("--leave-one-out", help="In place of QUERIES: ask N examples of the pool.")
    ] = None,
    recipe_files: ComparedRecipes = None,
    qrels: QrelsFile = None,
    form: Annotated[EvalForm | None, typer.Option("--as", help="table, json or csv.", show_default=False)] = None,
    times: Annotated[bool, typer.Option("--times", help="Tell how long a selection takes.")] = False,
    format: Annotated[str | None, typer.Option(help="Format of QUERIES.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop if a query is bad (exit 7).")] = False,
    json_output: JsonFlag = False,
    trust: Trust = False,
    *,
    evaluation: Mapping[str, object],
    model: Mapping[str, object],
    fields: Mapping[str, object],
    prompt_options: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Compare recipes on queries whose answers are known.

    \b
    retriever eval tickets.index --leave-one-out 500 --recipe mmr.toml
    retriever eval tickets.index test.jsonl --backend openai:gpt-4o-mini --metric exact --max-calls 300
    """
    from retriever.evaluation.evaluate import evaluate, recipes_of
    from retriever.evaluation.queries import read_qrels

    bad = BadRows(strict=strict)
    settings = eval_settings_of(evaluation, prompt_options)
    asked = _true_queries(queries, fields, format, bad)
    judged = None if qrels is None else read_qrels(qrels)
    asking = asking_of(model)
    with _open(index, embedder, trust=trust, limits=limits) as retriever, progress() as shown:
        found = evaluate(
            retriever,
            recipes_of(retriever, recipe_files or ()),
            asked,
            leave_one_out=leave_one_out,
            qrels=judged,
            settings=settings,
            asking=asking,
            on_cost=show_cost,
            progress=shown,
        )
    bad.report()
    if form == "csv":
        emit_csv(found.rows(times=times))
    elif form == "json" or (form is None and _wants_json(json_output)):
        _emit(found.to_dict(times=times))
    else:
        show_evaluation(found, worst=settings.worst, times=times)


@app.command(name="tune", no_args_is_help=True)
@_reported
@with_options(tuning=TUNING, fields=FIELDS, prompt_options=PROMPT, embedder=EMBEDDER, limits=PROMPT_LIMITS)
def tune_(
    index: Index,
    queries: TrueQueries = None,
    leave_one_out: Annotated[
        int | None, typer.Option("--leave-one-out", help="In place of QUERIES: ask N examples of the pool (2,000).")
    ] = None,
    recipe_files: Annotated[
        list[Path] | None, typer.Option("--recipe", help="Recipe to try as well.", show_default=False)
    ] = None,
    qrels: QrelsFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave the index as it is.")] = False,
    format: Annotated[str | None, typer.Option(help="Format of QUERIES.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop if a query is bad (exit 7).")] = False,
    json_output: JsonFlag = False,
    *,
    tuning: Mapping[str, object],
    fields: Mapping[str, object],
    prompt_options: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Search a better recipe, and keep it if it surely is one.

    \b
    retriever tune tickets.index --dry-run
    retriever tune tickets.index dev.jsonl --metric majority-vote --try-k 4 --try-k 16 --token-cost 0.01
    """
    from retriever.evaluation.queries import read_qrels
    from retriever.evaluation.tune import tune

    bad = BadRows(strict=strict)
    asked = _true_queries(queries, fields, format, bad)
    judged = None if qrels is None else read_qrels(qrels)
    with _open(index, embedder, limits=limits) as retriever, progress() as shown:
        found = tune(
            retriever,
            asked,
            leave_one_out=leave_one_out,
            qrels=judged,
            recipes={str(file): file for file in recipe_files or ()},
            settings=tune_settings_of(tuning, prompt_options),
            dry_run=dry_run,
            progress=shown,
        )
    bad.report()
    if _wants_json(json_output):
        _emit(found.to_dict())
    else:
        show_tuning(found)


@app.command(no_args_is_help=True)
@_reported
@with_options(fields=FIELDS, embedder=EMBEDDER, limits=PROMPT_LIMITS)
def report(
    index: Index,
    page: Annotated[Path, typer.Option("-o", "--out", help="The page to write.", show_default=False)],
    queries: Annotated[
        Path | None,
        typer.Option("--queries", help="File of queries with their true outputs or labels.", show_default=False),
    ] = None,
    leave_one_out: Annotated[
        int, typer.Option("--leave-one-out", help="Without --queries: ask N examples of the pool.")
    ] = 300,
    recipe_files: ComparedRecipes = None,
    k: Annotated[
        int | None, typer.Option("-k", "--k", help="How many demonstrations (as the recipes say).", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of samples and resamples.")] = 0,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Do not look for copies and conflicts.")] = False,
    format: Annotated[str | None, typer.Option(help="Format of the queries.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop if a query is bad (exit 7).")] = False,
    json_output: JsonFlag = False,
    trust: Trust = False,
    *,
    fields: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Write a page about an index: faults, map, recipes, worst queries.

    \b
    retriever report tickets.index -o report.html
    retriever report tickets.index --queries test.jsonl -o report.html
    """
    from retriever.evaluation.evaluate import recipes_of
    from retriever.evaluation.report import ReportSettings, write_report

    bad = BadRows(strict=strict)
    settings = ReportSettings(leave_one_out=leave_one_out, k=k, seed=seed, audit=not no_audit)
    asked = _true_queries(queries, fields, format, bad)
    with _open(index, embedder, trust=trust, limits=limits) as retriever, progress() as shown:
        compared = recipes_of(retriever, recipe_files or ())
        size = write_report(retriever, page, asked, recipes=compared, settings=settings, progress=shown)
    bad.report()
    if _wants_json(json_output):
        _emit({"path": str(page), "bytes": size})
    else:
        typer.echo(f"{printable(str(page))} written, {amount(size)}")


recipes = typer.Typer(name="recipe", help="Show and check recipes.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(recipes)


@recipes.command(name="show")
@_reported
@with_options(recipe={**RECIPE, **BUDGET})
def recipe_show(
    recipe_file: RecipeFile = None,
    index: Annotated[Path | None, typer.Option("--index", help="Begin with the recipe of this index.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="JSON instead of TOML.")] = False,
    *,
    recipe: Mapping[str, object],
) -> None:
    """Print a recipe with every default filled in.

    \b
    retriever recipe show --strategy mmr -k 4 > mmr.toml
    retriever recipe show --index tickets.index
    """
    from retriever import Recipe
    from retriever.errors import InvalidInput

    if index is not None and recipe_file is not None:
        raise InvalidInput("both --index and --recipe", expected="the one or the other")
    begin = Recipe.of(recipe_file)
    if index is not None:
        with _open(index, {}) as retriever:
            begin = retriever.recipe
    shown = begin.with_options(recipe_options(recipe)).filled()
    if json_output:
        _emit(shown.to_dict())
    else:
        typer.echo(shown.to_toml(), nl=False)


@recipes.command(name="check", no_args_is_help=True)
@_reported
def recipe_check(
    file: Annotated[Path, typer.Argument(help="A recipe, TOML or .json.", show_default=False)],
) -> None:
    """Check a recipe; exit 2 names the key at fault.

    \b
    retriever recipe check mmr.toml
    retriever recipe check mmr.toml && echo good
    """
    from retriever import Recipe

    Recipe.of(file)
    typer.echo(f"{file} is a recipe")


@recipes.command(name="set", no_args_is_help=True)
@_reported
def recipe_set(
    index: Index,
    file: Annotated[Path, typer.Argument(help="A recipe, TOML or .json.", show_default=False)],
    json_output: JsonFlag = False,
) -> None:
    """Make a recipe the default of an index.

    \b
    retriever recipe set tickets.index mmr.toml
    retriever recipe set tickets.index mmr.toml --json
    """
    with _open(index, {}) as retriever:
        generation = retriever.set_recipe(file)
    if _wants_json(json_output):
        _emit({"generation": generation})
    else:
        typer.echo(f"{generation} selects as {file} says")


@recipes.command(name="list")
@_reported
def recipe_list(json_output: JsonFlag = False) -> None:
    """List the strategies and their settings.

    \b
    retriever recipe list
    retriever recipe list --json
    """
    from retriever.ranking.strategies import strategy, strategy_names

    found = {name: asdict(strategy(name).options()) for name in strategy_names()}
    if _wants_json(json_output):
        _emit(found)
        return
    rows = [
        {"strategy": name, "options": ", ".join(f"{k}={json.dumps(v)}" for k, v in settings.items()) or "none"}
        for name, settings in found.items()
    ]
    typer.echo(table(rows))


@app.command(no_args_is_help=True)
@_reported
def adapt(
    index: Index,
    kind: Annotated[AdaptKind, typer.Option(help="The form of the map.")] = "linear",
    undo: Annotated[bool, typer.Option("--undo", help="Search the embedder's own vectors again.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Learn from labels or outputs what is alike; keep what helps.

    \b
    retriever adapt tickets.index
    retriever adapt tickets.index --undo
    """
    with _open(index, {}) as retriever, progress() as shown:
        if undo:
            generation = retriever.undo_adaptation()
            weight = retriever.snapshot.base.weight
        else:
            found = retriever.adapt(kind=kind, progress=shown)
            generation = retriever.generation
    if undo:
        if _wants_json(json_output):
            _emit({"generation": generation, "weight": weight})
        else:
            typer.echo(f"{generation} searches the embedder's own vectors; fusion weight {weight}")
    elif _wants_json(json_output):
        _emit({"generation": generation, **found.to_dict()})
    else:
        show_adaptation(found, generation)


def main(arguments: Sequence[str] | None = None) -> None:
    """The program `retriever`."""
    for output in (sys.stdout, sys.stderr):
        if hasattr(output, "reconfigure"):
            output.reconfigure(encoding="utf-8", errors="backslashreplace")
    with insisting():
        app(args=arguments)


if __name__ == "__main__":
    main()
