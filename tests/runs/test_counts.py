"""How many completions, steps and models a run has: by hand, on small recipes."""

from dataclasses import replace

import pytest

from topr.config import load_recipe
from topr.runs.plan.counts import Kind, Sizes, Span, planned
from topr.runs.plan.curating import Bounds, Seen, Tried

# 6 problems of 4 completions make 24 rows; 8 a step are 3 steps an epoch.
SMALL = [
    "generate.n=4", "evaluate.n=2", "train.global_batch_size=8", "train.max_steps=null",
    "train.lr_scheduler_type=constant", "train.warmup_steps=0", "compare={}",
]  # fmt: skip
SIZES = Sizes(train=6, evaluation=5, validation=3)


def stages_of(*overrides: str, seen: Seen | None = None, sizes: Sizes = SIZES):
    recipe = load_recipe("quickstart", [*SMALL, *overrides])

    def expect(curations):
        common = {"problems": SIZES.train, "n": recipe.generate.n, "curations": curations}
        return Bounds(**common) if seen is None else Tried(**common, seen=seen)

    return planned(recipe, sizes, expect)


def only(stages, label: str):
    (found,) = [stage for stage in stages if stage.label == label]
    return found


def test_one_iteration():
    stages = stages_of()
    assert [(stage.label, stage.folder) for stage in stages] == [
        ("evaluate base", "iteration-00/evaluation"),
        ("generate", "iteration-01/rollouts"),
        ("grade", "iteration-01/graded"),
        ("train", "iteration-01/training"),
        ("evaluate", "iteration-01/evaluation"),
    ]
    assert [stage.completions.high for stage in stages] == [15, 24, 24, 24, 15]  # 5 x (2 + greedy)
    assert only(stages, "train").steps == Span.of(3)
    assert not any(stage.estimated for stage in stages)


def test_a_training_is_probed_before_on_its_way_and_at_its_end():
    sizes = replace(SIZES, probe=100)
    stages = stages_of("train.max_steps=25", sizes=sizes)
    probe = only(stages, "probe")
    # At steps 0, 10, 20 and 25, 32 questions each.
    assert probe.completions == Span.of(4 * 32)
    assert len(probe.draws) == 4
    few = only(stages_of("train.probe_problems=5", "train.watch_steps=1", sizes=sizes), "probe")
    assert few.completions == Span.of(4 * 5)  # 3 steps
    for off in ("train.watch=off", "train.probe_problems=0"):
        assert not [stage for stage in stages_of(off, sizes=sizes) if stage.kind is Kind.PROBE]


def test_without_greedy_answers_there_is_one_draw():
    (base, *_) = stages_of("evaluate.greedy=false")
    assert base.completions == Span.of(10)
    assert len(base.draws) == 1


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
    assert (train.steps, train.passes) == (Span.of(steps), Span.of(passes))


def test_checkpoints_on_disk_are_two_and_the_one_that_is_written():
    for steps, expected in ((2, 0), (3, 1), (5, 2), (7, 3), (100, 3)):
        train = only(stages_of(f"train.max_steps={steps}", "train.save_steps=2"), "train")
        assert train.checkpoints == Span.of(expected)  # none of the last step


def test_iterations_pool_their_window():
    stages = stages_of("iterations=3", "loop={start: base, window: 2}")
    rows = [stage.completions.high for stage in stages if stage.kind is Kind.TRAIN]
    assert rows == [24, 48, 48]
    everything = stages_of("iterations=3", "loop={start: base, window: null}")
    assert [s.completions.high for s in everything if s.kind is Kind.TRAIN] == [24, 48, 72]


def test_keeping_the_best_evaluates_validation_problems_too():
    stages = stages_of("loop.keep=best", "iterations=2", "loop.start=base")
    found = [stage for stage in stages if stage.folder.endswith("validation/evaluation")]
    assert [stage.completions.high for stage in found] == [9, 9, 9]  # 3 x (2 + greedy)


