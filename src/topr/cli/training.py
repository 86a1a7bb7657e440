"""`topr train` and `topr eval`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from topr.cli.console import ConsoleProgress, say
from topr.cli.overwriting import Resume, make_room
from topr.cli.running import ModelPath, Output, Overrides, RecipeOption, prepare_tensors, with_model
from topr.cli.sources import hub_or_path
from topr.errors import ConfigError, DataError
from topr.runs.environment import launched

if TYPE_CHECKING:
    from topr.config import ModelConfig, TrainConfig
    from topr.stages.probe import ProbeSource
    from topr.store import Manifest


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(train)
    app.command("eval")(evaluate)


def train(
    dataset: Annotated[
        Path,
        typer.Argument(
            parser=hub_or_path, help="Graded rollouts, or a file of prompt, completion, reward."
        ),
    ],
    output: Output,
    model: Annotated[str, typer.Option("--model", "-m", help="Directory, hub name, GGUF file.")],
    overrides: Overrides = None,
    recipe: RecipeOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    seed: Annotated[int, typer.Option(help="Order of the rows.")] = 0,
    behavior_model: Annotated[
        list[Path] | None,
        typer.Option(
            help="Model (directory, GGUF file) that wrote rows of the dataset, where that is not "
            "--model: log mu is recomputed with it. May be given several times."
        ),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            help="Recipe whose validation problems the model answers now and then while it trains."
        ),
    ] = None,
    resume: Resume = True,
) -> None:
    """Train a model on graded completions. Settings: train.KEY=VALUE."""
    from topr.config import ModelConfig, TrainConfig, load_recipe, load_section
    from topr.config.mistakes import validate
    from topr.interop import RowStream

    config = load_section(TrainConfig, "train", recipe, overrides or [])
    if not dataset.exists():
        raise DataError(f"{dataset} is not there: give graded rollouts, or a file of rows")
    rows = RowStream.open(dataset)  # refuses a file without rows, before models are loaded
    asked = "behavior_logprobs" in config.model_fields_set
    if not asked and all(row.get("logprobs") is None for _, row in rows):
        config = config.model_copy(update={"behavior_logprobs": "recompute"})
        say(
            "no log-probabilities are recorded: log mu is recomputed with the trained model, "
            "or --behavior-model (train.behavior_logprobs=recompute)"
        )
    start = validate(ModelConfig, {"path": model, "device": device}, where="options")
    reads = [dataset, model, recipe or "", probe or "", *(behavior_model or ())]
    prepare_tensors()
    from topr.models.gguf import plain_model
    from topr.stages.probe import asked_source

    start = plain_model(start, progress := ConsoleProgress())
    probes = asked_source(load_recipe(probe), config, start, progress) if probe else None
    if not resume:  # before anything is moved
        _check(dataset, start, config, seed, behavior_model or ())
    make_room(output, [str(each) for each in reads if each], resume=resume)
    done = (output / "training" / "manifest.json").is_file()
    manifest = _train(dataset, output, start, config, seed, behavior_model or (), probes)
    if not launched()[0]:  # The first process says it.
        _show(manifest, output, again=done)


def _check(
    dataset: Path, model: "ModelConfig", config: "TrainConfig", seed: int, writers: Sequence[Path]
) -> None:
    """Refuse what training would refuse before it loads weights. Nothing is written."""
    from topr.models.gguf import plain_model
    from topr.models.loading import load_tokenizer
    from topr.models.places import identity
    from topr.stages.train_arguments import training_arguments
    from topr.stages.train_sources import GradedRows

    training_arguments(config, model, Path("unused"), seed)
    next(iter(GradedRows([dataset])), None)
    load_tokenizer(model)
    for each in (model, *(model.at(str(path)) for path in writers)):
        identity(plain_model(each))


def _train(
    dataset: Path,
    output: Path,
    model: "ModelConfig",
    config: "TrainConfig",
    seed: int,
    behavior_models: Sequence[Path],
    probe: "ProbeSource | None",
) -> "Manifest":
    from torch import distributed

    from topr.models.gguf import plain_model
    from topr.stages.train import train_model

    progress = ConsoleProgress()
    writers = [plain_model(model.at(str(path)), progress) for path in behavior_models]
    manifest = train_model(
        model, [dataset], config, output, seed=seed, progress=progress, writers=writers, probe=probe
    )  # fmt: skip
    if distributed.is_initialized():
        distributed.barrier()
        first = distributed.get_rank() == 0
        distributed.destroy_process_group()
        if not first:
            # Nothing is left to do here. Ended in the usual way, threads of the libraries have been
            # seen to abort a process that had done its work, and with it the whole training.
            sys.stderr.flush()
            os._exit(0)
    return manifest


def _show(manifest: "Manifest", output: Path, *, again: bool) -> None:
    """Say what was made, how it went, and what to do next."""
    from topr.report.text import plural
    from topr.stages.train import alarm_lines

    found = manifest.details
    kinds = ("unscored", "empty", "too_long", "truncated", "greedy")
    left_out = [f"{found[kind]} {kind}" for kind in kinds if found.get(kind)]
    say(
        *([f"{output} is finished: nothing was trained again"] if again else []),
        f"trained {plural(found['steps'], 'step')} of {found['objective']} on "
        f"{plural(found['rows'], 'completion')}, "
        f"{found['positive_share']:.1%} positive"
        + (f" (left out: {', '.join(left_out)})" if left_out else ""),
        *(alarm_lines(found.get("watch") or {}) or ["nothing looked wrong on the way"]),
        f"model: {output / 'model'}; all numbers: {output / 'training' / 'manifest.json'}",
        f"next: topr report {output}, or topr eval RECIPE -m {output / 'model'} -o DIR",
    )


def evaluate(
    source: Annotated[
        str,
        typer.Argument(
            help="Recipe (with --model), or graded rollouts made anywhere: a path or a hub name."
        ),
    ],
    output: Output,
    overrides: Overrides = None,
    model: ModelPath = None,
    name: Annotated[str, typer.Option(help="The model's name in tables.")] = "model",
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Measure a model on held-out problems, or score graded rollouts that are there already."""
    from topr.evaluation import RESULT_FILE, write_evaluation

    if _names_rollouts(source):
        from topr.config import EvaluateConfig, load_section
        from topr.evaluation import SCORED_COLUMNS, score
        from topr.interop import read_rows
        from topr.store import read_table
        from topr.store.atomic import refuse_existing

        config = load_section(EvaluateConfig, "evaluate", None, overrides or [])
        if model is not None:
            raise ConfigError(
                f"--model {model} with {source}: these are completions that are there already, and "
                "no model is asked for more; give a recipe to evaluate a model, or leave --model "
                "out"
            )
        refuse_existing(output / RESULT_FILE)
        path = hub_or_path(source)
        shards = path.is_dir()
        rollouts = read_table(path, SCORED_COLUMNS) if shards else _named(read_rows(path))
        result = score(
            rollouts,
            pass_at=config.pass_at,
            resamples=config.bootstrap,
            name=name,
            iteration=0,
            model=source,
            split="given",
        )
        write_evaluation(output / RESULT_FILE, result)
    else:
        from topr.config import load_recipe

        loaded = load_recipe(source, overrides or [])
        prepare_tensors()
        from topr.runs.preparation import starting_model
        from topr.stages.evaluate import evaluate_model

        progress = ConsoleProgress()
        start = starting_model(with_model(loaded, model), progress)
        result = evaluate_model(loaded, start, output, name=name, progress=progress)
    if as_json:
        typer.echo((output / RESULT_FILE).read_text(encoding="utf-8"), nl=False)
        return
    from topr.evaluation import headline

    say(headline(result), *(f"  {key}: {_number(v)}" for key, v in result.metrics.items()))


def _named(table: Any) -> Any:
    """Return rows of any tool with a column `problem_id`: by default their prompts tell."""
    from topr.interop import ColumnMap, as_column

    found = ColumnMap().resolve(table, required=())
    named = found.problem_id or found.prompt
    if not named or named == "problem_id":
        return table
    ids = as_column([str(value) for value in table[named].to_pylist()])
    return table.append_column("problem_id", ids)


def _names_rollouts(source: str) -> bool:
    """Return whether `topr eval` is given rollouts; else it is a recipe, by name or as YAML."""
    from topr.hub import parse

    is_recipe = source.endswith((".yaml", ".yml"))
    return not is_recipe and (Path(source).exists() or parse(source) is not None)


def _number(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{value[0]:.4f}, {value[1]:.4f}]"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
