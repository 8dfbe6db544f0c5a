"""What the command line shows a person: notes, bad rows, selections, plans and verdicts as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from retriever.terminal import amount, printable, say, table

if TYPE_CHECKING:
    from retriever import BadRow, Demonstration, Example, Prompt, Selection
    from retriever.curation.audit import Audit
    from retriever.curation.curate import Curation
    from retriever.plan import BuildPlan
    from retriever.repair import Repair
    from retriever.verification import Verification


def note(line: str) -> None:
    """A line that a reader should know of, on standard error."""
    say(f"note: {printable(line)}")


class BadRows:
    """Lists the first bad rows on standard error, and counts all."""

    shown = 20

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, row: BadRow) -> None:
        """Takes one."""
        self.count += 1
        if self.count <= self.shown:
            say(f"set aside: {printable(str(row))}")

    def report(self) -> None:
        """Says how many there were, if there were any."""
        if self.count:
            more = f" ({self.count - self.shown} more not listed)" if self.count > self.shown else ""
            say(f"{self.count} bad rows were set aside{more}")


def show_plan(plan: BuildPlan) -> None:
    """What a build will need, on standard error."""
    memory, disk = amount(plan.memory_bytes), amount(plan.disk_bytes)
    tokens = f", of which {amount(plan.token_bytes)} are token vectors" if plan.token_bytes else ""
    ann = f", {amount(plan.ann_bytes)} the FAISS index" if plan.ann_bytes else ""
    say(f"{plan.examples:,} examples: about {memory} of memory beside the model, {disk} on the disk{tokens}{ann}")


def show_prompt(prompt: Prompt, selection: Selection, *, explain: bool) -> None:
    """What a reader should know of a prompt, on standard error; explained, what each demonstration takes and why."""
    why = {demonstration.example.id: _why(demonstration) for demonstration in selection}
    if explain:
        for example, cost in zip(prompt.demonstrations, prompt.costs, strict=True):
            say(f"in the prompt: {printable(example.id)}: {cost} tokens: {printable(why[example.id])}")
        say(f"{prompt.tokens} tokens in all, counted by {printable(prompt.counter)}")
    for skipped in prompt.skipped:
        note(f"{skipped.example_id} is not in the prompt: {skipped.reason}")
    for shortened in prompt.shortened:
        note(f"{shortened.example_id} is shortened: {shortened.what}")


def show_selection(selection: Selection, *, explain: bool) -> None:
    """The demonstrations as a table; explained, why each was chosen, and what was left out."""
    reranked = any("rerank" in demonstration.channels for demonstration in selection)
    listed = table(
        [
            {
                "rank": str(d.rank),
                "score": f"{d.score:.3f}",
                "dense": _number(d.channels, "dense"),
                "lexical": _number(d.channels, "lexical"),
                **({"rerank": _number(d.channels, "rerank")} if reranked else {}),
                "id": printable(d.example.id, width=24),
                "example": _shown(d.example),
            }
            for d in selection
        ]
    )
    if listed:
        typer.echo(listed)
    for line in selection.notes:
        note(line)
    if not explain:
        return
    retrieve = selection.recipe.retrieve
    typer.echo(
        f"\n{len(selection)} of {selection.eligible:,} eligible examples, mode {retrieve.mode}, "
        f"weight {retrieve.weight}, {selection.generation}, revision {selection.revision}"
    )
    if selection.confidence is not None:
        typer.echo(f"the demonstrations explain {selection.confidence:.0%} of the query's variance")
    for demonstration in selection:
        typer.echo(f"chosen: {printable(demonstration.example.id)}: {printable(_why(demonstration))}")
    for dropped in selection.dropped:
        typer.echo(f"left out: {printable(dropped.id)}: {printable(dropped.reason)}")


def _why(demonstration: Demonstration) -> str:
    """How it came in, what it was worth then, and what it was traded against."""
    parts = [f"{demonstration.origin}, for all queries" if demonstration.shared else demonstration.origin]
    if demonstration.gain is not None:
        parts.append(f"gain {demonstration.gain:.3f}")
    if demonstration.against is not None:
        parts.append(f"most like {demonstration.against}")
    parts += [f"breaks {constraint}" for constraint in demonstration.breaks]
    return ", ".join(parts)


def _number(channels: Mapping[str, float], name: str) -> str:
    return f"{channels[name]:.3f}" if name in channels else "–"


def show_curation(found: Curation) -> None:
    """What was chosen, as a table."""
    rows = [
        {
            "rank": str(pick.rank),
            "gain": "–" if pick.gain is None else f"{pick.gain:.3f}",
            "id": printable(pick.example.id, width=24),
            "example": _shown(pick.example),
        }
        for pick in found.picks
    ]
    if rows:
        typer.echo(table(rows))
    for line in found.notes:
        note(line)


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


def _shown(example: Example) -> str:
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
