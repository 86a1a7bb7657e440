"""`topr study` and `topr results`."""

from pathlib import Path
from typing import Annotated

import typer

from topr.cli.console import ConsoleProgress, list_shipped, say
from topr.cli.overwriting import Resume, make_room
from topr.cli.running import Overrides, prepare_tensors


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(study)
    app.command()(results)


def study(
    name: Annotated[
        str | None, typer.Argument(help="A shipped study, or path of a YAML file; none: list them.")
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory to write; made if absent.")
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Cells side by side; they share the cores.")
    ] = 2,
    add: Annotated[
        list[str] | None,
        typer.Option(help="A further arm: your objective, module:MyObjective. Can be repeated."),
    ] = None,
    resume: Resume = True,
) -> None:
    """Run a study: arms over seeds on shared rollouts. Interrupted, it resumes."""
    from topr.config.study import load_study, shipped_studies

    if name is None:
        list_shipped("study", {name: load_study(name) for name in shipped_studies()})
        return
    loaded = load_study(name, overrides or [])
    if output is None:
        raise typer.BadParameter("missing: give a directory, such as -o runs/studies/" + name)
    if jobs == 1:  # cells are computed in this process
        prepare_tensors()
    from topr.runs.preparation import check_start
    from topr.runs.replacing import names_in
    from topr.studies import add_objectives, run_study
    from topr.studies.page import claim_lines
    from topr.studies.run import check_study

    loaded = add_objectives(loaded, add or [])
    if not resume:  # before anything is moved
        check_study(loaded)
        for arm in loaded.arms:
            check_start(loaded.cell(arm, loaded.seeds[0], None, "test"))
    reads = [name, *names_in(loaded.model_dump(mode="json"))]
    make_room(output, reads, resume=resume)
    found = run_study(loaded, output, jobs=jobs, progress=ConsoleProgress())
    say(*claim_lines(found), f"report: {output / 'report.html'}")


def results(
    directories: Annotated[list[Path], typer.Argument(help="What `topr study ... -o DIR` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Markdown file to write.")],
    figures: Annotated[
        Path, typer.Option(help="Directory for the figures, inside the file's own.")
    ] = Path("assets/studies"),
) -> None:
    """Make one page of the results of several studies, from their results.json alone."""
    from topr.studies.page import write_page

    write_page(directories, output, figures)
    say(f"{len(directories)} studies in {output}")
