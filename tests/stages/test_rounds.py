"""Drawing in rounds: the dataset is that of the whole draw, after any interruption, for less."""

import hashlib
import math

import pytest
from pyarrow.compute import equal

from scripted_engine import ScriptedEngine
from tiny import tiny_model, tiny_tokenizer
from topr.config import (
    AnnaKareninaRule,
    CurateConfig,
    DropDuplicatesRule,
    GenerateConfig,
    GradeConfig,
    PassRateRule,
    PositiveShareRule,
)
from topr.engines.transformers import TransformersEngine
from topr.errors import RunDirectoryError
from topr.progress import Silent
from topr.records import Problem
from topr.stages import generate
from topr.stages.curate import curate_rollouts
from topr.stages.draw import draw
from topr.stages.draw_plan import DrawPlan, extra_columns, sampling_params
from topr.stages.generate import Quota, generate_rollouts, spent
from topr.stages.grade import grade_rollouts
from topr.store import read_manifest, read_table, shard_paths

PROBLEMS = [
    Problem(id=f"p{i}", prompt=f"What is {i} ?", answer=str(i), columns={"level": i % 3})
    for i in range(9)
]
QUOTA = AnnaKareninaRule(per_problem=4, max_positives=1, max_candidates=10)
CONFIG = CurateConfig(steps=(DropDuplicatesRule(), QUOTA, PositiveShareRule(share=0.2)))
GENERATE = GenerateConfig(n=3, max_tokens=40, shard_problems=2)
GRADE = GradeConfig(workers=1)


def number(problem, sample, what):
    digest = hashlib.sha256(f"{problem} {sample} {what}".encode()).digest()
    return digest[0] / 256


def script(request, sample):
    """Problem p0 is never solved, p8 nearly always; some completions repeat, lengths differ."""
    chance = int(request.problem_id[1:]) / 8.5
    right = number(request.problem_id, sample, "right") < chance
    answer = int(request.gold) if right else 100 + int(3 * number(request.problem_id, sample, "n"))
    return "so " * (sample % 4) + f"The answer is {answer}"


class Counting(ScriptedEngine):
    """Counts the completions that it wrote, and stops before one of them, if told to."""

    def __init__(self, stop_at=None):
        super().__init__(script, tiny_tokenizer())
        self.written = 0
        self.stop_at = stop_at

    def generate(self, requests, sampling, *, iteration=0):
        for rollout in super().generate(requests, sampling, iteration=iteration):
            if self.written == self.stop_at:
                raise KeyboardInterrupt
            self.written += 1
            yield rollout


def plan(config=GENERATE, **options):
    given = {
        "problems": PROBLEMS, "sampling": sampling_params(config, (), 5), "n": config.n,
        "shard_problems": config.shard_problems, "iteration": 1,
        "extra": extra_columns(PROBLEMS, "mine:reward"),
    }  # fmt: skip
    return DrawPlan(**{**given, **options})


def in_rounds(folder, engine, config=GENERATE, curations=(CONFIG,)):
    quota = Quota(
        curations=curations, grader="numeric", grade=GRADE, graded=folder / "graded"
    )  # fmt: skip
    manifest = generate_rollouts(
        plan(config), engine, folder / "rollouts", progress=Silent(), quota=quota
    )
    grade_rollouts(folder / "rollouts", "numeric", GRADE, folder / "graded", progress=Silent())
    return manifest


def whole(folder, engine, n=QUOTA.max_candidates):
    draw(plan(n=n), engine, folder / "rollouts")
    grade_rollouts(folder / "rollouts", "numeric", GRADE, folder / "graded", progress=Silent())


def dataset(folder, config=CONFIG):
    """Curate and return the rows of the dataset."""
    curate_rollouts(folder / "graded", config, folder / "dataset")
    return read_table(folder / "dataset")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    whole(folder, Counting())
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    in_rounds(folder, Counting())
    return folder


def test_the_dataset_is_that_of_the_whole_draw(full, straight):
    ours, theirs = (read_table(folder / "graded") for folder in (straight, full))
    assert ours.num_rows < theirs.num_rows
    assert ours.column_names == theirs.column_names
    assert ours.column_names[-1] == "level"
    # Sample by sample what the whole draw has, grades included.
    there = {(row["problem_id"], row["sample"]): row for row in theirs.to_pylist()}
    for row in ours.to_pylist():
        assert row == there[row["problem_id"], row["sample"]]
    assert dataset(straight) == dataset(full)
    kept = read_table(straight / "dataset")
    assert 0 < kept.num_rows < ours.num_rows  # what was not kept stayed in the store


def test_only_problems_that_are_not_full_are_drawn_for(straight):
    table = read_table(straight / "rollouts")
    drawn = {
        problem.id: table.filter(equal(table["problem_id"], problem.id))["sample"].to_pylist()
        for problem in PROBLEMS
    }
    assert all(samples == list(range(len(samples))) for samples in drawn.values())
    assert {len(samples) for samples in drawn.values()} <= {3, 6, 9, 10}
    assert len(drawn["p8"]) == 10  # nearly always right: it never has its negatives
    assert len(drawn["p2"]) < 10
    details = read_manifest(straight / "rollouts").details
    assert details["rounds"][0] == {"problems": 9, "completions": 27}
    assert [each["completions"] / each["problems"] for each in details["rounds"]][:3] == [3, 3, 3]
    assert sum(each["completions"] for each in details["rounds"]) == table.num_rows
    names = [path.name for path in shard_paths(straight / "rollouts")]
    assert names == [f"part-{i:05d}.parquet" for i in range(len(names))]
    assert names == [path.name for path in shard_paths(straight / "graded")]


