"""What makes an index, changes it and looks after it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retriever.command_line.display import BadRows, emit_json, note, show_plan, show_verification, told_of, wants_json
from retriever.command_line.options import (
    EMBEDDER,
    FIELDS,
    ROW_LIMITS,
    SOURCE,
    Index,
    JsonFlag,
    Trust,
    embedder_of,
    fields_of,
    limits_of,
    reading_of,
    size,
    with_options,
)
from retriever.command_line.refusals import check_empty
from retriever.command_line.running import check_usable, opened, reported
from retriever.command_line.terminal import columns, counted, printable, progress

if TYPE_CHECKING:
    from retriever.plan import BuildPlan

Source = Annotated[Path, typer.Argument(metavar="FILE", help="File of examples; - is standard input.")]
DefaultRecipe = Annotated[
    Path | None,
    typer.Option("--recipe", help="Recipe, TOML or .json: the index's default.", rich_help_panel="Selection"),
]
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

app = typer.Typer()


@app.command(no_args_is_help=True)
@reported
@with_options(source_options=SOURCE, fields=FIELDS, embedder=EMBEDDER, limits=ROW_LIMITS)
def build(
    pools: Annotated[list[Path], typer.Argument(metavar="POOL...", help="Files of examples; - is standard input.")],
    output_path: Annotated[Path, typer.Option("-o", "--out", metavar="INDEX", help="The index directory to make.")],
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
    source_options: Mapping[str, object],
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

    def planned(plan: BuildPlan) -> None:
        if not plan.examples:
            check_empty(pools, output_path)
        show_plan(plan)

    bad = BadRows()
    started = time.monotonic()
    with progress() as shown:
        retriever = Retriever.build(
            "-" if pools == [Path("-")] else pools,
            output_path,
            **asdict(fields_of(fields)),
            **reading_of(source_options),
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
            on_plan=planned,
            note=note,
            progress=shown,
        )
    with retriever:
        bad.report()
        info, count = retriever.info(), len(retriever)
    if wants_json(json_output):
        emit_json({**info, "bad_rows": bad.count})
    else:
        typer.echo(
            f"{counted(count, 'example')} in {output_path} ({time.monotonic() - started:.1f} s), "
            f"embedder {told_of(info, 'embedder', 'name')}, "
            f"fusion weight {told_of(info, 'fusion', 'weight')} ({told_of(info, 'fusion', 'objective')})"
        )


@app.command(no_args_is_help=True)
@reported
@with_options(source_options=SOURCE, fields=FIELDS, embedder=EMBEDDER, limits=ROW_LIMITS)
def add(
    index: Index,
    source: Source,
    strict: Annotated[bool, typer.Option("--strict", help="Add nothing if a row is bad (exit 7).")] = False,
    json_output: JsonFlag = False,
    *,
    source_options: Mapping[str, object],
    fields: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Add examples to an index; an id that it has already is set aside.

    \b
    retriever add tickets.index new.jsonl --input text --output intent
    echo '{"input": "hi", "output": "hello"}' | retriever add tickets.index -
    """
    from retriever.formats import FileSource

    bad = BadRows()
    given = FileSource(str(source), **reading_of(source_options))
    with opened(index, embedder, limits=limits) as retriever:
        ids = retriever.add(given, fields=fields_of(fields), strict=strict, on_bad=bad)
        count = len(retriever)
    check_usable(len(ids), bad)
    bad.report()
    if wants_json(json_output):
        emit_json({"added": list(ids), "bad_rows": bad.count, "examples": count})
    else:
        typer.echo(f"{len(ids):,} added, {counted(count, 'example')} now")


@app.command(no_args_is_help=True)
@reported
@with_options(source_options=SOURCE, fields=FIELDS, embedder=EMBEDDER, limits=ROW_LIMITS)
def update(
    index: Index,
    source: Source,
    strict: Annotated[bool, typer.Option("--strict", help="Change nothing if a row is bad (exit 7).")] = False,
    json_output: JsonFlag = False,
    *,
    source_options: Mapping[str, object],
    fields: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Add examples to an index, in place of those with the same ids.

    \b
    retriever update tickets.index corrected.jsonl --input text --output intent
    echo '{"id": "s017", "input": "hi", "output": "hello"}' | retriever update tickets.index -
    """
    from retriever.formats import FileSource

    bad = BadRows()
    given = FileSource(str(source), **reading_of(source_options))
    with opened(index, embedder, limits=limits) as retriever:
        done = retriever.update(given, fields=fields_of(fields), strict=strict, on_bad=bad)
        count = len(retriever)
    check_usable(len(done.added) + len(done.replaced) + len(done.unchanged), bad)
    bad.report()
    if wants_json(json_output):
        emit_json({**asdict(done), "bad_rows": bad.count, "examples": count})
    else:
        parts = f"{len(done.added):,} added, {len(done.replaced):,} replaced, {len(done.unchanged):,} unchanged"
        typer.echo(f"{parts}, {counted(count, 'example')} now")


@app.command(no_args_is_help=True)
@reported
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
    with opened(index, {}) as retriever:
        removed = retriever.remove(ids)
        count = len(retriever)
    if wants_json(json_output):
        emit_json({"removed": removed, "examples": count})
    else:
        typer.echo(f"{removed:,} removed, {counted(count, 'example')} now")


@app.command(no_args_is_help=True)
@reported
def compact(index: Index, json_output: JsonFlag = False) -> None:
    """Fold the changes since the last generation into a new one.

    \b
    retriever compact tickets.index
    retriever compact tickets.index --json
    """
    with opened(index, {}) as retriever:
        generation = retriever.compact()
    if wants_json(json_output):
        emit_json({"generation": generation})
    else:
        typer.echo(f"{generation} holds all changes")


@app.command(no_args_is_help=True)
@reported
def gc(index: Index, json_output: JsonFlag = False) -> None:
    """Remove generations that nobody needs.

    \b
    retriever gc tickets.index
    retriever gc tickets.index --json
    """
    from retriever.writing import collect

    removed = collect(index)
    if wants_json(json_output):
        emit_json({"removed": list(removed)})
    else:
        typer.echo(f"removed: {', '.join(removed) or 'nothing'}")


@app.command(no_args_is_help=True)
@reported
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
    if wants_json(json_output):
        problems = [{**asdict(problem), "path": str(problem.path)} for problem in found.problems]
        repaired = None if made is None else asdict(made)
        emit_json({"intact": found.intact, "rows": found.rows, "problems": problems, "repaired": repaired})
    else:
        show_verification(found, made)
    if not found.intact:
        raise typer.Exit(4)


@app.command(no_args_is_help=True)
@reported
def info(index: Index, json_output: JsonFlag = False, trust: Trust = False) -> None:
    """Show what an index holds and how it was built.

    \b
    retriever info tickets.index
    retriever info tickets.index --json
    """
    with opened(index, {}, trust=trust) as retriever:
        found = retriever.info()
    if wants_json(json_output):
        emit_json(found)
        return
    for name, value in found.items():
        inside = value if isinstance(value, dict) else {"": value}
        for key, part in inside.items():
            shown = part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
            typer.echo(f"{f'{name}.{key}'.rstrip('.'):26}  {printable(shown, width=max(40, columns() - 28))}")
