"""Verbs about recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from retriever.command_line.display import emit_json, wants_json
from retriever.command_line.options import BUDGET, RECIPE, Index, JsonFlag, RecipeFile, recipe_options, with_options
from retriever.command_line.running import opened, reported
from retriever.command_line.terminal import table

app = typer.Typer(name="recipe", help="Show and check recipes.", no_args_is_help=True, rich_markup_mode=None)


@app.command(name="show")
@reported
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
        with opened(index, {}) as retriever:
            begin = retriever.recipe
    shown = begin.with_options(recipe_options(recipe)).filled()
    if json_output:
        emit_json(shown.to_dict())
    else:
        typer.echo(shown.to_toml(), nl=False)


@app.command(name="check", no_args_is_help=True)
@reported
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


@app.command(name="set", no_args_is_help=True)
@reported
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
    with opened(index, {}) as retriever:
        generation = retriever.set_recipe(file)
    if wants_json(json_output):
        emit_json({"generation": generation})
    else:
        typer.echo(f"{generation} selects as {file} says")


@app.command(name="list")
@reported
def recipe_list(json_output: JsonFlag = False) -> None:
    """List the strategies and their settings.

    \b
    retriever recipe list
    retriever recipe list --json
    """
    from retriever.ranking.strategies import strategy, strategy_names

    found = {name: asdict(strategy(name).options()) for name in strategy_names()}
    if wants_json(json_output):
        emit_json(found)
        return
    rows = [
        {"strategy": name, "options": ", ".join(f"{k}={json.dumps(v)}" for k, v in settings.items()) or "none"}
        for name, settings in found.items()
    ]
    typer.echo(table(rows))
