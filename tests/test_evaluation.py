"""Scoring against hand counts; comparing; and the whole evaluation, killed and continued."""

import dataclasses
import json
from contextlib import contextmanager

import numpy as np
import pytest

from tiny_rollouts import tiny_rollout
from topr.config import EvaluateConfig, GenerateConfig, GradeConfig
from topr.engines.base import Engine, Request
from topr.errors import DataError, RunDirectoryError
from topr.evaluation import (
    compare,
    headline,
    read_evaluation,
    score,
    write_evaluation,
)
from topr.metrics import pass_at_k
from topr.progress import Silent
from topr.records import (
    EvalResult,
    FinishReason,
    Grade,
    Outcome,
    Problem,
    SamplingParams,
)
from topr.stages import evaluate as evaluate_stage
from topr.stages.evaluate import evaluate, plan_evaluation
from topr.store import read_manifest, read_table, rollouts_to_table, shard_paths
from topr.tasks.base import Split

REWARD = {Outcome.CORRECT: 1.0, Outcome.GOLD_UNPARSEABLE: None, Outcome.UNSCORED: None}
C, W, U = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE


def rollout(problem, sample, outcome, answer=None, *, greedy=False, length=4, cut=False):
    grade = None
    if outcome is not None:
        grade = Grade(outcome=outcome, reward=REWARD.get(outcome, -1.0), answer=answer)
    return tiny_rollout(
        problem_id=problem,
        sample=sample,
        completion_ids=tuple(range(length)),
        finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
        sampling=SamplingParams(temperature=0.0 if greedy else 1.0),
        gold="7",
        grade=grade,
    )


@pytest.mark.parametrize(("cut", "said"), [(1, False), (2, False), (3, True)])
def test_the_headline_says_so_where_most_completions_are_truncated(cut, said):
    result = scored([rollout("a", i, W, "4", cut=i < cut) for i in range(4)])
    assert ("truncated 75.0%" in headline(result)) == said
    assert ("token limit" in headline(result)) == said


def samples(problem, *graded):
    return [rollout(problem, i, outcome, answer) for i, (outcome, answer) in enumerate(graded)]


def scored(rollouts, **options) -> EvalResult:
    options = {"name": "base", "iteration": 0, "model": "m", "split": "test"} | options
    return score(rollouts_to_table(rollouts), **options)


# --- scoring ------------------------------------------------------------------------------------


def test_every_metric_by_hand():
    result = scored(
        [
            # p: 2 of 4 correct, written in two ways: the gold class wins 2 to 1 to 1.
            rollout("p", 0, C, "7", length=10),
            rollout("p", 1, C, "7.0", length=20),
            rollout("p", 2, W, "8", length=30),
            rollout("p", 3, W, "9", length=40, cut=True),
            # q: 1 of 4; "1,000" and "1000" are one answer, so the gold one loses 1 to 2.
            rollout("q", 0, C, "7", length=8),
            rollout("q", 1, W, "1,000", length=8),
            rollout("q", 2, W, "1000", length=8),
            rollout("q", 3, U, None, length=8),
            rollout("p", 0, W, "8", greedy=True, length=1000),
            rollout("q", 0, C, "7", greedy=True, length=1000),
        ],
        pass_at=(1, 2, 4, 16),
    )
    expected = {
        "pass@1": (2 / 4 + 1 / 4) / 2,
        "pass@2": ((1 - 1 / 6) + 3 / 6) / 2,  # of 6 pairs, 1 and 3 have no correct one
        "pass@4": 1.0,
        "maj@4": (1.0 + 0.0) / 2,
        "greedy": 0.5,
        "invalid": 1 / 8,
        "truncated": 1 / 8,
        "mean_length": (25 + 8) / 2,
        "unscored": 0,
    }
    means = {key: value for key, value in result.metrics.items() if not key.endswith("_ci")}
    assert means == pytest.approx(expected)
    for key in expected.keys() - {"unscored"}:
        low, high = result.metrics[f"{key}_ci"]
        assert low <= result.metrics[key] <= high
    assert result.per_problem == (
        {"problem_id": "p", "samples": 4, "correct": 2, "majority": 1.0, "greedy": 0},
        {"problem_id": "q", "samples": 4, "correct": 1, "majority": 0.0, "greedy": 1},
    )


