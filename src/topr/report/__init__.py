"""The report: a run directory as one self-contained HTML file. It reads, it computes nothing."""

from pathlib import Path

from topr.errors import RunDirectoryError
from topr.report.read import read_run
from topr.report.render import GENERATOR, render
from topr.store import write_text_atomic

__all__ = ["write_report"]


def write_report(run_directory: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a run, whole or partial, and return where it is.

    Args:
        run_directory: what `topr run RECIPE -o DIR` or `topr train` wrote, or the `output_dir` of a
            `TOPRTrainer`.
        output: file to write; defaults to `report.html` in the run directory. An earlier report
            there is replaced.

    Raises:
        RunDirectoryError: the directory holds no run, or the file to write is there and is not a
            report of topr.

    """
    path = Path(run_directory) / "report.html" if output is None else Path(output)
    _refuse_foreign(path)
    html = render(read_run(Path(run_directory)))
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