def test_snapshots_are_written_and_evaluated():
    stages = stages_of("train.snapshots=[1, 2]")
    assert only(stages, "train").models == 3
    found = [stage.folder for stage in stages if stage.label == "evaluate snapshots"]
    assert found == [
        "iteration-01/snapshots/step-000001/evaluation",
        "iteration-01/snapshots/step-000002/evaluation",
    ]


def test_log_mu_is_recomputed_where_a_training_asks_for_it():
    stages = stages_of("compare={again: {train: {behavior_logprobs: recompute}}}", "iterations=2")
    found = [stage for stage in stages if stage.kind is Kind.RECOMPUTE]
    assert [(each.label, each.completions.high) for each in found] == [
        ("compare again: recompute log mu", 24)
    ]


def test_comparisons_train_on_what_they_keep():
    compare = "compare={sft: {curate: {steps: [positives]}, train: {objective: sft, baseline: 0}}}"
    assert only(stages_of(compare), "compare sft: train").completions == Span(low=0, high=24)
    # One of two was right with each problem, so half of all is expected.
    tried = stages_of(compare, seen=Seen(right=(1, 1), wrong=(1, 1), unscored=(0, 0)))
    train = only(tried, "compare sft: train")
    assert train.estimated
    assert train.completions.high == pytest.approx(12, abs=1)
    assert train.steps == Span.of(2)
    assert not only(tried, "train").estimated


ROUNDS = (
    "curate={steps: [{rule: anna_karenina, per_problem: 4, max_positives: 1, max_candidates: 8}]}"
)


def test_rounds_without_grades_have_bounds():
    stages = stages_of(ROUNDS)
    assert only(stages, "generate").completions == Span(low=24, high=48)
    assert only(stages, "train").completions == Span(low=0, high=24)  # 4 a problem


@pytest.mark.parametrize(
    ("seen", "drawn", "kept"),
    [
        # Always wrong: the quota of 4 is full after a round.
        (Seen(right=(0,), wrong=(10_000,), unscored=(0,)), 24, 24),
        # Always right: one is kept, and all 8 candidates are drawn in the hope of wrong ones.
        (Seen(right=(10_000,), wrong=(0,), unscored=(0,)), 48, 6),
        # Nothing has a reward: nothing is full, nothing is kept.
        (Seen(right=(0,), wrong=(0,), unscored=(10,)), 48, 0),
    ],
)
def test_rounds_are_tried_on_made_up_grades(seen, drawn, kept):
    stages = stages_of(ROUNDS, seen=seen)
    generate = only(stages, "generate")
    assert generate.completions.high == drawn
    assert sum(draw.problems * draw.n for draw in generate.draws) == drawn
    assert only(stages, "train").completions.high == kept
    assert generate.estimated


def test_made_up_problems_are_as_hard_as_those_seen():
    # Two kinds of problems: half of them are always solved, half never. A rule that drops problems
    # without signal drops nearly all, which the mean share of 1/2 alone would not tell.
    seen = Seen(right=(50, 0), wrong=(0, 50), unscored=(0, 0))
    stages = stages_of("curate={steps: [drop_no_signal]}", seen=seen)
    assert only(stages, "train").completions.high <= 2
    even = Seen(right=(25, 25), wrong=(25, 25), unscored=(0, 0))
    found = only(stages_of("curate={steps: [drop_no_signal]}", seen=even), "train")
    assert found.completions.high >= 19  # 1 - 2 (1/2)^4 = 7/8 of 24


def test_a_verifier_draws_its_candidates():
    recipe = load_recipe("verifier-arithmetic", ["generate.n=4"])
    stages = planned(recipe, SIZES, lambda curations: Bounds(problems=6, n=4, curations=curations))
    assert only(stages, "generate candidates").folder == "candidates/rollouts"
    assert only(stages, "grade candidates").completions == Span.of(24)