def test_what_cannot_be_scored_is_left_out_of_every_rate_and_counted():
    plain = samples("p", (C, "7"), (W, "8"))
    gold = samples("g", (Outcome.GOLD_UNPARSEABLE, None), (Outcome.GOLD_UNPARSEABLE, None))
    # One sample that the user's function returned None for takes its problem out.
    partly = samples("u", (C, "7"), (Outcome.UNSCORED, None))
    only_greedy = [rollout("n", 0, C, "7", greedy=True)]
    result = scored([*gold, *plain, *partly, *only_greedy])
    alone = scored(plain)
    assert result.metrics["unscored"] == 3
    same = {key: value for key, value in result.metrics.items() if key != "unscored"}
    assert same == {key: value for key, value in alone.metrics.items() if key != "unscored"}
    assert [row["problem_id"] for row in result.per_problem] == ["g", "p", "u", "n"]
    assert [row["correct"] for row in result.per_problem] == [None, 1, None, None]
    assert [row["greedy"] for row in result.per_problem] == [None] * 4


def test_a_timeout_is_no_correct_answer_and_does_not_vote():
    result = scored(samples("p", (Outcome.TIMEOUT, None), (Outcome.TIMEOUT, None), (C, "7")))
    assert result.metrics["pass@1"] == pytest.approx(1 / 3)
    assert result.metrics["maj@3"] == 1.0
    assert result.metrics["invalid"] == 0.0


def test_a_wrong_answer_never_joins_the_gold_class():
    # As when a cut-off completion that says 7 counts as wrong.
    result = scored(samples("p", (C, "7"), (W, "7"), (W, "7")))
    assert result.metrics["maj@3"] == 0.0


def test_greedy_rollouts_alone_are_their_own_samples():
    result = scored([rollout("p", 0, C, "7", greedy=True), rollout("q", 0, W, "8", greedy=True)])
    assert result.metrics["pass@1"] == result.metrics["greedy"] == result.metrics["maj@1"] == 0.5


def test_without_greedy_rollouts_there_is_no_greedy_metric():
    result = scored(samples("p", (C, "7"), (W, "8")))
    assert not {"greedy", "greedy_ci"} & result.metrics.keys()
    assert result.per_problem[0]["greedy"] is None


def test_the_order_of_rows_changes_nothing_but_the_order_of_problems():
    rollouts = [
        *samples("p", (C, "7"), (W, "8"), (W, "8")),
        *samples("q", (W, "1"), (C, "7"), (U, None)),
        rollout("q", 0, C, "7", greedy=True),
    ]
    straight, backwards = scored(rollouts), scored(rollouts[::-1])
    assert [row["problem_id"] for row in backwards.per_problem] == ["q", "p"]
    assert sorted(map(str, straight.per_problem)) == sorted(map(str, backwards.per_problem))
    for key in ("pass@1", "maj@3", "invalid", "greedy"):
        assert straight.metrics[key] == backwards.metrics[key]


def test_problems_with_unequal_numbers_of_samples_vote_with_the_fewest():
    result = scored([*samples("p", *[(C, "7")] * 6), *samples("q", *[(W, "8")] * 3)])
    assert result.metrics["maj@3"] == 0.5
    assert "pass@4" not in result.metrics


def test_intervals_do_not_depend_on_which_metrics_are_asked_for():
    generator = np.random.default_rng(0)
    rollouts = [
        rollout(f"p{p}", i, C if generator.random() < 0.4 else W, "x")
        for p in range(20)
        for i in range(4)
    ]
    few, many = scored(rollouts, pass_at=(1,)), scored(rollouts, pass_at=(1, 2, 3, 4))
    assert few.metrics["pass@1_ci"] == many.metrics["pass@1_ci"]
    assert few.metrics["pass@1_ci"] != scored(rollouts, seed=1).metrics["pass@1_ci"]


@pytest.mark.parametrize(
    ("rollouts", "message"),
    [
        (samples("p", (C, "7"), (None, None)), "1 of 2 completions have no grade"),
        ([], "0 of 0"),
        (samples("p", (Outcome.GOLD_UNPARSEABLE, None)), "none of 1 problems can be scored"),
    ],
)
def test_what_gives_no_numbers_is_refused(rollouts, message):
    with pytest.raises(DataError, match=message):
        scored(rollouts)


def test_a_table_that_is_no_rollouts_is_refused():
    table = rollouts_to_table(samples("p", (C, "7"))).drop_columns(["grade", "answer"])
    with pytest.raises(DataError, match="no column grade, answer"):
        score(table, name="base", iteration=0, model="m", split="test")


