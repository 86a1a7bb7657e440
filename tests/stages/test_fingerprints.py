"""What a stage's fingerprint depends on: its sections, what it reads, the version of its data."""

import json
import os
from dataclasses import replace

import pyarrow as pa
import pytest

from topr.config import CurateConfig, GenerateConfig, ModelConfig, PositivesRule
from topr.errors import RunDirectoryError
from topr.records import Message, Problem, SamplingParams
from topr.stages import common
from topr.stages.common import data_fingerprint, fingerprint, open_stage
from topr.stages.draw_plan import DrawPlan

PLAN = DrawPlan(
    problems=[Problem(id="p", prompt=(Message(role="user", content="2 + 2?"),), answer="4")],
    sampling=SamplingParams(seed=1),
    n=2,
    shard_problems=3,
    settings=(GenerateConfig(), ModelConfig(path="m").at("")),
)


def opened(directory, *parts, stage="curate"):
    """Open a stage and finish it, if need be; return whether it was done."""
    with open_stage(directory, stage, *parts) as found:
        if found.done is None:
            found.finish(rows=1, details={"of": "a test"})
        return found.done is not None


def test_equal_parts_are_one_result_and_others_are_refused(tmp_path):
    assert not opened(tmp_path, "made of this", CurateConfig())
    assert opened(tmp_path, "made of this", CurateConfig())
    for other in (("of that", CurateConfig()),
                  ("made of this", CurateConfig(steps=(PositivesRule(),)))):  # fmt: skip
        with pytest.raises(RunDirectoryError, match="other settings or from other data"):
            opened(tmp_path, *other)


def test_a_stage_is_known_by_what_it_read(tmp_path):
    """Stages on equal data have equal fingerprints, wherever they lie: so studies share them."""
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        opened(tmp_path / run / "rollouts", seed, stage="generate")
        opened(tmp_path / run / "graded", data_fingerprint(tmp_path / run / "rollouts"))
    a, b, c = (data_fingerprint(tmp_path / run / "graded") for run in "abc")
    assert a == b != c


def test_data_of_another_version_of_a_stage_is_refused_and_says_so(tmp_path, monkeypatch):
    opened(tmp_path / "new", 1)
    monkeypatch.setitem(common.DATA_VERSIONS, "curate", 99)
    with pytest.raises(RunDirectoryError, match="another version of topr"):
        opened(tmp_path / "new", 1)
    # Before stages knew their own fingerprints there was no version in front.
    opened(tmp_path / "old", 1)
    path = tmp_path / "old" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "5f3a"}))
    with pytest.raises(RunDirectoryError, match=r"another version of topr.*topr report"):
        opened(tmp_path / "old", 1)


def test_files_of_the_hub_are_known_by_their_place_in_a_commit(tmp_path):
    snapshot = tmp_path / "datasets--openai--gsm8k/snapshots/c0ffee"
    for subset in ("main", "socratic"):
        (snapshot / subset).mkdir(parents=True)
        (snapshot / subset / "train.jsonl").write_text("{}\n")
    one, other = (data_fingerprint(snapshot / s / "train.jsonl") for s in ("main", "socratic"))
    assert one != other
    os.utime(snapshot / "main/train.jsonl", (0, 0))
    assert data_fingerprint(snapshot / "main/train.jsonl") == one  # downloaded again


def test_shards_without_a_manifest_are_known_by_size_and_time(tmp_path):
    shard = tmp_path / "part-00000.parquet"
    shard.write_text("rewards 1")
    before = data_fingerprint(tmp_path)
    shard.write_text("rewards 0")
    os.utime(shard, (0, 0))
    assert data_fingerprint(tmp_path) != before


def test_files_are_known_by_size_and_time_wherever_they_lie(tmp_path):
    (tmp_path / "one.jsonl").write_text("{}\n")
    before = data_fingerprint(tmp_path / "one.jsonl")
    (tmp_path / "one.jsonl").rename(tmp_path / "two.jsonl")
    assert data_fingerprint(tmp_path / "two.jsonl") == before
    os.utime(tmp_path / "two.jsonl", (0, 0))
    assert data_fingerprint(tmp_path / "two.jsonl") != before
    assert data_fingerprint(tmp_path / "absent") is None


@pytest.mark.parametrize(
    "changed",
    [
        {"problems": [replace(PLAN.problems[0], answer="5")]},
        {"problems": [replace(PLAN.problems[0], prompt="2 + 2?")]},
        {"problems": [replace(PLAN.problems[0], escape_special_tokens=True)]},
        {"problems": [*PLAN.problems, replace(PLAN.problems[0], id="q")]},
        {"sampling": SamplingParams(seed=2)},
        {"n": 3},
        {"shard_problems": 4},
        {"iteration": 1},
        {"extra": {"level": pa.array([1])}},
        {"settings": (GenerateConfig(), ModelConfig(path="m", dtype="bfloat16").at(""))},
        {"settings": (GenerateConfig(engine="vllm"), ModelConfig(path="m").at(""))},
    ],
)
def test_everything_that_completions_depend_on_is_in_a_plans_fingerprint(changed):
    assert fingerprint(replace(PLAN, **changed)) != fingerprint(PLAN)


def test_where_a_model_lies_or_a_server_is_plays_no_part():
    moved = GenerateConfig(server={"url": "http://elsewhere/v1"})
    settings = (moved, ModelConfig(path="elsewhere/m", revision="main").at(""))
    assert fingerprint(replace(PLAN, settings=settings)) == fingerprint(PLAN)


def test_what_has_no_fingerprint_is_refused():
    with pytest.raises(TypeError, match="object has no fingerprint"):
        fingerprint(object())
