"""From a few completions to seconds and bytes: by hand."""

import pytest

from topr.config import load_recipe
from topr.runs.plan.costs import (
    Cost,
    Drawing,
    Grading,
    Measured,
    Round,
    Storage,
    Training,
    cost,
    total,
)
from topr.runs.plan.counts import Draw, Kind, Span, Stage

STEP, TOKEN = 0.1, 0.01


def rounds(*sizes: int) -> tuple[Round, ...]:
    """Completions of 10 tokens each, that many side by side."""
    return tuple(
        Round(tokens=10 * n, longest=10, seconds=10 * STEP + 10 * n * TOKEN) for n in sizes
    )


def drawing(**changes) -> Drawing:
    values = {
        "trial_seconds": 2.0, "prompt_tokens": 5.0, "prompt_seconds": 0.001, "side_by_side": 4,
        "lengths": (10,) * 8, "rounds": rounds(2, 8),
    }  # fmt: skip
    return Drawing(**values | changes)


MEASURED = Measured(
    open_seconds=3.0,
    drawing=drawing(),
    grading=Grading(start_seconds=0.5, completion_seconds=0.02),
    training=Training(
        start_seconds=7.0, score_seconds=0.05, completion_seconds=0.2, update_seconds=0.3,
        parameters=1000, trained_parameters=1000, optimizer_bytes=8000,
    ),
    storage=Storage(prompt=40.0, row=10.0, file=100.0, tokenizer=500.0),
    drawing_memory=1,
    training_memory=2,
)  # fmt: skip


def test_a_shard_is_full_until_its_last_completions():
    # 8 problems x 2 in shards of 4 problems: 2 shards of 8 completions, 4 side by side, so twice 20
    # steps, in which 160 tokens are drawn; and 8 prompts of 5 tokens.
    seconds = drawing().seconds(Draw(problems=8, n=2), 4)
    assert seconds == pytest.approx(40 * STEP + 160 * TOKEN + 40 * 0.001)


def test_a_shard_that_is_not_full_takes_the_steps_of_its_longest_completion():
    uneven = drawing(lengths=(5, 15), side_by_side=100)
    assert uneven.seconds(Draw(problems=2, n=1), 64) == pytest.approx(
        15 * STEP + 20 * TOKEN + 10 * 0.001
    )


def test_shards_that_are_drawn_together_wait_once():
    uneven = drawing(lengths=(5, 15), side_by_side=2, spans_shards=True, prompt_seconds=0.0)
    # 8 completions, 2 side by side: 4 x 10 steps, and 5 more for the last.
    assert uneven.seconds(Draw(problems=8, n=1), 2) == pytest.approx(45 * STEP + 80 * TOKEN)


def test_noise_makes_no_speed_negative():
    # A large round that was faster than a small one: steps cost all, tokens nothing.
    faster = (Round(tokens=20, longest=10, seconds=2.0), Round(tokens=80, longest=10, seconds=1.0))
    step, token = drawing(rounds=faster).step_and_token()
    assert token == 0.0
    assert step == pytest.approx(0.12)  # (10/2 + 10/1) / ((10/2)^2 + (10/1)^2)
    # Four times the tokens took five times as long: tokens cost all.
    slower = (Round(tokens=20, longest=10, seconds=1.0), Round(tokens=80, longest=10, seconds=5.0))
    step, token = drawing(rounds=slower).step_and_token()
    assert step == 0.0
    assert 1 / 20 < token < 5 / 80
    assert drawing(rounds=rounds(2)).step_and_token() == (0.0, pytest.approx(0.06))


def test_the_mean_length_is_known_as_well_as_its_spread_allows():
    # Lengths 5 and 15: variance 50, standard error of the mean 5, twice that is its whole.
    assert drawing(lengths=(5, 15)).error == pytest.approx(1.0)
    assert drawing(lengths=(10, 10)).error == 0.0


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("quickstart", ["generate.shard_problems=4"])


def draw_stage(kind: Kind, loads: int = 0) -> Stage:
    return Stage(
        kind=kind, label="", folder="", completions=Span.of(16), loads=loads,
        draws=(Draw(problems=8, n=2),),
    )  # fmt: skip


def test_drawing_grading_and_evaluating(recipe):
    drawn = cost(draw_stage(Kind.GENERATE), recipe, MEASURED)
    assert drawn.stays == 8 * 40 + 16 * 10 + 2 * 100
    graded = cost(draw_stage(Kind.GRADE), recipe, MEASURED)
    assert graded.seconds == pytest.approx(2 * 0.5 + 16 * 0.02)
    evaluated = cost(draw_stage(Kind.EVALUATE, loads=1), recipe, MEASURED)
    assert evaluated.seconds == pytest.approx(drawn.seconds + 0.5 + 16 * 0.02 + 3 + 2)
    assert evaluated.passing == drawn.stays


def test_training(recipe):
    stage = Stage(
        kind=Kind.TRAIN, label="", folder="", completions=Span.of(24), problems=6, loads=1,
        steps=Span.of(6), passes=Span.of(48), models=2, checkpoints=Span.of(3),
    )  # fmt: skip
    found = cost(stage, recipe, MEASURED)
    assert found.seconds == pytest.approx(7 + 6 * 0.3 + 48 * 0.2)
    models = 2 * (4 * 1000 + 500)
    assert found.stays == models + 6 * 40 + 24 * 10 + 6 * 2000 + 24 * 22
    assert found.passing == 3 * (4 * 1000 + 8000)


def test_an_adapter_is_written_beside_the_model_it_is_merged_into(recipe):
    from topr.runs.plan.costs import model_bytes

    adapted = Training(
        start_seconds=0, score_seconds=None, completion_seconds=0, update_seconds=0,
        parameters=1100, trained_parameters=100, optimizer_bytes=0,
    )  # fmt: skip
    merged = load_recipe("quickstart", ["train.lora={r: 2}"])
    alone = load_recipe("quickstart", ["train.lora={r: 2, merge: false}"])
    assert model_bytes(merged, adapted) == 4 * (100 + 1000)
    assert model_bytes(alone, adapted) == 4 * 100
    assert model_bytes(recipe, adapted) == 4 * 1100


def test_a_run_needs_room_for_the_largest_checkpoints_beside_all_that_is_there():
    costs = [
        Cost(seconds=1, stays=10, passing=50),
        Cost(seconds=1, stays=100),
        Cost(seconds=1, stays=10, passing=30),
    ]
    found = total(costs, error=0.0, report=5)
    assert (found.disk, found.peak_disk) == (125, 150)
    assert total(costs, error=9.0).seconds.low > 0  # never "less than nothing"
