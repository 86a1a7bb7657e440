"""`topr run`, and the stages before training as commands: generate, grade, curate."""

import logging
import warnings
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from topr.cli.console import ConsoleProgress, say
from topr.cli.overwriting import Resume, make_room
from topr.cli.sources import hub_or_path
from topr.errors import ConfigError
from topr.records import Several, Split

RecipeName = Annotated[
    str, typer.Argument(help="Name of a shipped recipe, or path of a YAML file.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Directory to write; made if absent.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes of settings, such as train.learning_rate=1e-6."),
]
ModelPath = Annotated[
    str | None, typer.Option("--model", "-m", help="Directory, hub name, GGUF file.")
]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", "-r", help="Take the section from this recipe.")
]

GRADER_OF_TASK = {
    "arithmetic": "numeric",
    "gsm8k": "numeric",
    "math": "math",
    "verifier": "verdict",
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(run)
    app.command()(generate)
    app.command()(grade)
    app.command()(curate)


def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory to write; made if absent. Required."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Make all checks, show a prompt and a few graded completions, and say how long "
            "the run takes and how much disk and memory. Nothing is written.",
        ),
    ] = False,
    no_measure: Annotated[
        bool,
        typer.Option("--no-measure", help="With --dry-run: checks and counts, no completions."),
    ] = False,
    resume: Resume = True,
) -> None:
    """Run a recipe: generate, grade, curate, train, evaluate, again. Interrupted, it resumes."""
    from topr.config import load_recipe

    if no_measure and not dry_run:
        raise ConfigError("--no-measure belongs to --dry-run: add that, or leave it out")
    if output is None and not dry_run:
        raise ConfigError(
            "topr run needs a directory to write into: -o runs/NAME. To write nothing and see "
            "what the run would take, add --dry-run"
        )
    loaded = load_recipe(recipe, overrides or [])
    prepare_tensors()
    from topr.runs.replacing import names_in

    reads = [recipe, *names_in(loaded.model_dump(mode="json"))]
    if dry_run:
        from topr.runs import plan

        there = output if resume else None  # what is to be moved is not counted as done
        say(*plan.dry_run(loaded, there, ConsoleProgress(), measured=not no_measure))
        return
    assert output is not None  # noqa: S101 - refused above
    from topr.runs import loop
    from topr.runs.preparation import check_start
    from topr.runs.recipe_checks import check_recipe

    if not resume:  # before anything is moved
        check_recipe(loaded)
        check_start(loaded)
    make_room(output, reads, resume=resume)
    summary = loop.run(loaded, output, ConsoleProgress())
    say(*_verdict(summary), f"model: {summary['kept']['path']}; next: topr report {output}")


def generate(
    recipe: RecipeName,
    output: Output,
    overrides: Overrides = None,
    model: ModelPath = None,
    split: Annotated[Split, typer.Option(help="Which problems.")] = Split.TRAIN,
    iteration: Annotated[int, typer.Option(help="Written into each rollout.")] = 1,
    graded: Annotated[
        Path | None,
        typer.Option(
            help="Draw in rounds until curation has every problem full, grading into this "
            "directory in between."
        ),
    ] = None,
) -> None:
    """Draw completions of a recipe's problems into parquet shards."""
    from topr.config import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    most = _most_candidates(loaded, graded)
    prepare_tensors()
    from topr.engines.lazy import LazyEngine
    from topr.grading.survey import first_look
    from topr.runs.preparation import starting_model
    from topr.stages.common import task_for
    from topr.stages.generate import Quota, generate_rollouts, plan_rollouts, spent
    from topr.stages.grade import grade_rollouts, warn_of_concerns

    progress, section = ConsoleProgress(), loaded.grade
    start = starting_model(with_model(loaded, model), progress)
    task = task_for(start, loaded.task, split, progress)
    plan = plan_rollouts(loaded, task, start, iteration=iteration, seed=loaded.seed, split=split)
    quota = None
    if graded is not None:
        quota = Quota(curations=[loaded.curate], grader=task.grader, grade=section, graded=graded)
    with closing(LazyEngine(start, loaded.generate)) as engine:
        look = partial(first_look, task.grader, section)
        manifest = generate_rollouts(
            plan, engine, output, progress=progress, quota=quota, look=look
        )
    if graded is not None:
        grade_rollouts(
            output, task.grader, section, graded, progress=progress,
            tokenizer=lambda: engine.tokenizer, check=warn_of_concerns,
        )  # fmt: skip
        say(spent(manifest.details))
    elif most is not None and most > loaded.generate.n:
        say(
            f"this recipe's curation takes up to {most} completions of a problem; here are "
            f"{loaded.generate.n}. --graded DIR draws on in rounds, as `topr run` does"
        )
    say(
        f"{manifest.rows} completions of {manifest.details['problems']} problems "
        f"({manifest.details['tokens']} tokens) in {output}"
    )


