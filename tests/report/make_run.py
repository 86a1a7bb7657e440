"""A run directory as the loop leaves it, hostile strings included.

Evaluations and the summary are made by the functions that make them in a run. Completions and the
training's log are made up: a run with a model takes a minute on a CPU.
"""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from topr.config import dump_recipe
from topr.config.recipe import Recipe
from topr.evaluation import RESULT_FILE, score, write_evaluation
from topr.grading.tables import GRADE_FIELDS
from topr.records import EvalResult, FinishReason, Grade, Outcome, Rollout, SamplingParams
from topr.runs.summary import Evaluated, write_summary
from topr.store import (
    Manifest,
    rollouts_to_table,
    shard_paths,
    write_choice,
    write_columns,
    write_json_atomic,
    write_manifest,
    write_shard,
)

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>document.documentElement.dataset.pwned='1'</script>",
    "<img src=x onerror=\"document.documentElement.dataset.pwned='2'\">",
    "<!--<script>",
    "\"quotes' & `ticks` ${document.title='pwned'} {{ 7*7 }} {% raw %}",
    "The answer is 1\u202e2\u202c\u2066 3\u2069\u200f and\u2028a\u2029line \x1b[31mred\x00\x07",
    "null undefined NaN None \\u003c \\",
    "",
    "x" * 60_000,
    r"$\href{javascript:alert(1)}{\frac{1}{2}}$ is $\text{<img src=x onerror=alert(1)>}$",
    "**bold <script>alert(1)</script>** and `code` and *it*\n# Head\n- one\n1. two\n* 4 = 8\n"
    "```html\n<b>x</b>\n```\n[link](javascript:alert(1)) ![i](http://example.org/x.png)",
    r"So \[ x = \frac{-b \pm \sqrt{b^2-4ac}}{2a} \] and $5 or $6, \boxed{\sqrt{2}}.",
    "```\ncost = '$x$'\n  total  =  '\\[ y\n  z \\]'\n```\n"
    "数$\\overline{xx}$ $$\n𝑥  \\unknown\n$$ ends",
)
KINDS = {  # name -> (share correct of a sampled answer, share without an answer)
    "base": (0.27, 0.09),
    "topr": (0.60, 0.01),
    "sft": (0.49, 0.03),
    "reinforce": (0.05, 0.85),
}


