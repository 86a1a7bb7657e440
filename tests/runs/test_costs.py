"""From a few completions to seconds and bytes: by hand."""

from pathlib import Path

import pyarrow as pa
import pytest

from topr.config import load_recipe
from topr.runs.plan.costs import REFERENCE, Measured, cost, step_and_token_seconds, total
from topr.runs.plan.counts import Count, Draw, Kind, Stage

STEP, TOKEN = 0.1, 0.01


def rounds(*sizes: int):
    """Completions of 10 tokens each, that many side by side."""
    return [([10] * n, 10 * STEP + 10 * n * TOKEN) for n in sizes]


def measured(**changes) -> Measured:
    values = {
        "graded": pa.table({}), "rounds": rounds(2, 8), "open_seconds": 3.0,
        "prompt_seconds": 0.005, "spans_shards": False, "grader_seconds": 0.5,
        "grade_seconds": 0.02, "train_token_seconds": 0.01, "parameters": 1000,
        "trained_parameters": 1000, "row_bytes": 10.0, "memory": 1,
    }  # fmt: skip
    return Measured(**values | changes)


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("quickstart", ["generate.shard_problems=4", "generate.batch_size=4"])


def stage(kind: Kind, *draws: Draw, rows: int = 16, **changes) -> Stage:
    return Stage(
        kind=kind, label="", folder=Path(), completions=Count(rows), draws=draws, **changes
    )


def test_noise_makes_no_speed_negative():
    # A large round that was faster than a small one: steps cost all, tokens nothing.
    step, token = step_and_token_seconds([([10, 10], 2.0), ([10] * 8, 1.0)])
    assert (step, token) == (pytest.approx(0.1), 0.0)
    # Four times the tokens took five times as long: tokens cost all.
    assert step_and_token_seconds([([10, 10], 1.0), ([10] * 8, 5.0)]) == (0.0, 5 / 80)
    assert step_and_token_seconds(rounds(2)) == (0.0, pytest.approx(0.06))


def test_a_shard_is_full_until_its_last_completions(recipe):
    # 8 problems x 2 in shards of 4 problems: 2 shards of 8 completions, 4 side by side, so twice 20
    # steps, in which 160 tokens are generated; and 8 prompts.
    found = cost(stage(Kind.GENERATE, Draw(problems=8, n=2)), recipe, measured())
    assert found.seconds == pytest.approx(40 * STEP + 160 * TOKEN + 8 * 0.005)
    assert (found.tokens, found.disk) == (160, 160)


def test_a_shard_waits_for_its_longest_completion(recipe):
    uneven = measured(rounds=[([10, 10], 1.2), ([5, 15] * 4, 15 * STEP + 80 * TOKEN)])
    draw = stage(Kind.GENERATE, Draw(problems=8, n=2))
    # Of each of two shards, 8 completions with 4 side by side: 2 x 10 steps, and 5 for the last.
    assert cost(draw, recipe, uneven).seconds == pytest.approx(50 * STEP + 160 * TOKEN + 0.04)
    together = measured(rounds=uneven.rounds, spans_shards=True)
    assert cost(draw, recipe, together).seconds == pytest.approx(45 * STEP + 160 * TOKEN + 0.04)


def test_grading_and_evaluating(recipe):
    draw = Draw(problems=8, n=2)
    graded = cost(stage(Kind.GRADE, draw), recipe, measured())
    assert graded.seconds == pytest.approx(2 * 0.5 + 16 * 0.02)  # graders start for each shard
    generated = cost(stage(Kind.GENERATE, draw), recipe, measured()).seconds
    evaluated = cost(stage(Kind.EVALUATE, draw), recipe, measured()).seconds
    assert evaluated == pytest.approx(3 + generated + 0.5 + 16 * 0.02)


def test_training(recipe):
    trained = stage(
        Kind.TRAIN, rows=24, steps=Count(6), passes=48, recomputed=24, models=2, checkpoints=3
    )
    found = cost(trained, recipe, measured())
    # 48 completions of 10 tokens; log mu of 24 takes a third of a step's time.
    assert found.seconds == pytest.approx(3 + (48 + 24 / 3) * 10 * 0.01)
    assert found.disk == 24 * REFERENCE + 2 * 4 * 1000
    assert found.passing == 3 * 3 * 4 * 1000  # each checkpoint with Adam's two numbers a weight


def test_an_adapter_is_written_alone_or_in_its_model():
    adapted = measured(parameters=1100, trained_parameters=100)
    trained = stage(Kind.TRAIN, rows=0, models=1)
    merged = load_recipe("quickstart", ["train.lora={r: 2}"])
    alone = load_recipe("quickstart", ["train.lora={r: 2, merge: false}"])
    assert cost(trained, merged, adapted).disk == 4 * 1100
    assert cost(trained, alone, adapted).disk == 4 * 100


def test_a_run_needs_room_for_the_largest_checkpoints_beside_all_that_stays(recipe):
    trained = [stage(Kind.TRAIN, rows=0, models=1, checkpoints=n) for n in (1, 3, 0)]
    found = total([cost(each, recipe, measured()) for each in trained])
    assert (found.disk, found.passing) == (3 * 4000, 3 * 12_000)