def test_tokens_drawn_and_saved_are_counted(straight):
    table = read_table(straight / "rollouts")
    details = read_manifest(straight / "rollouts").details
    lengths = {problem.id: [] for problem in PROBLEMS}
    for row in table.to_pylist():
        lengths[row["problem_id"]].append(len(row["completion_ids"]))
    assert details["tokens"] == sum(map(sum, lengths.values()))
    saved = math.fsum((10 - len(found)) * sum(found) / len(found) for found in lengths.values())
    assert details["saved_tokens_estimate"] == round(saved)
    assert details["max_candidates"] == 10
    assert f"about {round(saved)} more" in spent(details)
    dataset(straight)
    report = read_manifest(straight / "dataset").details
    assert report["tokens"] == details["tokens"] > report["tokens_kept"]


@pytest.mark.parametrize("stop_at", [4, 26, 40])
def test_interrupted_while_drawing_it_ends_with_the_same_files(tmp_path, straight, stop_at):
    engine = Counting(stop_at)
    with pytest.raises(KeyboardInterrupt):
        in_rounds(tmp_path, engine)
    lost = engine.written % 6 if engine.written < 27 else None
    left = read_table(tmp_path / "rollouts").num_rows if shard_paths(tmp_path / "rollouts") else 0
    again = Counting()
    in_rounds(tmp_path, again)
    assert again.written == read_table(straight / "rollouts").num_rows - left
    assert lost is None or left == engine.written - lost  # at most a shard is drawn twice
    for part in ("rollouts", "graded"):
        ours, theirs = (
            {path.name: path.read_bytes() for path in (folder / part).iterdir()}
            for folder in (tmp_path, straight)
        )
        assert ours == theirs


def test_interrupted_while_grading_it_ends_with_the_same_files(tmp_path, straight, monkeypatch):
    calls = []
    grade = generate.grade_shards

    def killed(sources, *arguments, **options):
        calls.append(len(sources))
        if len(calls) == 2:
            grade(sources[:1], *arguments, **options)
            raise KeyboardInterrupt
        grade(sources, *arguments, **options)

    monkeypatch.setattr(generate, "grade_shards", killed)
    with pytest.raises(KeyboardInterrupt):
        in_rounds(tmp_path, Counting())
    monkeypatch.undo()
    in_rounds(tmp_path, Counting())
    assert dataset(tmp_path) == dataset(straight)
    assert read_table(tmp_path / "graded").equals(read_table(straight / "graded"))


def test_a_draw_that_is_done_is_not_drawn_again_and_another_is_refused(tmp_path):
    in_rounds(tmp_path, Counting())
    engine = Counting()
    in_rounds(tmp_path, engine)
    assert engine.written == 0
    with pytest.raises(RunDirectoryError, match="other settings"):
        in_rounds(tmp_path, engine, GENERATE.model_copy(update={"max_tokens": 41}))


def test_a_round_may_be_larger_than_the_most(tmp_path, full):
    manifest = in_rounds(tmp_path, Counting(), GENERATE.model_copy(update={"n": 64}))
    assert manifest.details["rounds"] == [{"problems": 9, "completions": 90}]
    assert manifest.details["saved_tokens_estimate"] == 0
    assert read_table(tmp_path / "graded").equals(read_table(full / "graded"))


def test_a_problem_is_drawn_for_until_every_curation_has_it_full(tmp_path, full):
    other = CurateConfig(steps=(QUOTA.model_copy(update={"max_positives": 3, "reserve": 2}),))
    in_rounds(tmp_path, Counting(), curations=(CONFIG, other))
    for config in (CONFIG, other):
        curate_rollouts(tmp_path / "graded", config, tmp_path / str(len(config.steps)))
        curate_rollouts(full / "graded", config, tmp_path / f"full {len(config.steps)}")
        ours, theirs = (
            read_table(tmp_path / name)
            for name in (str(len(config.steps)), f"full {len(config.steps)}")
        )
        assert ours.equals(theirs)


def test_a_rule_that_needs_all_candidates_gets_them(tmp_path, full):
    config = CurateConfig(steps=(PassRateRule(lowest=0.15, highest=0.85), QUOTA))
    manifest = in_rounds(tmp_path, Counting(), curations=(config,))
    assert manifest.rows == 90
    assert manifest.details["saved_tokens_estimate"] == 0
    curate_rollouts(full / "graded", config, tmp_path / "full")
    curate_rollouts(tmp_path / "graded", config, tmp_path / "dataset")
    assert read_table(tmp_path / "dataset").equals(read_table(tmp_path / "full"))


def test_a_models_samples_are_those_of_the_whole_draw(tmp_path):
    """The real engine: a sample's random numbers depend on its number, not on its round."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    config = GENERATE.model_copy(update={"max_tokens": 8})

    def engine():
        return TransformersEngine(model, tokenizer, model_name="tiny", batch_size=16)

    quota = CurateConfig(
        steps=(AnnaKareninaRule(per_problem=4, max_positives=0, max_candidates=6),)
    )
    in_rounds(tmp_path, engine(), config, curations=(quota,))
    draw(plan(config, n=6), engine(), tmp_path / "whole")
    there = {
        (row["problem_id"], row["sample"]): row["completion_ids"]
        for row in read_table(tmp_path / "whole").to_pylist()
    }
    rows = read_table(tmp_path / "rollouts").to_pylist()
    assert {row["sample"] for row in rows} >= {0, 1, 2, 3}
    for row in rows:
        assert row["completion_ids"] == there[row["problem_id"], row["sample"]]
