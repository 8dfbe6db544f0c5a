"""What the command line says of a selection and a prompt: what was chosen, by which settings, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from retriever.command_line.display import figure, note, show_notes, shown
from retriever.command_line.terminal import printable, say, table

if TYPE_CHECKING:
    from retriever import Demonstration, Prompt, Recipe, Selection
    from retriever.example import Json


_ALWAYS = {
    "retrieve": ("mode", "rule", "weight", "rrf_k"),
    "guard": ("level", "threshold"),
    "select": ("strategy", "k", "candidates"),
}
"""Keys of a recipe that are told wherever they count; of the others those that differ from the default."""


def show_selection(selection: Selection, *, explain: bool) -> None:
    """The demonstrations as a table; explained, why each was chosen, and what was left out."""
    reranked = any("rerank" in demonstration.channels for demonstration in selection)
    listed = table(
        [
            {
                "rank": str(d.rank),
                "score": figure(d.score),
                "dense": _number(d.channels, "dense"),
                "lexical": _number(d.channels, "lexical"),
                **({"rerank": _number(d.channels, "rerank")} if reranked else {}),
                "id": printable(d.example.id, width=24),
                "example": shown(d.example),
            }
            for d in selection
        ]
    )
    if listed:
        typer.echo(listed)
    show_notes(selection.notes)
    if not explain:
        return
    typer.echo(
        f"\n{len(selection)} of {selection.eligible:,} eligible examples, "
        f"{selection.generation}, revision {selection.revision}"
    )
    for stage, settings in _decided(selection.recipe).items():
        typer.echo(f"{stage}: {printable(settings)}")
    if selection.confidence is not None:
        typer.echo(f"the demonstrations explain {selection.confidence:.0%} of the query's variance")
    for demonstration in selection:
        typer.echo(f"chosen: {printable(demonstration.example.id)}: {printable(_why(demonstration))}")
    for dropped in selection.dropped:
        typer.echo(f"left out: {printable(dropped.id)}: {printable(dropped.reason)}")


def _decided(recipe: Recipe) -> dict[str, str]:
    """The settings that decided, by section of the recipe."""
    idle, defaults = _idle(recipe), type(recipe)().data
    told = {}
    for section, values in recipe.data.items():
        usual = defaults[section]
        assert isinstance(values, dict) and isinstance(usual, dict)
        counts = {
            key: value
            for key, value in values.items()
            if f"{section}.{key}" not in idle and (key in _ALWAYS.get(section, ()) or value != usual[key])
        }
        told[section] = ", ".join(_setting(key, value) for key, value in counts.items())
    return {section: line for section, line in told.items() if line}


def _idle(recipe: Recipe) -> set[str]:
    """The keys that decide nothing, as the recipe is."""
    from retriever.ranking.strategies import strategy

    retrieve, select, last = recipe.retrieve, recipe.select, recipe.select.last
    idle = set()
    if retrieve.mode != "hybrid":
        idle |= {"retrieve.rule", "retrieve.weight"}
    if retrieve.mode != "hybrid" or retrieve.rule != "rrf":
        idle.add("retrieve.rrf_k")
    if recipe.guard.level != "near":
        idle.add("guard.threshold")
    if strategy(select.strategy).depth(select.k, select.candidates, last.settings()) <= select.k:
        idle.add("select.candidates")
    if recipe.order.by != "random":
        idle.add("order.seed")
    return idle


def _setting(key: str, value: Json) -> str:
    """A key and its value; the settings of a strategy by their own names."""
    if key == "options" and isinstance(value, dict):
        return ", ".join(_setting(name, one) for name, one in value.items())
    return f"{key} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


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


def _why(demonstration: Demonstration) -> str:
    """How it came in, what it was worth then, and what it was traded against."""
    parts = [f"{demonstration.origin}, for all queries" if demonstration.shared else demonstration.origin]
    if demonstration.gain is not None:
        parts.append(f"gain {figure(demonstration.gain)}")
    if demonstration.against is not None:
        parts.append(f"most like {demonstration.against}")
    parts += [f"breaks {constraint}" for constraint in demonstration.breaks]
    return ", ".join(parts)


def _number(channels: Mapping[str, float], name: str) -> str:
    return figure(channels[name]) if name in channels else "–"