# --- results ------------------------------------------------------------------------------------


def test_a_result_survives_the_disk(tmp_path):
    result = scored([*samples("p", (C, "7"), (W, "8")), rollout("p", 0, C, "7", greedy=True)])
    write_evaluation(tmp_path / "evaluation.json", result)
    assert read_evaluation(tmp_path / "evaluation.json") == result
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(values) == [
        "schema", "name", "iteration", "model", "split", "problems", "samples", "metrics",
        "per_problem",
    ]  # fmt: skip
    assert (values["schema"], values["problems"], values["samples"]) == (1, 1, 2)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2}', '{"schema": 1}', '{"schema": null}'])
def test_what_is_no_result_is_refused(tmp_path, text):
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(DataError, match="cannot be read as an evaluation"):
        read_evaluation(path)
    with pytest.raises(DataError, match="FileNotFoundError"):
        read_evaluation(tmp_path / "absent.json")


def two_models(problems=12, n=4):
    generator = np.random.default_rng(3)
    results = []
    for name, skill in (("topr", 0.8), ("base", 0.3)):
        rollouts = []
        for p in range(problems):
            flags = generator.random(n + 1) < skill
            rollouts += samples(f"p{p}", *[(C, "7") if ok else (W, "8") for ok in flags[:n]])
            rollouts.append(rollout(f"p{p}", 0, C if flags[n] else W, "8", greedy=True))
        results.append(scored(rollouts, name=name))
    return results


def test_a_difference_is_that_of_the_two_means():
    topr, base = two_models()
    found = {each.metric: each for each in compare(topr, base)}
    assert list(found) == ["pass@1", "maj@4", "greedy"]
    for key, each in found.items():
        assert each.difference == pytest.approx(topr.metrics[key] - base.metrics[key])
        assert each.ci[0] <= each.difference <= each.ci[1]
        assert (each.a, each.b) == ("topr", "base")
    assert found["pass@1"].ci[0] > 0


def test_a_model_does_not_differ_from_itself():
    topr, _ = two_models()
    assert [(each.difference, each.ci) for each in compare(topr, topr)] == [(0.0, (0.0, 0.0))] * 3


def test_pairs_are_matched_by_problem_not_by_place():
    topr, base = two_models()
    reordered = dataclasses.replace(base, per_problem=base.per_problem[::-1])
    assert [d.difference for d in compare(topr, reordered)] == pytest.approx(
        [d.difference for d in compare(topr, base)]
    )
    self_reversed = dataclasses.replace(topr, per_problem=topr.per_problem[::-1])
    assert all(d.ci == (0.0, 0.0) for d in compare(topr, self_reversed))


def test_different_problems_are_not_compared():
    topr, _ = two_models(problems=12)
    _, base = two_models(problems=9)
    with pytest.raises(DataError, match=r"3 are in one evaluation only .*, 9 in both"):
        compare(topr, base)


def test_votes_of_different_size_are_not_compared():
    topr, _ = two_models(n=4)
    _, base = two_models(n=5)
    assert [each.metric for each in compare(topr, base)] == ["pass@1", "greedy"]


def test_a_problem_that_one_model_could_not_score_is_left_out_of_the_pairs():
    a = scored([*samples("p", (C, "7")), *samples("q", (C, "7"))], name="a")
    b = scored([*samples("p", (W, "8")), *samples("q", (Outcome.UNSCORED, None))], name="b")
    assert compare(a, b)[0].difference == 1.0
    c = scored([*samples("p", (Outcome.UNSCORED, None)), *samples("q", (W, "8"))], name="c")
    with pytest.raises(DataError, match="share no problem"):
        compare(b, c)


# --- the stage ----------------------------------------------------------------------------------


class CountingTask:
    """Problems "1" to "12"; each has its own number for an answer."""

    name = "counting"
    grader = "numeric"
    stop = ()

    def problems(self, split):
        assert split is Split.TEST
        return [Problem(id=f"c{i}", prompt=f"{i}?", answer=str(i)) for i in range(1, 13)]


