"""What the command line shows a person: notes, bad rows, plans, results and verdicts as text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from retriever import errors
from retriever.command_line.terminal import amount, inert_json, printable, say, table

if TYPE_CHECKING:
    from retriever import BadRow, Example
    from retriever.adaptation.adapt import Adapted
    from retriever.curation.audit import Audit
    from retriever.curation.curate import Curation
    from retriever.evaluation.asking import Asking, Cost
    from retriever.evaluation.intervals import Interval
    from retriever.evaluation.model_search import Plan
    from retriever.evaluation.results import Evaluation, MetricResult, QueryResult, Score
    from retriever.evaluation.tuned import Tuning
    from retriever.example import Json
    from retriever.plan import BuildPlan
    from retriever.repair import Repair
    from retriever.verification import Verification


def note(line: str) -> None:
    """A line that a reader should know of, on standard error."""
    say(f"note: {printable(line)}")


def show_notes(lines: Iterable[str]) -> None:
    """All that a reader should know of a result."""
    for line in lines:
        note(line)


class BadRows:
    """Lists the first bad rows on standard error, and counts all; a strict one does not let the first pass."""

    shown = 20

    def __init__(self, *, strict: bool = False) -> None:
        self.count = 0
        self._strict = strict

    def __call__(self, row: BadRow) -> None:
        """Takes one.

        Raises:
            BadRows: Of `retriever.errors`; it is strict.
        """
        self.count += 1
        if self.count <= self.shown:
            say(f"set aside: {printable(str(row))}")
        if self._strict:
            raise errors.BadRows([row])

    def report(self) -> None:
        """Says how many there were, if there were any."""
        if self.count:
            more = f" ({self.count - self.shown} more not listed)" if self.count > self.shown else ""
            say(f"{self.count} bad rows were set aside{more}")


def show_plan(plan: BuildPlan) -> None:
    """What a build will need, on standard error."""
    memory, disk = amount(plan.memory_bytes), amount(plan.disk_bytes)
    parts = {"token vectors": plan.token_bytes, "the FAISS index": plan.ann_bytes, "the embedder": plan.embedder_bytes}
    told = ", ".join(f"{amount(size)} {name}" for name, size in parts.items() if size)
    say(
        f"{plan.examples:,} examples: about {memory} of memory beside the model, {disk} on the disk"
        + (f" ({told})" if told else "")
    )


def show_curation(found: Curation) -> None:
    """What was chosen, as a table."""
    rows = [
        {
            "rank": str(pick.rank),
            "gain": "–" if pick.gain is None else figure(pick.gain),
            "id": printable(pick.example.id, width=24),
            "example": shown(pick.example),
        }
        for pick in found.picks
    ]
    if rows:
        typer.echo(table(rows))
    show_notes(found.notes)


def show_adaptation(found: Adapted, generation: str) -> None:
    """What an adaptation changes on held-out examples, and whether it was kept."""
    rows = [
        {
            "held-out examples": one.metric,
            "before": f"{one.before:z.4f}",
            "after": f"{one.after:z.4f}",
            "change": f"{one.gain:+z.4f} ± {one.error:.4f}",
        }
        for one in found.compared
    ]
    if rows:
        typer.echo(table(rows))
    typer.echo(f"{generation} is adapted: {found.reason}" if found.kept else f"nothing changed: {found.reason}")
    if found.recipe_weight is not None:
        typer.echo(
            f"the fusion weight {found.recipe_weight:g} of the default recipe, chosen for the former vectors, gives "
            "way to the calibrated one; --undo brings it back"
        )


def show_audit(found: Audit) -> None:
    """What was found, kind by kind."""
    looked = f"{found.examples:,} examples" + (f" and {found.queries:,} queries" if found.queries else "")
    typer.echo(f"{looked}: " + (", ".join(f"{n:,} {kind}" for kind, n in found.counts.items() if n) or "nothing found"))
    for kind in found.counts:
        shown = [finding for finding in found if finding.kind == kind]
        if shown:
            typer.echo()
        for finding in shown:
            of = "" if finding.query is None else f"{printable(finding.query)}: "
            typer.echo(f"{kind}: {of}{printable(finding.reason)}: {_some(finding.ids)}")
        if 0 < len(shown) < found.counts[kind]:
            typer.echo(f"{kind}: {found.counts[kind] - len(shown):,} more not listed")


def _some(ids: Sequence[str], most: int = 5) -> str:
    listed = ", ".join(printable(identity) for identity in ids[:most])
    return listed if len(ids) <= most else f"{listed} and {len(ids) - most:,} more"


def wants_json(flag: bool) -> bool:
    """Whether a result is written as JSON: where `--json` asks for it, or where no person reads."""
    return flag or not sys.stdout.isatty()


def emit_json(value: object) -> None:
    """A result as JSON on standard output, indented on a terminal."""
    typer.echo(inert_json(value, indent=2 if sys.stdout.isatty() else None))


def told_of(info: Mapping[str, Json], section: str, name: str) -> Json:
    """One thing that `Retriever.info` tells in a section."""
    inside = info[section]
    assert isinstance(inside, dict)
    return inside[name]


def emit_csv(rows: Sequence[Mapping[str, Json]]) -> None:
    """Records as CSV on standard output."""
    from retriever.formats import open_writer

    with open_writer(sys.stdout.buffer, "csv") as writer:
        for row in rows:
            writer.write(row)
    sys.stdout.buffer.flush()


def show_evaluation(found: Evaluation, *, worst: int, times: bool) -> None:
    """Each metric of each recipe with intervals and ties, and where the first metric is lowest."""
    typer.echo(f"{_asked(found.queries, found.asked)}, guard {found.settings['guard']}")
    took = {one.name: f"{one.milliseconds:.2f}" for one in found.recipes}
    rows = [
        {
            "metric": metric.metric if place == 0 else "",
            "recipe": printable(score.recipe),
            **({"ms": took[score.recipe]} if times else {}),
            **_figures(score, _level(found.settings)),
        }
        for metric in found.metrics
        for place, score in enumerate(metric.scores)
    ]
    typer.echo(table(rows))
    first = found.metrics[0]
    if found.labels and worst:
        typer.echo(f"\n{first.metric} by label, lowest of {printable(first.reference)} first")
        typer.echo(table([_means(printable(one.label), one.queries, one.means) for one in found.labels[:worst]]))
        if len(found.labels) > worst:
            typer.echo(f"{len(found.labels) - worst:,} more labels not listed")
    if found.worst and worst:
        typer.echo(f"\n{first.metric} by query, worst of {printable(first.reference)} first")
        typer.echo(table([_queried(one, first) for one in found.worst]))
    show_notes(found.notes)


def _asked(count: int, asked: str) -> str:
    """How many queries, and of which kind where they are not simply those that were given."""
    return f"{count:,} queries" if asked == "queries" else f"{count:,} queries, {asked}"


def _queried(one: QueryResult, first: MetricResult) -> dict[str, str]:
    answered = {"answer": printable(one.answers.get(first.reference, "–"), width=30)} if one.answers else {}
    return {
        first.metric: figure(one.values[first.reference]),
        "id": printable(one.query.id, width=24),
        **answered,
        "query": shown(one.query),
    }


def show_cost(cost: Cost) -> None:
    """What a language model will be asked, on standard error."""
    left_out = without = ""
    if cost.left_out:
        left_out = f", {cost.left_out:,} left out by the budget"
        without = f"; without a budget {cost.all_prompt_tokens:,} and {cost.all_answer_tokens:,}"
    say(
        f"{cost.prompts:,} prompts: {cost.kept:,} answered before, {cost.calls:,} calls{left_out}; about "
        f"{cost.prompt_tokens:,} tokens of prompts and at most {cost.answer_tokens:,} of answers{without}"
    )


def told_cost(asking: Asking | None, bad: BadRows) -> Callable[[Cost], None]:
    """What tells the cost of an evaluation before it is asked, and ends the command where nothing is to be asked."""

    def told(cost: Cost) -> None:
        show_cost(cost)
        if asking is not None and asking.max_calls == 0:
            bad.report()
            raise typer.Exit

    return told


def show_tuning_plan(plan: Plan) -> None:
    """What a language model will be asked at most while recipes are searched, on standard error."""
    say(
        f"{plan.recipes} recipes, {plan.queries:,} of {plan.of:,} queries: at most {plan.calls:,} calls, "
        f"{plan.prompt_tokens:,} tokens of prompts and {plan.answer_tokens:,} of answers, less what is answered already"
    )


def show_tuning(found: Tuning) -> None:
    """Every recipe that was tried, the best first, and what the chosen one gains where it was not chosen."""
    level = _level(found.settings)
    typer.echo(f"{found.objective}: {_asked(int(str(found.settings['queries'])), found.asked)}")
    rows = [
        {
            "recipe": printable(one.name),
            "queries": str(one.queries),
            "mean": figure(one.mean),
            f"{level} interval": _ends(one.interval),
            "difference": "" if one.verdict == "chosen" else figure(one.difference, "+"),
            f"its {level} interval": "" if one.verdict == "chosen" else _ends(one.difference_interval, "+"),
            "verdict": one.verdict,
        }
        for one in sorted(found.tried, key=lambda one: (-one.queries, -one.mean))
    ]
    typer.echo(table(rows))
    typer.echo(f"\n{_outcome(found)}")
    show_notes(found.notes)


def _outcome(found: Tuning) -> str:
    """What the chosen recipe gains, and what became of it."""
    gain, name = found.gain, printable(found.chosen.name)
    if name == "own":
        return "No recipe is better than the own one as far as the queries tell. Nothing was changed."
    told = (
        f"{name}: {figure(gain.chosen)} on queries that others chose by, the own recipe "
        f"{figure(gain.own)}, gain {figure(gain.difference, '+')} ({_ends(gain.interval, '+')})."
    )
    if not gain.sure:
        return f"{told}\nThe gain may be chance. Nothing was changed."
    if found.written is None:
        return f"{told}\nNothing was changed."
    key = f", by the key {printable(found.chosen.key)}" if found.chosen.key != found.tried[0].key else ""
    return f"{told}\nIt is the default of {found.written}{key}."


def _figures(score: Score, level: str) -> dict[str, str]:
    apart = "" if score.verdict in ("best", "first") else f"{figure(score.difference, '+')}"
    return {
        "mean": figure(score.mean),
        f"{level} interval": _ends(score.interval),
        "difference": apart,
        f"its {level} interval": _ends(score.difference_interval, "+") if apart else "",
        "verdict": score.verdict,
    }


def _level(settings: Mapping[str, Json]) -> str:
    """The level of the intervals in percent, with the digits that it has: 95%, 99.9%."""
    return f"{100 * float(str(settings['level'])):.10g}%"


def _ends(interval: Interval | None, sign: str = "") -> str:
    return "–" if interval is None else f"{figure(interval.low, sign)} to {figure(interval.high, sign)}"


def figure(value: float, sign: str = "") -> str:
    """A number with three digits; what rounds to 0 has no minus sign."""
    return f"{value:{sign}z.3f}" if abs(value) < 100 else f"{value:{sign}z,.1f}"


def _means(label: str, queries: int, means: Mapping[str, float]) -> dict[str, str]:
    named = {printable(name): figure(mean) for name, mean in means.items()}
    return {"label": label, "queries": str(queries), **named}


def shown(example: Example) -> str:
    """Input and output, if there is one."""
    return example.input_text if example.output is None else f"{example.input_text} → {example.output_text}"


def show_verification(found: Verification, made: Repair | None) -> None:
    """What is damaged, what a repair did, and whether all is well."""
    for problem in found.problems:
        typer.echo(f"damaged: {printable(str(problem))}")
    if made is not None:
        typer.echo(
            f"repaired: {made.generation or 'what was damaged was not needed'}, "
            f"{made.reused:,} vectors used again, {made.embedded:,} texts embedded"
        )
    if found.intact:
        typer.echo(f"intact: {found.rows:,} rows of the pool, {', '.join(found.generations)}")
