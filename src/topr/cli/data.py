"""`topr import`, `topr compare`, `topr report`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from topr.cli.console import out


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("import")(import_)
    app.command()(compare)
    app.command()(report)


def import_(
    source: Annotated[Path, typer.Argument(help="JSONL, JSON, CSV or parquet, also .gz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of rollouts to write.")],
    tokenizer: Annotated[
        str, typer.Option(help="Model directory or hub name whose tokenizer is used.")
    ],
    prompt: Annotated[str | None, typer.Option(help="Column of the prompts.")] = None,
    completion: Annotated[str | None, typer.Option(help="Column of the completions.")] = None,
    gold: Annotated[str | None, typer.Option(help="Column of the gold answers.")] = None,
    problem_id: Annotated[str | None, typer.Option(help="Column that names problems.")] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="Column of rewards or labels; '' for none, to grade them with topr."),
    ] = None,
    template: Annotated[
        str, typer.Option(help="Text around a prompt, such as 'Question: {prompt}\\nAnswer:'.")
    ] = "{prompt}",
    model: Annotated[str, typer.Option(help="Who wrote the completions.")] = "unknown",
) -> None:
    """Turn completions that other tools made into rollouts, tokenised once."""
    from topr.config import ModelConfig
    from topr.models import load_tokenizer
    from topr.store import (
        ColumnMap,
        Manifest,
        import_rollouts,
        read_rows,
        rollouts_to_table,
        write_manifest,
        write_shard,
    )

    table = read_rows(source)
    columns = ColumnMap(
        prompt=prompt, completion=completion, gold=gold, problem_id=problem_id, reward=reward
    ).resolve(table)
    out.print(escape(columns.describe()))
    loaded = load_tokenizer(ModelConfig(path=tokenizer))
    rollouts = rollouts_to_table(
        import_rollouts(
            table,
            columns=columns,
            tokenizer=loaded,
            model=model,
            template=template.replace("\\n", "\n"),
        )
    )
    write_shard(output, 0, rollouts)
    write_manifest(
        output,
        Manifest(
            stage="import",
            fingerprint="",
            rows=rollouts.num_rows,
            files=("part-00000.parquet",),
            details={"source": str(source), "tokenizer": tokenizer},
        ),
    )
    out.print(f"{rollouts.num_rows} rollouts in {escape(str(output))}")
    for line in _what_is_there(rollouts, columns.reward):
        out.print(escape(line), soft_wrap=True)


def _what_is_there(rollouts: Any, reward: str | None) -> list[str]:
    """Return what the user has to know of imported rollouts: are they graded, can they be trained
    on.
    """
    rows, graded = rollouts.num_rows, rollouts.num_rows - rollouts["grade"].null_count
    lines = []
    if graded:
        lines.append(
            f"{graded} have the grade that column {reward} says; with --reward '' none would, and "
            "`topr grade` can grade them"
        )
    else:
        lines.append("none is graded: `topr grade` does that")
    if rollouts["logprobs"].null_count:
        lines.append(
            f"{rollouts['logprobs'].null_count} of {rows} have no log-probabilities: train on them "
            "with train.behavior_logprobs=recompute"
        )
    return lines


def compare(
    a: Annotated[Path, typer.Argument(help="An evaluation.json, or the directory that holds it.")],
    b: Annotated[Path, typer.Argument(help="Another, on the same problems.")],
) -> None:
    """Compare two models on the same problems, paired: a minus b with 95 % intervals."""
    from topr.evaluation import RESULT_FILE, read_evaluation
    from topr.evaluation import compare as paired

    results = [read_evaluation(path / RESULT_FILE if path.is_dir() else path) for path in (a, b)]
    for found in paired(*results):
        low, high = found.ci
        out.print(
            escape(
                f"{found.a} - {found.b}: {found.metric} {100 * found.difference:+.1f} points "
                f"[{100 * low:+.1f}, {100 * high:+.1f}]"
            )
        )


def report(
    directory: Annotated[Path, typer.Argument(help="A run directory, finished or not.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Elsewhere than DIR/report.html.")
    ] = None,
) -> None:
    """Write one self-contained HTML file that shows a run."""
    from topr.report import write_report

    out.print(f"report: {escape(str(write_report(directory, output)))}")
