"""Stages that lie elsewhere, put into a cell's directory: as links, whole or again, never over."""

import os

import pytest

from topr.config import Recipe, load_recipe
from topr.errors import RunDirectoryError
from topr.studies import sharing
from topr.studies.sharing import draws_fingerprint, share_stages

RECIPE = load_recipe("quickstart", ["compare={}"])
FILES = {
    "iteration-00/evaluation.json": "numbers",
    "iteration-00/evaluation/manifest.json": "done",
    "iteration-00/evaluation/part-00000.parquet": "completions",
    "iteration-01/rollouts/part-00000.parquet": "rollouts",
    "iteration-01/rollouts/manifest.json": "done too",
}


@pytest.fixture
def made(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "draws" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "draws" / "iteration-01/rollouts/.lock").touch()
    return tmp_path / "draws"


def shared(directory):
    found = directory.glob("iteration-*/**/*")
    return {str(p.relative_to(directory)): p.read_text() for p in found if p.is_file()}


def test_a_cell_has_the_same_files_and_its_recipe(made, tmp_path):
    share_stages(RECIPE, made, tmp_path / "cell")
    assert shared(tmp_path / "cell") == FILES  # but for the lock
    assert all((tmp_path / "cell" / name).samefile(made / name) for name in FILES)
    assert (tmp_path / "cell/recipe.yaml").is_file()
    share_stages(RECIPE, made, tmp_path / "cell")
    with pytest.raises(RunDirectoryError, match="another recipe"):
        share_stages(load_recipe("quickstart", ["compare={}", "seed=7"]), made, tmp_path / "cell")


def test_killed_on_the_way_no_stage_is_declared_done_before_its_files(made, tmp_path, monkeypatch):
    link, done = os.link, []

    def killed(source, target):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(target)
        link(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", killed)
        with pytest.raises(KeyboardInterrupt):
            share_stages(RECIPE, made, tmp_path / "cell")
    assert len(shared(tmp_path / "cell")) == 3
    assert not list((tmp_path / "cell").rglob("manifest.json"))
    share_stages(RECIPE, made, tmp_path / "cell")
    assert shared(tmp_path / "cell") == FILES


def test_where_the_file_system_has_no_links_files_are_copied(made, tmp_path, monkeypatch):
    def refused(source, target):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    share_stages(RECIPE, made, tmp_path / "cell")
    assert shared(tmp_path / "cell") == FILES
    assert not (tmp_path / "cell/iteration-00/evaluation.json").samefile(
        made / "iteration-00/evaluation.json"
    )


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("train.learning_rate=1e-6", True),
        ("curate.steps=[positives]", True),  # it does not say when a problem is full
        ("generate.server.url=http://elsewhere/v1", True),
        ("grade.none_right=warn", True),
        ("generate.n=3", False),
        ("seed=7", False),
        ("evaluate.n=3", False),
        ("model.dtype=bfloat16", False),
    ],
)
def test_recipes_share_what_they_draw_alike(change, same):
    other = load_recipe("quickstart", ["compare={}", change])
    assert (draws_fingerprint(other) == draws_fingerprint(RECIPE)) is same


def test_without_links_a_copy_is_whole_or_not_there(made, tmp_path, monkeypatch):
    def no_link(source, target):
        raise OSError("no links here")

    def killed(source, target):
        target.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", no_link)
    with monkeypatch.context() as cut:
        cut.setattr(sharing.shutil, "copy2", killed)
        with pytest.raises(KeyboardInterrupt):
            share_stages(RECIPE, made, tmp_path / "cell")
    assert shared(tmp_path / "cell") == {}
    share_stages(RECIPE, made, tmp_path / "cell")
    assert shared(tmp_path / "cell") == FILES


def test_a_users_grader_that_changed_makes_other_draws(tmp_path, monkeypatch):
    (tmp_path / "changed_scorer.py").write_text("def score(completions, **_):\n    return [1.0]\n")
    (tmp_path / "problems.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n' * 3)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.model_validate(
        {
            "name": "mine",
            "task": {
                "name": "jsonl",
                "train_file": "problems.jsonl",
                "grader": "changed_scorer:score",
            },
            "model": {"path": "unused"},
        }
    )
    before = draws_fingerprint(recipe)
    assert draws_fingerprint(recipe) == before
    (tmp_path / "changed_scorer.py").write_text("def score(completions, **_):\n    return [-1.0]\n")
    assert draws_fingerprint(recipe) != before
