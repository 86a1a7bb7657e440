"""What `skip_negatives` saves along a real training, and what it does to accuracy.

    python benchmarks/skipping.py -o runs/skipping --seeds 0 1 2 --epochs 4

The quickstart's base model and rollouts, trained for several epochs with each setting in turn on
the same rows in the same order, then evaluated on the held-out problems. Writes OUTPUT.json as it
goes, and prints a table. Seconds of the processor, of all threads, beside those of the clock: other
programs disturb them less.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from topr.runs.environment import prepare_process

SETTINGS: dict[str, float | str | None] = {"off": None, "0": 0, "0.01": 0.01, "sample": "sample"}


def train(recipe: Any, setting: float | str | None, dataset: Path, folder: Path) -> dict[str, Any]:
    """Train and evaluate one setting; return its figures."""
    from topr.progress import Silent
    from topr.runs.preparation import starting_model
    from topr.stages.evaluate import evaluate_model
    from topr.stages.train import train_model

    config = recipe.train.model_copy(update={"skip_negatives": setting})
    base = starting_model(recipe, Silent())
    began, began_cpu = time.perf_counter(), time.process_time()
    train_model(base, [dataset], config, folder, seed=recipe.seed, progress=Silent())
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    trained = base.model_copy(update={"path": str(folder / "model")})
    result = evaluate_model(recipe, trained, folder, name="trained", progress=Silent())
    log = [json.loads(x) for x in (folder / "training" / "log.jsonl").read_text().splitlines()]
    skipped = [line.get("backward/skipped", 0.0) for line in log]
    dropped = [line.get("backward/dropped_weight", 0.0) for line in log]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "skipped": skipped,
        "dropped_weight": dropped,
        "metrics": dict(result.metrics),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| seed | skip_negatives | processor s | clock s | skipped | dropped weight | pass@1 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, found in results.items():
        seed, setting = key.split("/")
        low, high = found["metrics"]["pass@1_ci"]
        lines.append(
            f"| {seed} | {setting} | {found['cpu_seconds']:.0f} | {found['seconds']:.0f} | "
            f"{statistics.fmean(found['skipped']):.0%} | "
            f"{statistics.fmean(found['dropped_weight']):.2%} | "
            f"{found['metrics']['pass@1']:.1%} [{low:.1%}, {high:.1%}] |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", "-o", type=Path, required=True, help="a directory")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=4)
    options = parser.parse_args()
    prepare_process()
    from topr.config import load_recipe
    from topr.runs.loop import run

    path = options.output.with_suffix(".json")
    results = json.loads(path.read_text()) if path.is_file() else {}
    for seed in options.seeds:
        changes = [f"seed={seed}", f"task.seed={seed}", f"task.warmup.seed={seed}"]
        changes += ["compare={}", "train.max_steps=null"]
        first = load_recipe("quickstart", [*changes, "train.num_train_epochs=0.1"])
        run(first, options.output / f"seed-{seed}")
        recipe = load_recipe("quickstart", [*changes, f"train.num_train_epochs={options.epochs}"])
        dataset = options.output / f"seed-{seed}" / "iteration-01" / "dataset"
        for name, setting in SETTINGS.items():
            key = f"{seed}/{name}"
            if key in results:
                continue
            folder = options.output / f"seed-{seed}-{name}"
            results[key] = train(recipe, setting, dataset, folder)
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(table({key: results[key]}).splitlines()[-1], flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
