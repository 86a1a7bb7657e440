"""The stage on disk: what is written, in which order, after a kill, and from other tools' files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import topr.stages.curate as stage
from tiny_rollouts import tiny_grade, tiny_rollout
from topr.config import (
    AnnaKareninaRule,
    CapRule,
    CurateConfig,
    DropDuplicatesRule,
    PositivesRule,
)
from topr.errors import DataError, RunDirectoryError
from topr.stages.curate import curate_rollouts, read_columns
from topr.store import (
    read_manifest,
    read_table,
    rollouts_to_table,
    shard_paths,
    write_choice,
    write_shard,
)


def rollout(problem, sample, *, reward=-1.0, ids=(7, 8, 2), graded=True):
    return tiny_rollout(
        problem_id=f"p{problem}",
        sample=sample,
        prompt=f"What is {problem} ?",
        prompt_ids=(1, problem % 100),
        completion=" ".join(map(str, ids)),
        completion_ids=ids,
        logprobs=tuple(-0.5 for _ in ids),
        grade=tiny_grade(reward) if graded else None,
    )


def store(folder, problems=30, samples=6, per_shard=50, order=None):
    """Graded rollouts of lengths 1 to 5, a third right, a few alike, in several shards."""
    generator = np.random.default_rng(0)
    rows = [
        rollout(
            problem,
            sample,
            reward=1.0 if generator.random() < 0.3 else -1.0,
            ids=tuple(generator.integers(3, 6, generator.integers(1, 6)).tolist()),
        )
        for problem in range(problems)
        for sample in range(samples)
    ]
    table = rollouts_to_table(rows if order is None else [rows[i] for i in order])
    for index in range(-(-len(rows) // per_shard)):
        write_shard(folder, index, table.slice(index * per_shard, per_shard))
    return rows


CONFIG = CurateConfig(
    steps=(DropDuplicatesRule(), AnnaKareninaRule(per_problem=4, max_positives=2))
)


def by_hand(rows):
    kept = []
    for problem in dict.fromkeys(row.problem_id for row in rows):
        seen, positives, quota = set(), 0, []
        for row in sorted((r for r in rows if r.problem_id == problem), key=lambda r: r.sample):
            if row.completion_ids in seen or len(quota) == 4:
                continue
            seen.add(row.completion_ids)
            positives += row.grade.reward > 0
            if row.grade.reward < 0 or positives <= 2:
                quota.append((row.problem_id, row.sample))
        kept += quota
    return kept


def keys(folder):
    table = read_table(folder, ["problem_id", "sample"])
    return list(zip(table["problem_id"].to_pylist(), table["sample"].to_pylist(), strict=True))


def test_the_dataset_holds_the_kept_rows_as_they_were(tmp_path):
    rows = store(tmp_path / "graded")
    manifest = curate_rollouts(tmp_path / "graded", CONFIG, tmp_path / "dataset")
    expected = by_hand(rows)
    assert keys(tmp_path / "dataset") == expected
    whole, at = (
        read_table(tmp_path / "graded"),
        {(r.problem_id, r.sample): i for i, r in enumerate(rows)},
    )
    assert read_table(tmp_path / "dataset").equals(whole.take([at[key] for key in expected]))
    assert manifest.rows == len(expected)
    details = manifest.details
    assert details["tokens"] == sum(len(row.completion_ids) for row in rows)
    assert details["tokens_kept"] == sum(len(rows[at[key]].completion_ids) for key in expected)
    assert [step["rule"] for step in details["steps"]] == [
        "rewarded", "drop_duplicates", "anna_karenina",
    ]  # fmt: skip
    json.dumps(details)


@pytest.mark.parametrize("kind", ["shuffled", "by sample"])
def test_the_rows_are_the_same_whatever_the_order_of_the_store(tmp_path, kind):
    store(tmp_path / "graded")
    order = np.random.default_rng(1).permutation(180)
    if kind == "by sample":
        order = np.arange(180).reshape(30, 6).T.ravel()
    # The order of problems is that in which they appear.
    order = np.r_[np.arange(0, 180, 6), order[order % 6 > 0]]
    store(tmp_path / "other", order=order, per_shard=40)
    for name in ("graded", "other"):
        curate_rollouts(tmp_path / name, CONFIG, tmp_path / f"{name}-set")
    ours, theirs = (read_table(tmp_path / f"{name}-set") for name in ("graded", "other"))
    assert ours.equals(theirs)


def test_completions_are_stored_once(tmp_path):
    store(tmp_path / "graded")
    curate_rollouts(tmp_path / "graded", CONFIG, tmp_path / "dataset")
    (path,) = shard_paths(tmp_path / "dataset")
    assert pq.read_schema(path).names == ["problem_id", "sample", "reward", "row"]


def test_rows_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    """One file with one row group, as another tool may write it."""
    store(tmp_path / "graded", per_shard=1000)
    (path,) = shard_paths(tmp_path / "graded")
    table = pq.read_table(path)
    pq.write_table(table.append_column("mine", pa.array(range(180))), path, row_group_size=10**6)
    largest = []
    monkeypatch.setattr(stage, "READ_ROWS", 16)
    numpy = stage._numpy
    monkeypatch.setattr(stage, "_numpy", lambda t, n: largest.append(len(t)) or numpy(t, n))
    curate_rollouts(path, CONFIG, tmp_path / "dataset")
    assert max(largest) == 16
    kept = read_table(tmp_path / "dataset")
    assert kept.column_names[-1] == "mine"
    assert keys(tmp_path / "dataset") == [
        key for key, i in zip(keys(path), range(180), strict=True) if i in kept["mine"].to_pylist()
    ]


def test_what_a_killed_call_left_is_replaced(tmp_path, monkeypatch):
    store(tmp_path / "graded")
    curate_rollouts(tmp_path / "graded", CONFIG, tmp_path / "straight")

    def killed(directory, *written):
        write_choice(directory, *written)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "write_choice", killed)
    with pytest.raises(KeyboardInterrupt):
        curate_rollouts(tmp_path / "graded", CONFIG, tmp_path / "killed")
    assert len(shard_paths(tmp_path / "killed")) == 1
    assert read_manifest(tmp_path / "killed") is None
    monkeypatch.undo()
    with pytest.raises(RunDirectoryError, match="other settings"):
        curate_rollouts(tmp_path / "graded", CurateConfig(), tmp_path / "killed")
    curate_rollouts(tmp_path / "graded", CONFIG, tmp_path / "killed")
    left = {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir()}
    assert left == {path.name: path.read_bytes() for path in (tmp_path / "straight").iterdir()}


def test_a_stage_that_is_done_is_not_done_again(tmp_path, monkeypatch):
    store(tmp_path / "graded")
    first = curate_rollouts(tmp_path / "graded", CONFIG, tmp_path / "dataset")
    monkeypatch.setattr(stage, "read_columns", None)
    assert curate_rollouts(tmp_path / "graded", CONFIG, tmp_path / "dataset") == first


def test_what_cannot_be_curated_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no shards"):
        curate_rollouts(tmp_path / "empty", CONFIG, tmp_path / "a")
    write_shard(tmp_path / "raw", 0, rollouts_to_table([rollout(0, 0, graded=False)]))
    with pytest.raises(DataError, match="1 rollouts and no grade: grade them first"):
        curate_rollouts(tmp_path / "raw", CONFIG, tmp_path / "b")
    write_shard(tmp_path / "wrong", 0, rollouts_to_table([rollout(0, 0)]))
    positives = CurateConfig(steps=(PositivesRule(),))
    with pytest.raises(DataError, match="'positives' keeps none of 1"):
        curate_rollouts(tmp_path / "wrong", positives, tmp_path / "c")
    assert shard_paths(tmp_path / "c") == []


def test_columns_are_read_as_they_lie(tmp_path):
    rows = [
        rollout(1, 0, reward=None),
        rollout(0, 1, reward=1.0, ids=(9,)),
        rollout(1, 1, ids=()),
        rollout(0, 0, ids=(9,)),
    ]
    write_shard(tmp_path, 0, rollouts_to_table(rows))
    columns = read_columns(tmp_path)
    assert list(columns.names) == ["p1", "p0"]
    assert columns.problems_N.tolist() == [0, 1, 0, 1]
    assert columns.samples_N.tolist() == [0, 1, 1, 0]
    np.testing.assert_array_equal(columns.rewards_N, [np.nan, 1, -1, -1])
    assert columns.tokens_N.tolist() == [3, 1, 0, 1]
    assert columns.completions_N[1] == columns.completions_N[3] != columns.completions_N[0]


def test_a_later_cap_sees_what_an_earlier_rule_left(tmp_path):
    store(tmp_path / "graded")
    config = CurateConfig(steps=(PositivesRule(), CapRule(per_problem=1)))
    curate_rollouts(tmp_path / "graded", config, tmp_path / "dataset")
    table = read_table(tmp_path / "dataset")
    assert set(table["reward"].to_pylist()) == {1.0}
    assert len(set(table["problem_id"].to_pylist())) == table.num_rows


def test_the_benchmark_of_a_large_store_makes_one_and_curates_it():
    script = Path(__file__).parents[2] / "benchmarks/curation.py"
    done = subprocess.run(
        [sys.executable, script, "--rows", "960", "--shard-rows", "320"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "store: 960 rollouts" in done.stdout
    assert "curated in" in done.stdout