class CountingEngine(Engine):
    """Greedily right; sampled, it is right in every sample below a problem's answer modulo 4."""

    name = "counting"
    model_name = "m"
    revision = None
    journal = spans_shards = False

    def __init__(self, tokenizer=None, *, fail_after=None):
        self.tokenizer = tokenizer
        self.drawn = []
        self.fail_after = fail_after

    def generate(self, requests: list[Request], sampling: SamplingParams, *, iteration=0):
        for request in reversed(requests):
            for sample in range(request.n):
                if self.fail_after is not None and len(self.drawn) >= self.fail_after:
                    raise KeyboardInterrupt
                self.drawn.append((request.problem_id, sample, sampling.temperature))
                gold = int(request.gold or 0)
                right = sampling.temperature == 0 or sample < gold % 4
                base = rollout(request.problem_id, sample, None)
                yield dataclasses.replace(
                    base,
                    prompt=request.prompt,
                    prompt_ids=request.prompt_ids,
                    completion=f"The answer is {gold if right else gold + 50 + sample}",
                    sampling=sampling,
                    iteration=iteration,
                    gold=request.gold,
                )


@pytest.fixture(scope="module")
def tokenizer():
    from tiny import tiny_tokenizer

    return tiny_tokenizer()


class Steps(Silent):
    """Remembers every step forward: (completions, tokens)."""

    def __init__(self):
        self.steps = []

    @contextmanager
    def bar(self, title, total, unit):
        yield lambda done, *, tokens=0, note="": self.steps.append((done, tokens))


def run(directory, engine, *, task=None, seed=0, name="base", progress=None, grade=None, **config):
    plan = plan_evaluation(
        task or CountingTask(),
        EvaluateConfig(**{"n": 4, "pass_at": (1, 2), "bootstrap": 200, **config}),
        GenerateConfig(shard_problems=5),
        grade or GradeConfig(workers=1),
        seed=seed,
    )
    return evaluate(plan, engine, directory, name=name, progress=progress or Silent())


def test_an_evaluation_draws_grades_scores_and_writes(tmp_path, tokenizer):
    progress = Steps()
    result = run(tmp_path, CountingEngine(tokenizer), progress=progress)
    correct = [i % 4 for i in range(1, 13)]
    assert [row["correct"] for row in result.per_problem] == correct
    assert result.metrics["pass@2"] == pytest.approx(pass_at_k([4] * 12, correct, 2).mean())
    assert result.metrics["greedy"] == 1.0
    # 3 of 4 right wins, 2 of 4 wins 2 to 1 to 1, 1 of 4 ties with three others, 0 never wins.
    assert result.metrics["maj@4"] == pytest.approx((1 + 1 + 0.25 + 0) / 4)
    assert sum(completions for completions, _ in progress.steps) == 12 * 5
    assert sum(tokens for _, tokens in progress.steps) == 12 * 5 * 4
    assert read_evaluation(tmp_path / "evaluation.json") == result
    table = read_table(tmp_path / "evaluation")
    assert table.num_rows == 60
    assert table["grade"].null_count == 0
    assert read_manifest(tmp_path / "evaluation").rows == 60
    assert not (tmp_path / "evaluation/drawn").exists()


def test_a_finished_evaluation_is_read_not_repeated(tmp_path, tokenizer):
    first = run(tmp_path, CountingEngine(tokenizer))
    idle = CountingEngine(tokenizer, fail_after=0)
    assert run(tmp_path, idle) == first
    with pytest.raises(RunDirectoryError, match="made with other settings"):
        run(tmp_path, idle, name="another")
    idle.revision = "other weights"
    with pytest.raises(RunDirectoryError, match="from other data"):
        run(tmp_path, idle)


@pytest.mark.parametrize("killed_after", [0, 17, 30, 50, 59])
def test_an_interrupted_evaluation_goes_on_and_ends_the_same(tmp_path, tokenizer, killed_after):
    straight = run(tmp_path / "straight", CountingEngine(tokenizer))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", CountingEngine(tokenizer, fail_after=killed_after))
    assert not (tmp_path / "killed/evaluation.json").exists()
    # Of 60 completions, whole shards are kept: 20, 20, 8 sampled, then 5, 5, 2 greedy.
    kept = max(total for total in (0, 20, 40, 48, 53, 58) if total <= killed_after)
    again = CountingEngine(tokenizer)
    assert run(tmp_path / "killed", again) == straight
    assert len(again.drawn) == 60 - kept
    for one, other in zip(
        shard_paths(tmp_path / "straight/evaluation"),
        shard_paths(tmp_path / "killed/evaluation"),
        strict=True,
    ):
        assert one.read_bytes() == other.read_bytes()


