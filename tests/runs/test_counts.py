"""How many completions, steps and models a run has: by hand, on small recipes."""

import pyarrow as pa
import pytest

from topr.config import load_recipe
from topr.runs.plan.counts import ABOUT, AT_MOST, Count, Draw, Kind, planned
from topr.tasks import load_task

# 6 problems of 4 completions make 24 rows; 8 a step are 3 steps an epoch.
SMALL = [
    "task.train_problems=6", "task.test_problems=5", "task.validation_problems=40",
    "generate.n=4", "evaluate.n=2", "train.global_batch_size=8", "train.max_steps=null",
    "train.lr_scheduler_type=constant", "train.warmup_steps=0", "compare={}",
]  # fmt: skip


def stages_of(*overrides: str, graded: pa.Table | None = None):
    recipe = load_recipe("quickstart", [*SMALL, *overrides])
    return planned(recipe, load_task(recipe.task), graded)


def only(stages, label: str):
    (found,) = [stage for stage in stages if stage.label == label]
    return found


def graded(right: int = 0, wrong: int = 0, unscored: int = 0, problems: int = 1) -> pa.Table:
    """Grades of problems that are all alike."""
    rewards = [1.0] * right + [-1.0] * wrong + [None] * unscored
    names = [str(problem) for problem in range(problems) for _ in rewards]
    return pa.table({"problem_id": names, "reward": pa.array(rewards * problems, pa.float32())})


def test_one_iteration():
    stages = stages_of()
    assert [(stage.label, str(stage.folder)) for stage in stages] == [
        ("evaluate base", "iteration-00/evaluation"),
        ("generate", "iteration-01/rollouts"),
        ("grade", "iteration-01/graded"),
        ("train", "iteration-01/training"),
        ("evaluate", "iteration-01/evaluation"),
    ]
    # 5 x (2 + greedy) are evaluated. All counts are exact.
    assert [stage.completions for stage in stages] == [Count(n) for n in (15, 24, 24, 24, 15)]
    assert only(stages, "train").steps == Count(3)


def test_a_training_is_probed_before_on_its_way_and_at_its_end():
    # At steps 0, 10, 20 and 25, 32 questions each; there are 3 steps where none are given.
    stages = stages_of("train.max_steps=25")
    assert only(stages, "train").draws == [Draw(problems=32, n=1)] * 4
    few = stages_of("train.probe_problems=5", "train.watch_steps=1")
    assert only(few, "train").draws == [Draw(problems=5, n=1)] * 4
    for off in ("train.watch=off", "train.probe_problems=0", "task.validation_problems=0"):
        assert not only(stages_of(off), "train").draws


@pytest.mark.parametrize(
    ("overrides", "steps", "passes"),
    [
        (["train.num_train_epochs=2"], 6, 48),
        (["train.num_train_epochs=1.5"], 5, 40),  # 4.5 steps are 5
        (["train.max_steps=4"], 4, 32),
        (["train.global_batch_size=5"], 5, 24),  # 4.8 steps are 5
        (["train.global_batch_size=6", "train.shuffle_by=prompt"], 6, 24),  # one prompt a batch
        (["train.global_batch_size=6"], 4, 24),
        (["train.training_arguments={gradient_accumulation_steps: 2}"], 3, 24),
    ],
)
def test_optimizer_steps(overrides, steps, passes):
    train = only(stages_of(*overrides), "train")
    assert (train.steps, train.passes) == (Count(steps), passes)


def test_checkpoints_on_disk_are_two_and_the_one_that_is_written():
    for steps, expected in ((2, 0), (3, 1), (5, 2), (7, 3), (100, 3)):
        train = only(stages_of(f"train.max_steps={steps}", "train.save_steps=2"), "train")
        assert train.checkpoints == expected  # none of the last step


def test_iterations_pool_their_window():
    stages = stages_of("iterations=3", "loop={start: base, window: 2}")
    rows = [stage.completions.value for stage in stages if stage.kind is Kind.TRAIN]
    assert rows == [24, 48, 48]
    everything = stages_of("iterations=3", "loop={start: base, window: null}")
    rows = [stage.completions.value for stage in everything if stage.kind is Kind.TRAIN]
    assert rows == [24, 48, 72]