def grade(
    source: Annotated[
        Path,
        typer.Argument(parser=hub_or_path, help="Rollouts, or JSONL, JSON, CSV or parquet."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File (or directory) to write.")],
    task: Annotated[
        str,
        typer.Option(
            "--task", "-t",
            help="arithmetic, gsm8k, math, reasoning_gym; or a grader: numeric, numeric_marked, "
            "math, exact, module:function.",
        ),
    ],
    answer_only: Annotated[
        bool, typer.Option("--answer-only", help="Completions are final answers, not solutions.")
    ] = False,
    completion: Annotated[str, typer.Option(help="Column of the completions.")] = "completion",
    gold: Annotated[
        str, typer.Option(help="Column of the gold answers; a nested one is named a.b.")
    ] = "gold",
    several_golds: Annotated[
        Several, typer.Option(help="What a list of several gold answers in a file means.")
    ] = Several.REFUSE,
    recipe: RecipeOption = None,
    overrides: Overrides = None,
) -> None:  # fmt: skip
    """Grade completions: adds grade, reward and answer to the input's own columns."""
    from topr.config import GradeConfig, load_section

    config = load_section(GradeConfig, "grade", recipe, overrides or [])
    grader = GRADER_OF_TASK.get(task, task)
    if source.is_dir() and not output.suffix:
        from topr.stages.grade import grade_rollouts, warn_of_concerns

        manifest = grade_rollouts(
            source, grader, config, output, progress=ConsoleProgress(), answer_only=answer_only,
            check=warn_of_concerns,
        )  # fmt: skip
        _print_counts(manifest.details["outcomes"], manifest.rows)
        return
    graded = _graded_file(
        source, output, grader, config, answer_only=answer_only, completion_column=completion,
        gold=gold, several_golds=several_golds,
    )  # fmt: skip
    counts = graded.column("grade").value_counts().to_pylist()
    _print_counts({entry["values"]: entry["counts"] for entry in counts}, graded.num_rows)


def _graded_file(
    source: Path, output: Path, grader: str, config: Any, *, gold: str, **options: Any
) -> Any:
    """Write the rows of any file with their grades, and return them."""
    from topr.grading import grade_table
    from topr.interop import RowStream, check_output, read_rows, write_rows
    from topr.store import value_at

    table = read_rows(source)
    check_output(output)
    golds = [value_at(row, gold) for _, row in RowStream.open(source)]
    with ConsoleProgress().bar("grading", table.num_rows, "completions") as advance:
        graded = grade_table(
            table, grader, config, gold_column=gold, golds=golds, progress=lambda n: advance(n),
            **options,
        )  # fmt: skip
    write_rows(output, graded)
    return graded


def curate(
    graded: Annotated[
        Path, typer.Argument(parser=hub_or_path, help="Directory of graded rollouts.")
    ],
    output: Output,
    overrides: Overrides = None,
    recipe: RecipeOption = None,
) -> None:
    """Choose the graded rollouts to train on."""
    from topr.config import CurateConfig, load_section
    from topr.stages.curate import curate_rollouts

    config = load_section(CurateConfig, "curate", recipe, overrides or [])
    say(*_curation_lines(curate_rollouts(graded, config, output).details))


def _most_candidates(recipe: Any, graded: Path | None) -> int | None:
    from topr.curation import max_candidates

    most = max_candidates(recipe.curate)
    if graded is not None and most is None:
        raise ConfigError(
            f"--graded {graded}: no rule of curate.steps knows when a problem is full, so there "
            "are no rounds; add `anna_karenina`, or leave --graded out and grade with `topr grade`"
        )
    return most


def _curation_lines(report: dict[str, Any]) -> list[str]:
    """Return what each rule kept and dropped, why, and what the dataset is then."""
    from topr.curation import REASONS

    lines = [f"{'rule':<16} {'given':>9} {'kept':>9} {'dropped':>9}  why"]
    for step in report["steps"]:
        reasons = [f"{n} {REASONS[reason]}" for reason, n in step["dropped"].items()]
        row = f"{step['rule']:<16} {step['rows']:>9} {step['kept']:>9}"
        row += f" {step['rows'] - step['kept']:>9}"
        lines.append(f"{row}  {reasons[0]}" if reasons else row)
        lines += [f"{'':<47} {reason}" for reason in reasons[1:]]
    return [
        *lines,
        f"kept {report['kept']} of {report['rows']} completions, of {report['problems']} problems; "
        f"{report['tokens_kept']} of {report['tokens']} tokens",
        f"{report['positives']} positive, {report['negatives']} negative: "
        f"share of positives p {report['positive_share']:.1%}",
    ]


def with_model(recipe: Any, path: str | None) -> Any:
    """Return a recipe that starts from another model, where one is given."""
    if path is None:
        return recipe
    return recipe.model_copy(update={"model": recipe.model.at(path)})


def _verdict(summary: dict[str, Any]) -> list[str]:
    """Return the last lines of a run: paired differences, then base and final pass@1."""
    lines = [_alarm(alarm) for alarm in summary["alarms"]]
    for entry in summary["comparisons"]:
        low, high = entry["ci"]
        sure = "" if low > 0 or high < 0 else " (not beyond chance)"
        lines.append(
            f"{entry['a']} - {entry['b']}: {entry['metric']} {100 * entry['difference']:+.1f} "
            f"points [{100 * low:+.1f}, {100 * high:+.1f}]{sure}"
        )
    models = summary["models"]
    final = [model for model in models if model["name"] == models[1]["name"]][-1]
    for model in (models[0], final):
        lines.append(f"{model['name']} (iteration {model['iteration']}): pass@1 {_pm(model)}")
    return lines


def _alarm(alarm: dict[str, Any]) -> str:
    found = f"{alarm['where']} looks ruined: {alarm['kind']} at step {alarm['step']}"
    if "kept_step" in alarm:
        return f"{found}; it was stopped, and the weights of step {alarm['kept_step']} were kept"
    return f"{found}; with train.watch=stop it would have the last good weights"


def _pm(model: dict[str, Any]) -> str:
    low, high = model["pass@1_ci"]
    return f"{model['pass@1']:.1%} [{low:.1%}, {high:.1%}]"


def _print_counts(outcomes: dict[str, int], rows: int) -> None:
    for outcome, count in sorted(outcomes.items(), key=lambda item: -item[1]):
        say(f"{outcome}: {count} ({count / rows:.1%})")
    say(f"{rows} completions graded")


def prepare_tensors() -> None:
    """Set the process up for tensors; keep the bars and chatter of other libraries out of ours."""
    from topr.runs.environment import prepare_process

    prepare_process()
    # That there is no GPU is no news on a CPU; what a later version removes is for us to read.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "accelerator to CPU" not in record.msg)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.utils.logging.disable_progress_bar()
