"""A dry run through the real command line: what it says comes true, and it leaves nothing."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from topr.cli import app
from topr.config import load_recipe
from topr.errors import EngineError, RunDirectoryError, ToprError
from topr.runs.plan.counts import Kind, planned
from topr.store import read_manifest
from topr.tasks import load_task
from topr.tasks.arithmetic.base import base_model

pytestmark = pytest.mark.slow

TINY = [
    "task.train_problems=6", "task.test_problems=4", "task.warmup.hidden_size=96",
    "task.warmup.num_layers=1", "task.warmup.num_heads=2", "task.warmup.intermediate_size=256",
    "task.warmup.steps=30", "generate.n=4", "generate.max_tokens=12", "generate.shard_problems=4",
    "train.max_steps=null", "train.num_train_epochs=2", "train.global_batch_size=8",
    "train.behavior_logprobs=recompute", "evaluate.n=2", "evaluate.pass_at=[1,2]",
    "evaluate.bootstrap=100", "grade.workers=1", "grade.truncated=grade",
    "grade.none_right=warn", "iterations=2",
    "compare={again: {train: {max_steps: 2}}}",
]  # fmt: skip
UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6}


def topr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def files(folder: Path) -> dict[str, int]:
    """Everything below a folder, hidden files and locks too, with when each file was changed."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns if path.is_file() else 0
        for path in folder.rglob("*")
    }


def table(output: str) -> dict[str, list[str]]:
    """The lines of the table by label, cell by cell."""
    rows = [re.split(r" {2,}", line) for line in output.splitlines()]
    return {label: cells for label, *cells in rows if cells}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A folder with the cache of the base model and a place for temporary files, and no more."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "scratch").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPR_CACHE", str(folder / "cache"))
        patch.setattr(tempfile, "tempdir", str(folder / "scratch"))
        base_model(load_recipe("quickstart", TINY).task)
        yield folder


@pytest.fixture(scope="module")
def said(place) -> str:
    """What a dry run says before any run; it leaves nothing, not even a lock."""
    before = files(place)
    done = topr("run", "quickstart", "-o", place / "run", "--dry-run", *TINY)
    assert done.exit_code == 0, done.exception
    assert files(place) == before
    return done.output


@pytest.fixture(scope="module")
def run(place, said) -> Path:
    done = topr("run", "quickstart", "-o", place / "run", *TINY)
    assert done.exit_code == 0, done.exception
    brief = "48 completions to generate and grade, 14 optimizer steps, 48 completions"
    assert brief in done.output
    return place / "run"


def test_the_first_lines_answer(said):
    first = said.index("time    about ")
    time, disk, memory = said[first:].splitlines()[:3]
    assert re.fullmatch(r"time    about .+ \(.+ to .+\)", time)
    assert re.match(r"disk    about .+ of .+: enough; .+ stay when it is done", disk)
    assert re.match(r"memory  about .+ of .+: enough \(.+ 12 completions side by side\)", memory)


def test_a_prompt_and_graded_completions_are_shown(said):
    assert "as the model receives it" in said
    assert "How many" in said
    assert "12 completions were sampled: " in said
    assert re.search(r"answer read .+, gold '\d+'; \d+ tokens, ended by", said)
    assert "What to change: " in said  # This model was hardly warmed up.


def test_counts_come_true(run):
    recipe = load_recipe("quickstart", TINY)
    stages = planned(recipe, load_task(recipe.task))
    for stage in stages:
        manifest = read_manifest(run / stage.folder)
        assert manifest is not None, stage.folder
        assert manifest.rows == stage.completions.value, stage.label
        if stage.kind is Kind.TRAIN:
            assert manifest.details["steps"] == stage.steps.value
            probes = (run / stage.folder / "probes.jsonl").read_text().splitlines()
            assert len(probes) == len(stage.draws)
    manifests = {p.parent.relative_to(run) for p in run.rglob("manifest.json")}
    assert {str(folder) for folder in manifests - {stage.folder for stage in stages}} == {
        "iteration-01/dataset", "iteration-02/dataset", "compare/again/dataset",
    }  # fmt: skip


def test_disk_comes_true(said, run):
    written = sum(p.stat().st_size for p in run.rglob("*") if p.is_file())
    written -= (run / "report.html").stat().st_size
    sizes = [cells[-1].split() for cells in table(said).values() if cells[-1].endswith("B")]
    predicted = sum(float(size) * UNITS[unit] for size, unit in sizes)
    # Small files are not foreseen: recipes, manifests, results, some 300 kB.
    assert written / 1.3 < predicted < written


def test_what_is_done_is_not_counted(place, run):
    other = [*TINY, "train.learning_rate=1e-3"]
    before = files(run)
    again = topr("run", "quickstart", "-o", run, "--dry-run", *TINY)
    assert "all stages are done" in again.output
    refused = topr("run", "quickstart", "-o", run, "--dry-run", *other)
    assert isinstance(refused.exception, RunDirectoryError)
    assert "train.learning_rate" in str(refused.exception)
    assert files(run) == before
    (run / "compare/again/evaluation/manifest.json").unlink()
    left = topr("run", "quickstart", "-o", run, "--dry-run", "--no-measure", *TINY)
    assert list(table(left.output)) == ["stage", "compare again: evaluate"]
    assert "iteration-02/training" in left.output


def test_a_prompt_without_room_is_refused(place):
    done = topr("run", "quickstart", "--dry-run", *TINY, "evaluate.max_tokens=1020")
    assert isinstance(done.exception, EngineError)
    assert "1024" in str(done.exception)


def test_counts_alone(place):
    before = files(place)
    done = topr("run", "quickstart", "--dry-run", "--no-measure", *TINY)
    assert done.exit_code == 0
    assert "not measured (--no-measure)" in done.output
    rows = table(done.output)
    assert rows["generate (x 2)"] == ["48"]
    assert rows["train (x 2)"] == ["48", "12"]
    assert files(place) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-measure", "-o", "x"], "--no-measure belongs to --dry-run"),
        ([], "-o runs/NAME"),
        (["--dry-run", "-o", __file__], "is a file"),
        (["--dry-run", "-o", str(Path(__file__).parent)], "holds no run"),
        (["--dry-run", "train.objective=topper"], "Did you mean 'topr'"),
    ],
)
def test_mistakes(place, arguments, message):
    done = topr("run", "quickstart", *TINY, *arguments)
    assert isinstance(done.exception, ToprError)
    assert message in str(done.exception)
