"""The report: run directories as one self-contained HTML file. It reads, it computes no result."""

from collections.abc import Sequence
from pathlib import Path

from topr.errors import RunDirectoryError
from topr.report.read import read_results
from topr.report.render import GENERATOR, render
from topr.report.several import changed_across, merge
from topr.report.sources import with_sources
from topr.store import write_text_atomic

__all__ = ["write_report"]


def write_report(
    run_directory: str | Path | Sequence[str | Path], output: str | Path | None = None
) -> Path:
    """Write the report of a run, whole or partial, or of several runs, and return where it is.

    Args:
        run_directory: what `topr run RECIPE -o DIR` or `topr train` wrote, or the `output_dir` of a
            `TOPRTrainer`; of several, the first is what the others are compared with.
        output: file to write; defaults to `report.html` in the run directory, and of several runs
            in the working directory. An earlier report there is replaced.

    Raises:
        RunDirectoryError: a directory holds no run, or the file to write is there and is not a
            report of topr.

    """
    given = [run_directory] if isinstance(run_directory, str | Path) else run_directory
    directories = [Path(directory) for directory in given]
    home = directories[0] if len(directories) == 1 else Path()
    path = home / "report.html" if output is None else Path(output)
    _refuse_foreign(path)
    results = [read_results(directory) for directory in directories]
    shown = changed_across(results)
    runs = [with_sources(run, d, shown) for run, d in zip(results, directories, strict=True)]
    html = render(runs[0] if len(runs) == 1 else merge(runs, directories))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, html)
    return path


def _refuse_foreign(path: Path) -> None:
    """A report is derived and may be replaced; whatever else a user has there may not."""
    if not path.exists():
        return
    if path.is_file():
        with path.open("rb") as file:
            if f'<meta name="generator" content="{GENERATOR}'.encode() in file.read(2048):
                return
    raise RunDirectoryError(
        f"{path} exists and is not a report of topr, so it is not overwritten: "
        "give another --output, or move it away."
    )