def test_keeping_the_best_evaluates_validation_problems_too():
    stages = stages_of(
        "loop.keep=best", "iterations=2", "loop.start=base", "task.validation_problems=3"
    )
    found = [s for s in stages if str(s.folder).endswith("validation/evaluation")]
    assert [stage.completions for stage in found] == [Count(9)] * 3  # 3 x (2 + greedy)


def test_snapshots_are_written_and_evaluated():
    stages = stages_of("train.snapshots=[1, 2]")
    assert only(stages, "train").models == 3
    found = [str(stage.folder) for stage in stages if stage.label == "evaluate snapshots"]
    assert found == [
        "iteration-01/snapshots/step-000001/evaluation",
        "iteration-01/snapshots/step-000002/evaluation",
    ]


def test_log_mu_is_recomputed_where_a_training_asks_for_it():
    stages = stages_of("compare={again: {train: {behavior_logprobs: recompute}}}", "iterations=2")
    found = {stage.label: stage.recomputed for stage in stages if stage.recomputed}
    assert found == {"compare again: train": 24}


def test_what_a_comparison_keeps_is_known_by_grades_alone():
    compare = "compare={sft: {curate: {steps: [positives]}, train: {objective: sft, baseline: 0}}}"
    more = [compare, "task.train_problems=300"]
    assert only(stages_of(*more), "compare sft: train").completions == Count(1200, AT_MOST)
    # One of two was right with each problem, so half of all is expected.
    tried = stages_of(*more, graded=graded(right=1, wrong=1, problems=9))
    train = only(tried, "compare sft: train")
    assert train.completions.value == pytest.approx(600, rel=0.1)
    assert train.completions.certainty == train.steps.certainty == ABOUT
    assert only(tried, "train").completions == Count(1200)
    fixed = stages_of(*more, "train.max_steps=7", graded=graded(right=1, wrong=1))
    assert only(fixed, "compare sft: train").steps == Count(7)


ROUNDS = (
    "curate={steps: [{rule: anna_karenina, per_problem: 4, max_positives: 1, max_candidates: 8}]}"
)


def test_rounds_without_grades_have_a_most():
    stages = stages_of(ROUNDS)
    assert only(stages, "generate").completions == Count(48, AT_MOST)
    assert only(stages, "train").completions == Count(24, AT_MOST)  # 4 a problem


@pytest.mark.parametrize(
    ("seen", "drawn", "kept"),
    [
        # Always wrong: the quota of 4 is full after a round.
        (graded(wrong=10_000), 24, 24),
        # Always right: one is kept, and all 8 candidates are generated in the hope of wrong ones.
        (graded(right=10_000), 48, 6),
        # Nothing has a reward: nothing is full, nothing is kept.
        (graded(unscored=10), 48, 0),
    ],
)
def test_rounds_are_played_through_with_made_up_grades(seen, drawn, kept):
    stages = stages_of(ROUNDS, graded=seen)
    assert only(stages, "generate").completions == Count(drawn, ABOUT)
    assert only(stages, "train").completions == Count(kept, ABOUT)


def test_made_up_problems_are_as_hard_as_those_seen():
    # Two kinds of problems: half of them are always solved, half never. A rule that drops problems
    # without signal drops nearly all, which the mean share of 1/2 alone would not tell.
    extremes = pa.table({"problem_id": ["a"] * 50 + ["b"] * 50, "reward": [1.0] * 50 + [-1.0] * 50})
    rule = ["curate={steps: [drop_no_signal]}", "task.train_problems=300"]
    assert only(stages_of(*rule, graded=extremes), "train").completions.value < 0.1 * 1200
    even = only(stages_of(*rule, graded=graded(right=25, wrong=25, problems=2)), "train")
    assert even.completions.value == pytest.approx(7 / 8 * 1200, rel=0.05)  # 1 - 2 (1/2)^4


def test_a_verifier_samples_its_candidates():
    recipe = load_recipe("verifier-arithmetic", ["generate.n=4", "task.train_problems=6"])
    stages = planned(recipe, load_task(recipe.task))
    assert str(only(stages, "generate candidates").folder) == "candidates/rollouts"
    assert only(stages, "grade candidates").completions == Count(24)


def test_a_count_of_one_has_a_noun_of_one():
    assert Count(1).of("optimizer step") == "1 optimizer step"
    assert Count(1200, ABOUT).of("completion") == "about 1,200 completions"
