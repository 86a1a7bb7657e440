"""A dry run through the real command line: what it says comes true, and it leaves nothing."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from topr.cli import app
from topr.config import load_recipe
from topr.errors import EngineError, RunDirectoryError, ToprError
from topr.progress import Silent
from topr.runs import loop
from topr.runs.plan import DryRun, dry_run, lines
from topr.runs.plan.costs import total
from topr.store import read_manifest
from topr.tasks.arithmetic.base import base_model

pytestmark = pytest.mark.slow

TINY = [
    "task.train_problems=6", "task.test_problems=4", "task.warmup.hidden_size=16",
    "task.warmup.num_layers=1", "task.warmup.num_heads=2", "task.warmup.intermediate_size=16",
    "task.warmup.steps=30", "generate.n=4", "generate.max_tokens=12", "generate.shard_problems=4",
    "train.max_steps=null", "train.num_train_epochs=2", "train.global_batch_size=8",
    "train.behavior_logprobs=recompute", "evaluate.n=2", "evaluate.pass_at=[1,2]",
    "evaluate.bootstrap=100", "grade.workers=1", "grade.truncated=grade",
    "grade.none_right=warn", "iterations=2",
    "compare={again: {train: {max_steps: 2}}}",
]  # fmt: skip


def topr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def files(folder: Path) -> dict[str, int]:
    """Everything below a folder, hidden files and locks too, with when each file was changed."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns if path.is_file() else 0
        for path in folder.rglob("*")
    }


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
def found(place) -> DryRun:
    """What a dry run finds, before any run; it leaves nothing, not even a lock."""
    before = files(place)
    found = dry_run(load_recipe("quickstart", TINY), place / "run", Silent())
    assert files(place) == before
    return found


@pytest.fixture(scope="module")
def said(found) -> list[str]:
    return lines(found)


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def run(place, found) -> Path:
    progress = Said()
    loop.run(load_recipe("quickstart", TINY), place / "run", progress)
    brief = "48 completions to draw and grade, 14 optimizer steps, 48 completions"
    assert any(brief in line for line in progress.lines)
    return place / "run"


def test_the_first_three_lines_answer(said):
    first = next(i for i, line in enumerate(said) if line.startswith("time"))
    assert said[first].startswith("time    about ")
    assert said[first + 1].startswith("disk    about ")
    assert said[first + 1].endswith("free: enough")
    assert said[first + 2].startswith("memory  about ")


def test_a_prompt_and_graded_completions_are_shown(said):
    text = "\n".join(said)
    assert "as the model is given it ----" in text
    assert "How many" in text
    assert "12 completions of 6 problems" in text
    assert any(word in text for word in ("<eos>", "cut off after 12 tokens"))
    assert "gold: " in text


def test_counts_come_true(found, run):
    for stage in found.stages:
        manifest = read_manifest(run / stage.folder)
        assert manifest is not None, stage.folder
        if stage.kind != "train":
            continue
        assert manifest.details["steps"] == stage.steps.low == stage.steps.high
    for stage in found.stages:
        if stage.kind == "probe":
            asked = (run / stage.folder / "probes.jsonl").read_text().splitlines()
            assert len(asked) == len(stage.draws)
            continue
        assert read_manifest(run / stage.folder).rows == stage.completions.high, stage.label
    manifests = {str(p.parent.relative_to(run)) for p in run.rglob("manifest.json")}
    assert manifests - {s.folder for s in found.stages} == {
        "iteration-01/dataset", "iteration-02/dataset", "compare/again/dataset",
    }  # fmt: skip


def test_disk_comes_true(found, run):
    written = sum(p.stat().st_size for p in run.rglob("*") if p.is_file())
    report = (run / "report.html").stat().st_size
    predicted = total(found.costs, 0.0, report=0).disk
    # Small files count here: recipes, manifests and results, some 100 kB that are not foreseen.
    assert predicted == pytest.approx(written - report, abs=150_000)
    assert predicted > 0.5 * (written - report)


def test_what_is_done_is_not_counted(found, run):
    before = files(run)
    again = dry_run(load_recipe("quickstart", TINY), run, Silent())
    assert again.measured is None  # nothing is left that would take time
    assert again.done == {stage.folder for stage in found.stages}
    assert any("all stages are done" in line for line in lines(again))
    other = load_recipe("quickstart", [*TINY, "train.learning_rate=1e-3"])
    with pytest.raises(RunDirectoryError, match=r"train\.learning_rate"):
        dry_run(other, run, Silent(), measured=False)
    assert files(run) == before


def test_a_prompt_without_room_is_refused(place):
    recipe = load_recipe("quickstart", [*TINY, "evaluate.max_tokens=1020"])
    with pytest.raises(EngineError, match="1024"):
        dry_run(recipe, None, Silent(), measured=False)


def test_counts_alone_on_the_command_line(place):
    before = files(place)
    done = topr("run", "quickstart", "--dry-run", "--no-measure", *TINY)
    assert done.exit_code == 0
    assert "time    not measured (--no-measure)" in done.output
    rows = dict(line.split("  ", 1) for line in done.output.splitlines() if "  " in line)
    assert rows["generate (x 2)"].split() == ["48"]
    assert rows["train (x 2)"].split() == ["48", "12"]
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
