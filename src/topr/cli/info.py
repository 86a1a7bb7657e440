"""`topr recipes`, `topr schema`, `topr env`, `topr lineage`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from topr.cli.console import list_shipped, out, say


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(recipes)
    app.command()(schema)
    app.command()(env)
    app.command()(lineage)


def recipes(
    show: Annotated[str | None, typer.Argument(help="Print this recipe, resolved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the shipped recipes and what each needs, or print one."""
    from topr.config import dump_recipe, load_recipe, shipped_recipes

    if show is not None:
        typer.echo(dump_recipe(load_recipe(show)), nl=False)
        return
    found = {name: load_recipe(name) for name in shipped_recipes()}
    if as_json:
        told = {name: recipe.model_dump(mode="json") for name, recipe in found.items()}
        typer.echo(json.dumps(told, indent=2))
        return
    list_shipped("recipe", found)


def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from topr.config import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


def env() -> None:
    """Print versions and devices, for bug reports."""
    from topr.runs.environment import environment

    typer.echo(json.dumps(environment(), indent=2))


def lineage(
    directory: Annotated[Path, typer.Argument(help="What `topr run NAME -o DIR` wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Tell which rollouts made which model."""
    from topr.runs.lineage import read_lineage

    found = read_lineage(directory)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
        return
    for lines in found.steps():
        out.print(f"[bold]{escape(lines[0])}[/]", soft_wrap=True)
        say(*(f"  {line}" for line in lines[1:]))
    if found.kept is not None:
        kept = found.kept
        say(f"kept: iteration {kept['iteration']} ({kept['by']}), {kept['path']}")
