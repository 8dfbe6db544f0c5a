"""What selects: verbs that answer queries from an index."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from retriever.command_line.display import BadRows, emit_json, note, told_of, wants_json
from retriever.command_line.explaining import show_prompt, show_selection
from retriever.command_line.options import (
    BUDGET,
    EMBEDDER,
    PROMPT,
    PROMPT_LIMITS,
    RECIPE,
    SOURCE,
    ExportForm,
    Index,
    JsonFlag,
    PromptForm,
    Query,
    RecipeFile,
    Trust,
    prompt_options_of,
    recipe_options,
    with_options,
)
from retriever.command_line.refusals import check_output
from retriever.command_line.running import opened, read_asked, read_query, reported
from retriever.command_line.terminal import counted, printable, printable_lines, progress

app = typer.Typer()


@app.command(no_args_is_help=True)
@reported
@with_options(recipe=RECIPE, embedder=EMBEDDER, limits=PROMPT_LIMITS)
def select(
    index: Index,
    query: Query,
    recipe_file: RecipeFile = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show why, by which settings, and what was left out.")
    ] = False,
    json_output: JsonFlag = False,
    trust: Trust = False,
    *,
    recipe: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Show a query's demonstrations, best first; JSON: prompt order.

    \b
    retriever select tickets.index "my card still has not arrived" -k 4
    retriever select tickets.index "where is my order" --where 'language == "en"' --explain
    """
    with opened(index, embedder, trust=trust, limits=limits) as retriever:
        selection = retriever.select(read_query(query), recipe=recipe_file, **recipe_options(recipe))
    if wants_json(json_output):
        emit_json(selection.to_dict())
    else:
        show_selection(selection, explain=explain)


@app.command(no_args_is_help=True)
@reported
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
    retriever prompt tickets.index "where is my order" -k 16 --tokens 2000
    """
    form = format or ("text" if sys.stdout.isatty() else "messages")
    with opened(index, embedder, trust=trust, limits=limits) as retriever:
        selection = retriever.select(read_query(query), recipe=recipe_file, **recipe_options(recipe))
        made = retriever.prompt(selection, prompt_options={**prompt_options_of(prompt_options), "form": form})
        text = made.text if form == "text" else ""
    show_prompt(made, selection, explain=explain)
    if form == "messages":
        emit_json(made.messages)
    else:
        typer.echo(printable_lines(text) if sys.stdout.isatty() else text)


@app.command(no_args_is_help=True)
@reported
@with_options(recipe={**RECIPE, **BUDGET}, prompt_options=PROMPT, embedder=EMBEDDER, limits=PROMPT_LIMITS)
def ask(
    index: Index,
    query: Query,
    backend: Annotated[str, typer.Option(help="openai:MODEL, transformers:PATH or command:PROGRAM.")],
    recipe_file: RecipeFile = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the demonstrations, too.")] = False,
    base_url: Annotated[str | None, typer.Option("--base-url", help="Where an OpenAI-compatible server is.")] = None,
    max_tokens: Annotated[int, typer.Option(help="The most tokens of the answer (256).", show_default=False)] = 256,
    temperature: Annotated[float, typer.Option(help="0 for the most likely answer (0).", show_default=False)] = 0.0,
    timeout: Annotated[float, typer.Option(help="Seconds to wait (60).", show_default=False)] = 60.0,
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
    from retriever.backends.base import form_read

    settings = BackendSettings(max_tokens=max_tokens, temperature=temperature, timeout=timeout, base_url=base_url)
    call = load_backend(backend, settings=settings)
    with opened(index, embedder, trust=trust, limits=limits) as retriever:
        selection = retriever.select(read_query(query), recipe=recipe_file, **recipe_options(recipe))
        fitted = prompt_options_of({**prompt_options, "form": form_read(call)})
        made = retriever.prompt(selection, prompt_options=fitted)
    answer = call(made)
    if json_output:
        emit_json({"answer": answer, "tokens": made.tokens, "selection": selection.to_dict()})
        return
    if explain:
        show_selection(selection, explain=True)
        typer.echo()
    typer.echo(printable_lines(answer) if sys.stdout.isatty() else answer)


@app.command(no_args_is_help=True)
@reported
@with_options(
    source_options=SOURCE,
    recipe={**RECIPE, **BUDGET},
    prompt_options=PROMPT,
    embedder=EMBEDDER,
    limits=PROMPT_LIMITS,
)
def export(
    index: Index,
    queries: Annotated[Path, typer.Argument(help="File of queries; - is standard input.", show_default=False)],
    output_path: Annotated[Path, typer.Option("-o", "--out", help="A .jsonl, .parquet, .csv or .tsv file, or -.")],
    form: Annotated[ExportForm, typer.Option("--as", help="What is written.")] = "demos",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an export that was interrupted.")] = False,
    recipe_file: RecipeFile = None,
    input: Annotated[str, typer.Option(help="Field of the input; a name, path or $template.")] = "input",
    id: Annotated[str, typer.Option(help="Field of the id.")] = "id",
    strict: Annotated[bool, typer.Option("--strict", help="Write nothing if a query is bad (exit 7).")] = False,
    model: Annotated[str | None, typer.Option(help="Model, for the batch forms.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each answer, for the batch forms.")] = 1024,
    temperature: Annotated[float | None, typer.Option(help="For the batch forms.")] = None,
    trust: Trust = False,
    *,
    source_options: Mapping[str, object],
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
    from retriever.prompting import BatchSettings

    check_output(output_path, index, queries, recipe_file, prompt_options.get("template"))
    batch = None if model is None else BatchSettings(model, max_tokens, temperature)
    bad = BadRows(strict=strict)
    with opened(index, embedder, trust=trust, limits=limits) as retriever, progress() as shown:
        chosen = retriever.effective_recipe(recipe_file, **recipe_options(recipe))
        settings = ExportSettings(form, chosen, prompt_options_of(prompt_options), batch)
        found = read_asked(queries, Fields(input=input, id=id), source_options, bad)
        count = write(retriever, found, output_path, settings, resume=resume, note=note, progress=shown)
    bad.report()
    where = "on standard output" if str(output_path) == "-" else f"in {printable(str(output_path))}"
    typer.echo(f"{counted(count, 'record')} {where}", err=True)


@app.command()
@reported
def demo(
    query: Annotated[str | None, typer.Argument(help="A message to a support desk.", show_default=False)] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="How many demonstrations (4).", show_default=False)] = 4,
    embedder: Annotated[str, typer.Option(help="latent, or any other (auto).", show_default=False)] = "auto",
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
    typer.echo(
        f"Pool: {found['examples']} support messages with replies. Embedder: {told_of(found, 'embedder', 'name')}."
    )
    typer.echo(f"Query: {printable(asked)}\n")
    show_selection(selection, explain=True)
    typer.echo("\nThe prompt (best demonstration last, next to the query):\n")
    typer.echo(printable_lines(text))
