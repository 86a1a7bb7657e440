"""`topr verify` and `topr vote`."""

import json
import logging
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from topr.cli.console import ConsoleProgress, out, say
from topr.cli.running import Output, Overrides, RecipeOption, prepare_tensors
from topr.cli.sources import hub_or_path
from topr.errors import ConfigError

logger = logging.getLogger(__name__)

METRICS = ("accuracy", "balanced_accuracy", "auc", "calibration_error", "invalid")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(verify)
    app.command()(vote)


def verify(
    rollouts: Annotated[
        Path,
        typer.Argument(
            parser=hub_or_path,
            help="Rollouts, or a file with a question and a solution in each row.",
        ),
    ],
    output: Output,
    model: Annotated[str, typer.Option("--model", "-m", help="Verifier: directory, hub, GGUF.")],
    overrides: Overrides = None,
    recipe: RecipeOption = None,
    question: Annotated[str | None, typer.Option(help="Column of the question.")] = None,
    solution: Annotated[str | None, typer.Option(help="Column of the solution.")] = None,
    label: Annotated[str | None, typer.Option(help="Column that says what is right.")] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Column whose values get metrics of their own.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
) -> None:
    """Have a verifier score solutions. Settings: generate.KEY=VALUE; the prompt: --recipe."""
    from topr.config import ModelConfig
    from topr.config.mistakes import validate

    asked, config = _asked(recipe, overrides or [], Path(model))
    asked = asked.model_copy(update={"rollouts": str(rollouts)})
    start = validate(ModelConfig, {"path": model, "device": device}, where="options")
    prepare_tensors()
    from topr.engines.lazy import LazyEngine
    from topr.interop import ColumnMap
    from topr.models.gguf import plain_model
    from topr.stages.verify import verify_rollouts
    from topr.tasks.prompts import resolve_prompt
    from topr.verifier.task import VerifierTask

    progress = ConsoleProgress()
    with closing(LazyEngine(plain_model(start, progress), config)) as engine:
        asked = resolve_prompt(asked, engine.tokenizer, progress.say)
        manifest = verify_rollouts(
            rollouts,
            VerifierTask(asked),
            engine,
            config,
            output,
            columns=ColumnMap(prompt=question, completion=solution, reward=label),
            by=by or [],
            seed=seed,
            progress=progress,
        )
    found = manifest.details
    say(
        f"{manifest.rows} solutions scored by {found['checks']} checks of each of "
        f"{found['checked']} different ones, in {output}",
        *(_line(name, metrics) for name, metrics in found["metrics"].items()),
    )


def vote(
    scored: Annotated[
        Path, typer.Argument(parser=hub_or_path, help="Graded completions with scores.")
    ],
    score: Annotated[str, typer.Option(help="Column of the scores.")] = "verifier_score",
    problem: Annotated[str | None, typer.Option(help="Column that names the problem.")] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="That vote; none: as many as most problems have.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Of the problems.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of intervals and subsets.")] = 0,
) -> None:
    """Let candidates vote: majority, weighted by score, best of n, and the oracle above them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from topr.interop import check_output, read_rows
    from topr.store import write_text_atomic
    from topr.verifier.voting import vote as count

    if output is not None:
        check_output(output)
    votes = count(
        read_rows(scored), score=score, problem=problem, candidates=candidates,
        resamples=resamples, seed=seed,
    )  # fmt: skip
    table = Table(
        "n", *votes.values, "weighted +", "best +", box=SIMPLE_HEAD,
        title=f"{votes.problems} problems, scores in {score}; %, with 95 % intervals",
        caption="n candidates vote; + is points above plain majority, paired by problem",
    )  # fmt: skip
    for k in votes.at:
        shares = [_percent(*votes.values[method][k]) for method in votes.values]
        points = [_percent(*votes.differences[method][k], sign="+") for method in votes.differences]
        table.add_row(str(k), *shares, *points)
    out.print(table)
    if votes.auc_within is not None:
        value, (low, high) = votes.auc_within
        say(
            f"a right candidate has a higher score than a wrong one of its problem with a chance "
            f"of {value:.3f} [{low:.3f}, {high:.3f}]"
        )
    if votes.left_out:
        say(
            f"{votes.left_out} problems left out: nothing can be said of a candidate, or they have "
            f"fewer than {votes.at[-1]}"
        )
    if votes.unscored:
        say(f"{votes.unscored} candidates have no score and weigh nothing")
    if output is not None:
        write_text_atomic(output, json.dumps(votes.as_json(), indent=2) + "\n")


def _asked(recipe: str | None, overrides: list[str], model: Path) -> tuple[Any, Any]:
    """Return how checks are asked for and sampled.

    As a recipe says, a verifier's own or a run's; without one, the prompt is the one that the
    verifier was trained with, where it was noted next to it.
    """
    from topr.config import (
        GenerateConfig,
        VerifierConfig,
        load_recipe,
        load_section,
        verifier_recipe,
    )
    from topr.config.mistakes import validate
    from topr.config.recipe import override_section
    from topr.verifier.task import PROMPT_FILE, noted_prompt

    if recipe is None:
        config = load_section(GenerateConfig, "generate", None, overrides)
        noted = noted_prompt(model)
        if not noted:
            logger.warning(
                "%s has no %s, so topr did not train it as a verifier: it is asked with the "
                "default prompt; --recipe says another", model, PROMPT_FILE,
            )  # fmt: skip
        values = {"name": "verifier", **noted}
        return validate(VerifierConfig, values, where=str(model / PROMPT_FILE)), config
    loaded = load_recipe(recipe)
    if loaded.verifier is not None:
        loaded = verifier_recipe(loaded, candidates="", test_candidates="", generator="")
    if not isinstance(loaded.task, VerifierConfig):
        raise ConfigError(
            f"recipe {recipe} has the task {loaded.task.name!r} and no verifier: give the recipe "
            "that the verifier was trained with, since it says how a check is asked for"
        )
    return loaded.task, override_section(loaded.generate, "generate", overrides)


def _line(name: str, metrics: dict[str, Any]) -> str:
    if not metrics["candidates"]:
        return f"{name}: it is not known which solutions are right"
    shown = []
    for key in METRICS:
        if key in metrics:
            low, high = metrics[f"{key}_ci"]
            shown.append(f"{key} {metrics[key]:.3f} [{low:.3f}, {high:.3f}]")
    return (
        f"{name}: {metrics['candidates']} solutions of {metrics['questions']} questions, "
        f"{metrics['right_share']:.1%} right; " + ", ".join(shown)
    )


def _percent(value: float, interval: tuple[float, float], sign: str = "") -> str:
    low, high = interval
    return f"{100 * value:{sign}.1f} {100 * low:{sign}.0f}–{100 * high:{sign}.0f}"