def make_run(
    directory: Path,
    *,
    iterations: int = 2,
    problems: int = 48,
    steps: int = 75,
    seed: int = 0,
    called: str = "quickstart",
    hostile: bool = True,
    kept: int | None = None,
    finished: int | None = None,
    split: str = "test",
) -> Path:
    """Write a run of `iterations` with two comparisons and return its directory.

    Args:
        directory: to write.
        iterations: of the recipe.
        problems: of each evaluation.
        steps: of each training.
        seed: of all answers.
        called: name of the recipe.
        hostile: put hostile completions into the evaluations' first problem.
        kept: iteration that is best on validation problems; by default the last is kept.
        finished: iterations that are done, of a run that is still going; by default the whole run.
        split: whose problems are evaluated.

    """
    rng = random.Random(seed)
    recipe = Recipe.model_validate(
        {
            "name": called,
            "description": "A small model gets better at word problems <b>offline</b>",
            "iterations": iterations,
            "task": {"name": "arithmetic"},
            "train": {"learning_rate": 1e-4, "baseline": -0.3, "optim": "adamw_torch"},
            "compare": {
                "sft": {"curate": {"steps": ["positives"]}, "train": {"objective": "sft"}},
                "reinforce": {"train": {"objective": "reinforce"}},
            },
        }
    )
    directory.mkdir(parents=True)
    (directory / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    write_json_atomic(
        directory / "environment.json",
        {
            "topr": "0.1.0",
            "commit": "0123456789abcdef",
            "python": "3.11.9",
            "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
            "cpu": {"count": 2, "threads": 1},
            "cuda": None,
            "devices": [],
            "command": ["topr", "run", "</script><script>alert(2)</script>"],
        },
    )
    asked = (problems, split, hostile)
    evaluations = [_evaluate(rng, directory / "iteration-00", "base", 0, *asked)]
    first: list[Rollout] = []
    for iteration in range(1, (iterations if finished is None else finished) + 1):
        folder = directory / f"iteration-{iteration:02d}"
        graded = _rollouts(rng, "base", problems, iteration, "train", hostile=False)
        _store(folder / "rollouts", [replace(r, grade=None) for r in graded])
        _store(folder / "graded", graded, source=folder / "rollouts")
        _choose(folder / "dataset", graded, list(range(len(graded))), folder / "graded")
        _train(rng, folder / "training", graded, "topr", steps)
        first = first or graded
        evaluations.append(_evaluate(rng, folder, "topr", iteration, *asked))
    if finished is not None:
        return directory
    for name in recipe.compare:
        folder = directory / "compare" / name
        chosen = [n for n, r in enumerate(first) if name != "sft" or r.grade.reward > 0]
        _choose(folder / "dataset", first, chosen, directory / "iteration-01" / "graded")
        _train(rng, folder / "training", [first[n] for n in chosen], name, steps)
        evaluations.append(_evaluate(rng, folder, name, 1, *asked))
    write_summary(recipe, evaluations, _validations(evaluations, kept), directory)
    return directory


def _validations(evaluations: list[Evaluated], kept: int | None) -> list[Evaluated]:
    """Evaluations on validation problems of which that of the iteration `kept` is the best."""
    loop = [found for found in evaluations if found.result.name in ("base", "topr")]
    return [
        replace(found, result=replace(found.result, metrics={"pass@1": float(i == kept)}))
        for i, found in enumerate(loop if kept is not None else ())
    ]


def _evaluate(
    rng: random.Random, folder: Path, name: str, iteration: int, problems: int, split: str,
    hostile: bool,
) -> Evaluated:  # fmt: skip
    rollouts = _rollouts(rng, name, problems, iteration, split, hostile=hostile)
    _store(folder / "evaluation", rollouts)
    result: EvalResult = score(
        rollouts_to_table(rollouts), name=name, iteration=iteration, model=f"runs/{name}",
        split=split, resamples=100,
    )  # fmt: skip
    write_evaluation(folder / RESULT_FILE, result)
    return Evaluated(result=result, path=folder / "model", step=None)


def _rollouts(
    rng: random.Random, name: str, problems: int, iteration: int, split: str, *, hostile: bool
) -> list[Rollout]:
    rollouts = []
    for number in range(problems):
        asked = random.Random(number)  # the same problems for every model
        a, b, c = asked.randint(3, 20), asked.randint(2, 9), asked.randint(2, 4)
        prompt = (
            f"Tom has {a} pens . Tom buys {b} more . Tom gets {c} bags of {b} . How many pens now ?"
        )
        gold = a + b + c * b
        for sample in range(16 if split == "train" else 17):
            strange = hostile and number == 0 and sample < len(HOSTILE)
            text, outcome, answer = _answer(rng, name, iteration, a, b, c)
            if strange:
                text, outcome, answer = HOSTILE[sample], Outcome.UNPARSEABLE, None
            ids = (*range(10, 10 + len(text.split())), 2)
            rollouts.append(
                Rollout(
                    problem_id=f"arithmetic-{split}-{number:05d}",
                    sample=sample,
                    prompt=prompt,
                    prompt_ids=(1, 5, 6),
                    completion=text,
                    completion_ids=ids,
                    logprobs=tuple(-abs(rng.gauss(0, 0.6)) for _ in ids),
                    finish_reason=FinishReason.LENGTH if len(text) > 1000 else FinishReason.STOP,
                    sampling=SamplingParams(
                        temperature=0.0 if sample == 16 else 1.0, max_tokens=64, seed=0
                    ),
                    model=f"runs/{name}",
                    revision="abc",
                    engine="scripted",
                    iteration=iteration,
                    gold=str(gold),
                    grade=Grade(
                        outcome=outcome,
                        reward=1.0 if outcome is Outcome.CORRECT else -1.0,
                        answer=answer,
                    ),
                )
            )
    return rollouts


def _answer(
    rng: random.Random, name: str, iteration: int, a: int, b: int, c: int
) -> tuple[str, Outcome, str | None]:
    share_correct, share_invalid = KINDS[name]
    share_correct += 0.08 * max(0, iteration - 1)
    gold = a + b + c * b
    roll = rng.random()
    if roll < share_invalid:
        return f"{a} + {b} + + = = so so so so", Outcome.UNPARSEABLE, None
    right = roll > 1 - share_correct
    said = gold if right else gold + rng.choice([-3, -2, -1, 1, 2, 5])
    text = f"{a} + {b} = {a + b} . {c} * {b} = {c * b} . The answer is {said}"
    return text, Outcome.CORRECT if right else Outcome.WRONG, str(said)


def _store(folder: Path, rollouts: list[Rollout], source: Path | None = None) -> None:
    """Two shards of rollouts; of grades alone where the completions stay in `source`."""
    half = len(rollouts) // 2
    paths = []
    for index, part in enumerate((rollouts[:half], rollouts[half:])):
        table = rollouts_to_table(part)
        if source is None:
            paths.append(write_shard(folder, index, table))
        else:
            shard = shard_paths(source)[index]
            paths.append(write_columns(folder, shard, table, tuple(GRADE_FIELDS)))
    _manifest(folder, len(rollouts), [p.name for p in paths], {})


def _choose(folder: Path, rollouts: list[Rollout], kept: list[int], graded: Path) -> None:
    keys = rollouts_to_table(rollouts).select(["problem_id", "sample", "reward"]).take(kept)
    path = write_choice(folder, graded, keys, np.array(kept))
    _manifest(folder, len(kept), [path.name], {})


def _manifest(folder: Path, rows: int, files: list[str], details: dict[str, Any]) -> None:
    write_manifest(
        folder,
        Manifest(
            stage=folder.name, fingerprint="f" * 16, rows=rows, files=tuple(files), details=details
        ),
    )


def _train(
    rng: random.Random, folder: Path, rollouts: list[Rollout], name: str, steps: int
) -> None:
    folder.mkdir(parents=True)
    lines = [json.dumps(_log_row(rng, name, step, steps)) for step in range(1, steps + 1)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    examples = [r for r in rollouts if r.sample < 3]
    if name == "topr":
        ids = tuple(range(len(HOSTILE[1].split()) + 1))
        examples[0] = replace(
            examples[0], completion=HOSTILE[1], completion_ids=ids, logprobs=(-0.5,) * len(ids)
        )
    table = rollouts_to_table(examples)
    tokens = [[*r.completion.split(), "</s>"] for r in examples]
    behavior = [list(r.logprobs[: len(t)]) for r, t in zip(examples, tokens, strict=True)]
    policy = [
        [min(-0.001, value + rng.gauss(0.1 if r.grade.reward > 0 else -0.5, 0.5)) for value in row]
        for r, row in zip(examples, behavior, strict=True)
    ]
    for column, values, kind in (
        ("tokens", tokens, pa.list_(pa.string())),
        ("behavior_logprobs", behavior, pa.list_(pa.float32())),
        ("policy_logprobs", policy, pa.list_(pa.float32())),
    ):
        table = table.append_column(column, pa.array(values, kind))
    pq.write_table(table, folder / "examples.parquet")
    positives = sum(r.grade.reward > 0 for r in rollouts)
    details = {
        "objective": "topr",
        "positive_share": 0.2345 if name == "topr" else positives / len(rollouts),
        "baseline": -0.3,
        "behavior_gap": {"behavior_gap/mean": 1e-6},
    }
    _manifest(folder, steps, ["log.jsonl"], details)


def _log_row(rng: random.Random, name: str, step: int, steps: int) -> dict[str, Any]:
    """A step of a training that goes well; only TOPR's knows the gap of log mu."""
    t = step / steps
    weight = math.exp(-2 * t)
    positive, negative = [0] * 21, [0] * 21  # the last bin is above 1, which no weight is
    positive[19] = 16
    for _ in range(48):
        negative[int(20 * weight * rng.random())] += 1
    gap = {"behavior_gap/token_mean": 2.5e-6, "behavior_gap/sequence_max": 0.031}
    return (gap if name == "topr" and step == 1 else {}) | {
        "step": step,
        "epoch": t,
        "loss": 0.1 - 0.18 * t + rng.gauss(0, 0.015),
        "learning_rate": 1e-4,
        "grad_norm": 0.9 - 0.3 * t + abs(rng.gauss(0, 0.06)),
        "tokens_per_second": 9000 + rng.gauss(0, 260),
        "log_ratio/positive": 0.6 * t + rng.gauss(0, 0.05),
        "log_ratio/negative": -2 * t + rng.gauss(0, 0.1),
        "weight/positive": 1.0,
        "weight/negative": None if name == "sft" else weight,
        "weight/negative_below_0.01": 0.22 * t,
        "effective_sample_size": 60 - 22 * t + rng.gauss(0, 1.5),
        "gradient_share/positive": 1 / (1 + 1.6 * weight),
        "effective_positive_share": 0.383,
        "weight_histogram": {
            "positive": positive,
            "negative": negative,
        },
    }
