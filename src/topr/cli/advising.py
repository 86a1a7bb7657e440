"""`topr advise`."""

import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from topr.cli.console import out, say
from topr.cli.sources import hub_or_path

DOCUMENTS = "docs/"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(advise)


def advise(
    rollouts: Annotated[
        Path,
        typer.Argument(
            parser=hub_or_path, help="Graded rollouts, or a file of prompt, completion, reward."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Facts and advice as JSON.")] = False,
) -> None:
    """Say what to train graded completions with, and why. Nothing is trained."""
    from topr.advice import advise as advice_of
    from topr.advice import read_facts

    facts = read_facts(rollouts)
    lines = list(advice_of(facts))
    if as_json:
        found = {"facts": asdict(facts), "advice": [asdict(line) for line in lines]}
        typer.echo(json.dumps(found, indent=2))
        return
    length = "" if facts.length is None else f", {facts.length:.0f} tokens each (median)"
    counts = f"{facts.rows:,} completions of {facts.problems:,} problems"
    say(f"{counts}, {facts.right:.1%} right{length}")
    for kind, each in groupby(lines, key=lambda line: line.kind):
        out.print(f"\n[bold]{kind}[/bold]")
        for line in each:
            say(f"  {line.what}", f"    {line.why} ({DOCUMENTS}{line.source})")