def test_an_evaluation_killed_while_grading_goes_on(tmp_path, tokenizer, monkeypatch):
    straight = run(tmp_path / "straight", CountingEngine(tokenizer))
    graded = []
    original = evaluate_stage.grade_table

    def killed(table, *given, **named):
        if graded:  # the sampled completions are graded, the greedy ones not
            raise KeyboardInterrupt
        graded.append(len(table))
        return original(table, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_stage, "grade_table", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", CountingEngine(tokenizer))
    assert graded == [48]
    assert len(shard_paths(tmp_path / "killed/evaluation")) == 1
    progress, idle = Steps(), CountingEngine(tokenizer, fail_after=0)
    assert run(tmp_path / "killed", idle, progress=progress) == straight
    assert sum(completions for completions, _ in progress.steps) == 60


def test_other_settings_do_not_continue_what_was_begun(tmp_path, tokenizer):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, CountingEngine(tokenizer, fail_after=30), seed=1)
    with pytest.raises(RunDirectoryError, match="made with other settings"):
        run(tmp_path, CountingEngine(tokenizer), seed=2)


@pytest.mark.parametrize("rule", ["wrong", "drop"])
def test_a_cut_off_completion_counts_as_wrong_even_where_training_drops_it(
    tmp_path, tokenizer, rule
):
    class CutOff(CountingEngine):
        def generate(self, requests, sampling, *, iteration=0):
            for each in super().generate(requests, sampling, iteration=iteration):
                yield dataclasses.replace(each, finish_reason=FinishReason.LENGTH)

    grade = GradeConfig(workers=1, truncated=rule)
    result = run(tmp_path, CutOff(tokenizer), grade=grade, n=2)
    assert result.metrics["unscored"] == 0
    assert (result.metrics["pass@1"], result.metrics["truncated"]) == (0.0, 1.0)


def test_a_split_without_problems_is_refused(tmp_path, tokenizer):
    class Empty(CountingTask):
        def problems(self, split):
            return []

    with pytest.raises(DataError, match="no test problems"):
        run(tmp_path, CountingEngine(tokenizer), task=Empty())


def test_a_users_reward_function_is_given_the_problems_columns(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "evenness.py").write_text(
        "def even(completions, parity, **columns):\n"
        "    return [None if parity[0] is None else 1.0 if parity[0] == 'even' else -1.0]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    class Own(CountingTask):
        grader = "evenness:even"

        def problems(self, split):
            parities = ["odd", "even"] * 5 + ["even", None]
            return [
                dataclasses.replace(problem, columns={"parity": parity})
                for problem, parity in zip(super().problems(split), parities, strict=True)
            ]

    result = run(tmp_path, CountingEngine(tokenizer), task=Own(), n=2)
    assert result.metrics["pass@1"] == pytest.approx(6 / 11)
    assert result.metrics["unscored"] == 1


def test_checks_of_one_question_are_resampled_together():
    """All checks of a question agree here, so four of each tell no more than one."""
    outcomes = [Outcome.CORRECT if i % 3 else Outcome.WRONG for i in range(30)]

    def scored(copies, flip=False, **options):
        rows = [
            rollout(f"q{i}/check-{copy}", 0, (Outcome.WRONG if flip and i % 5 == 0 else outcome))
            for i, outcome in enumerate(outcomes)
            for copy in range(copies)
        ]
        table = rollouts_to_table(rows)
        return score(table, name="v", iteration=0, model="m", split="test", **options)

    def question(name):
        return name.partition("/")[0]

    once, apart = scored(1), scored(4)
    together, other = (scored(4, flip, group_of=question) for flip in (False, True))
    assert together.metrics["pass@1"] == once.metrics["pass@1"] == apart.metrics["pass@1"]
    width = {
        name: np.diff(each.metrics["pass@1_ci"])[0]
        for name, each in (("once", once), ("apart", apart), ("together", together))
    }
    assert width["together"] == pytest.approx(width["once"], rel=0.1)
    assert width["apart"] < 0.6 * width["once"]
    alone = compare(scored(1), scored(1, flip=True))[0]
    paired = compare(together, other)[0]
    assert paired.difference == pytest.approx(alone.difference)
    assert np.diff(paired.ci) == pytest.approx(np.diff(alone.ci), rel=0.25)
