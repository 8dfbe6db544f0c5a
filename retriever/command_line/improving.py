"""What judges a pool and its recipes, and what makes them better."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from retriever.command_line.display import (
    BadRows,
    emit_csv,
    emit_json,
    show_adaptation,
    show_audit,
    show_curation,
    show_evaluation,
    show_notes,
    show_tuning,
    show_tuning_plan,
    told_cost,
    wants_json,
)
from retriever.command_line.options import (
    ASKING,
    EMBEDDER,
    EVALUATION,
    FIELDS,
    FINE_TUNING,
    PROMPT,
    PROMPT_LIMITS,
    SOURCE,
    TUNING,
    AdaptKind,
    Curate,
    EvalForm,
    Index,
    JsonFlag,
    MapBy,
    Trust,
    Where,
    asking_of,
    eval_settings_of,
    fields_of,
    finetune_settings_of,
    settings_of,
    single_where,
    tune_settings_of,
    with_options,
)
from retriever.command_line.refusals import check_adapt, check_asked, check_form, check_output
from retriever.command_line.running import opened, read_if_named, reported
from retriever.command_line.terminal import amount, printable, progress

TrueQueries = Annotated[
    Path | None, typer.Argument(help="File of queries with their true outputs or labels.", show_default=False)
]
ComparedRecipes = Annotated[
    list[Path] | None, typer.Option("--recipe", help="Recipe to compare; left out: every mode.", show_default=False)
]
QrelsFile = Annotated[Path | None, typer.Option("--qrels", help="File of relevance judgements.", show_default=False)]

JUDGING = {
    "model": ASKING,
    "source_options": SOURCE,
    "fields": FIELDS,
    "prompt_options": PROMPT,
    "embedder": EMBEDDER,
    "limits": PROMPT_LIMITS,
}
"""The groups of options of what asks queries whose answers are known, and perhaps a language model."""

app = typer.Typer()


@app.command(no_args_is_help=True)
@reported
def curate(
    index: Index,
    budget: Annotated[int, typer.Option(help="How many examples, at most.")],
    strategy: Annotated[Curate, typer.Option(help="How they are chosen.")] = "votek",
    where: Where = None,
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

    settings = CurateSettings(strategy, budget, single_where(where), tuple(held or ()), settings_of(option or []))
    with opened(index, {}, trust=trust) as retriever, progress() as shown:
        found = choose(retriever.snapshot, settings, shown)
    if wants_json(json_output):
        emit_json(found.to_dict())
    else:
        show_curation(found)


@app.command(no_args_is_help=True)
@reported
@with_options(source_options=SOURCE)
def audit(
    index: Index,
    queries: Annotated[
        Path | None, typer.Argument(help="File of queries that must not be in the pool.", show_default=False)
    ] = None,
    threshold: Annotated[float, typer.Option(help="Likeness of near copies, up to 1.")] = 0.9,
    neighbours: Annotated[int, typer.Option(help="How many of the nearest must agree against a label.")] = 10,
    most: Annotated[int | None, typer.Option(help="Findings of each kind (20 in a table, else all).")] = None,
    input: Annotated[str | None, typer.Option(help="Field of a query's input (input); name, path, $template.")] = None,
    id: Annotated[str | None, typer.Option(help="Field of a query's id (id).")] = None,
    json_output: JsonFlag = False,
    trust: Trust = False,
    *,
    source_options: Mapping[str, object],
) -> None:
    """Find contradictions, copies, leaks and odd examples in a pool.

    \b
    retriever audit tickets.index
    retriever audit tickets.index test.jsonl > findings.json
    """
    from retriever.curation.audit import AuditSettings
    from retriever.curation.audit import audit as look

    fields = {name: value for name, value in (("input", input), ("id", id)) if value is not None}
    check_asked("QUERIES", queries, leave_one_out=None, fields=fields, source=source_options)
    bad = BadRows()
    listed = most if most is not None or wants_json(json_output) else 20
    settings = AuditSettings(threshold, neighbours, listed)
    asked = read_if_named(queries, fields_of(fields), source_options, bad) or ()
    with opened(index, {}, trust=trust) as retriever, progress() as shown:
        found = look(retriever.snapshot, asked, settings, shown)
    bad.report()
    if wants_json(json_output):
        emit_json(found.to_dict())
    else:
        show_audit(found)


@app.command(name="eval", no_args_is_help=True)
@reported
@with_options(evaluation=EVALUATION, **JUDGING)
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
    strict: Annotated[bool, typer.Option("--strict", help="Stop if a query is bad (exit 7).")] = False,
    json_output: JsonFlag = False,
    trust: Trust = False,
    *,
    evaluation: Mapping[str, object],
    model: Mapping[str, object],
    source_options: Mapping[str, object],
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

    check_asked("QUERIES", queries, leave_one_out=leave_one_out, fields=fields, source=source_options, strict=strict)
    check_form(form, json_output)
    bad = BadRows(strict=strict)
    settings = eval_settings_of(evaluation, prompt_options)
    asked = read_if_named(queries, fields_of(fields), source_options, bad)
    judged = None if qrels is None else read_qrels(qrels)
    asking = asking_of(model)
    with opened(index, embedder, trust=trust, limits=limits) as retriever, progress() as shown:
        found = evaluate(
            retriever,
            recipes_of(retriever, recipe_files or ()),
            asked,
            leave_one_out=leave_one_out,
            qrels=judged,
            settings=settings,
            asking=asking,
            on_cost=told_cost(asking, bad),
            progress=shown,
        )
    bad.report()
    if form == "csv":
        emit_csv(found.rows(times=times))
        show_notes(found.notes)
    elif form == "json" or (form is None and wants_json(json_output)):
        emit_json(found.to_dict(times=times))
    else:
        show_evaluation(found, worst=settings.worst, times=times)


@app.command(name="tune", no_args_is_help=True)
@reported
@with_options(tuning=TUNING, **JUDGING)
def tune_(
    index: Index,
    queries: TrueQueries = None,
    leave_one_out: Annotated[
        int | None,
        typer.Option("--leave-one-out", help="In place of QUERIES: ask N of the pool (2,000; of a model 200)."),
    ] = None,
    recipe_files: Annotated[
        list[Path] | None, typer.Option("--recipe", help="Recipe to try as well.", show_default=False)
    ] = None,
    keys: Annotated[
        list[str] | None, typer.Option("--try-key", help="Key text to try as well.", show_default=False)
    ] = None,
    qrels: QrelsFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave the index as it is.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop if a query is bad (exit 7).")] = False,
    json_output: JsonFlag = False,
    *,
    tuning: Mapping[str, object],
    model: Mapping[str, object],
    source_options: Mapping[str, object],
    fields: Mapping[str, object],
    prompt_options: Mapping[str, object],
    embedder: Mapping[str, object],
    limits: Mapping[str, object],
) -> None:
    """Search a better recipe or key; keep it if other queries gain.

    \b
    retriever tune tickets.index --try-key input+output --dry-run
    retriever tune tickets.index dev.jsonl --backend openai:gpt-4o-mini --metric exact --max-calls 1000
    """
    from retriever.evaluation.queries import read_qrels
    from retriever.evaluation.tune import tune

    check_asked("QUERIES", queries, leave_one_out=leave_one_out, fields=fields, source=source_options, strict=strict)
    bad = BadRows(strict=strict)
    asked = read_if_named(queries, fields_of(fields), source_options, bad)
    judged = None if qrels is None else read_qrels(qrels)
    asking = asking_of(model)
    with opened(index, embedder, limits=limits) as retriever, progress() as shown:
        found = tune(
            retriever,
            asked,
            leave_one_out=leave_one_out,
            qrels=judged,
            recipes={str(file): file for file in recipe_files or ()},
            keys=keys or (),
            settings=tune_settings_of(tuning, prompt_options),
            asking=asking,
            dry_run=dry_run,
            on_plan=show_tuning_plan,
            progress=shown,
        )
    bad.report()
    if wants_json(json_output):
        emit_json(found.to_dict())
    else:
        show_tuning(found)


@app.command(no_args_is_help=True)
@reported
@with_options(fine_tuning=FINE_TUNING)
def adapt(
    index: Index,
    kind: Annotated[AdaptKind | None, typer.Option(help="The form of the map (linear).", show_default=False)] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="labels, outputs, templates or embeddings (of outputs), or a file: a log of outcomes.",
            show_default=False,
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Fine-tune the model itself; takes minutes to hours.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Search by what was there before.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Change nothing if a line is bad (exit 7).")] = False,
    json_output: JsonFlag = False,
    *,
    fine_tuning: Mapping[str, object],
) -> None:
    """Learn what is alike from the pool or a log; keep what helps.

    \b
    retriever adapt tickets.index --from feedback.jsonl
    retriever adapt tickets.index --undo
    """
    check_adapt(kind=kind, source=source, strict=strict, full=full, undo=undo, fine_tuning=fine_tuning)
    bad = BadRows(strict=strict)
    with opened(index, {}) as retriever, progress() as shown:
        if undo:
            retriever.undo_adaptation(progress=shown)
            weight = retriever.snapshot.base.weight
        elif full:
            settings = finetune_settings_of(fine_tuning)
            found = retriever.fine_tune(settings, source=source, on_bad=bad, progress=shown)
        else:
            found = retriever.adapt(kind=kind or "linear", source=source, on_bad=bad, progress=shown)
        generation = retriever.generation
    bad.report()
    if undo:
        if wants_json(json_output):
            emit_json({"generation": generation, "weight": weight})
        else:
            typer.echo(f"{generation} searches the embedder's own vectors; fusion weight {weight}")
    elif wants_json(json_output):
        emit_json({"generation": generation, **found.to_dict()})
    else:
        show_adaptation(found, generation)


@app.command(no_args_is_help=True)
@reported
@with_options(source_options=SOURCE, fields=FIELDS, embedder=EMBEDDER, limits=PROMPT_LIMITS)
def report(
    index: Index,
    page: Annotated[Path, typer.Option("-o", "--out", help="The page to write.", show_default=False)],
    queries: Annotated[
        Path | None,
        typer.Option("--queries", help="File of queries with their true outputs or labels.", show_default=False),
    ] = None,
    leave_one_out: Annotated[
        int | None,
        typer.Option(
            "--leave-one-out", help="In place of --queries: ask N examples of the pool (300).", show_default=False
        ),
    ] = None,
    recipe_files: ComparedRecipes = None,
    k: Annotated[
        int | None, typer.Option("-k", "--k", help="How many demonstrations (as the recipes say).", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of samples and resamples.")] = 0,
    map_by: Annotated[MapBy, typer.Option("--map", help="How the pool is laid out: pca or umap.")] = "pca",
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Do not look for copies and conflicts.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop if a query is bad (exit 7).")] = False,
    json_output: JsonFlag = False,
    trust: Trust = False,
    *,
    source_options: Mapping[str, object],
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
    from retriever.evaluation.queries import flattered
    from retriever.evaluation.report import ReportSettings, write_report

    check_output(page, index, queries, *(recipe_files or ()))
    check_asked("--queries", queries, leave_one_out=leave_one_out, fields=fields, source=source_options, strict=strict)
    bad = BadRows(strict=strict)
    sample = {} if leave_one_out is None else {"leave_one_out": leave_one_out}
    settings = ReportSettings(**sample, k=k, seed=seed, audit=not no_audit, map=map_by)
    asked = read_if_named(queries, fields_of(fields), source_options, bad)
    with opened(index, embedder, trust=trust, limits=limits) as retriever, progress() as shown:
        compared = recipes_of(retriever, recipe_files or ())
        size = write_report(retriever, page, asked, recipes=compared, settings=settings, progress=shown)
        notes = flattered(retriever.snapshot, settings.leave_one_out if asked is None else None)
    bad.report()
    if wants_json(json_output):
        emit_json({"path": str(page), "bytes": size, "notes": notes})
    else:
        typer.echo(f"{printable(str(page))} written, {amount(size)}")
        show_notes(notes)
