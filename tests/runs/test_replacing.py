"""`--overwrite`: what is in a directory is moved aside, whole, or left where it is."""

import pytest

from topr.errors import RunDirectoryError
from topr.runs.replacing import names_in, set_aside
from topr.store import locked


@pytest.fixture
def run(tmp_path):
    """A run with something of the user's own in it."""
    folder = tmp_path / "runs" / "mine"
    for name in (
        "recipe.yaml",
        "environment.json",
        "iteration-01/model/model.safetensors",
        "my.txt",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def texts(folder):
    return {
        str(p.relative_to(folder)): p.read_text()
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def test_all_of_it_is_moved_and_nothing_is_lost(run):
    before = texts(run)
    for number in (1, 2):
        place = set_aside(run)
        assert place == run.with_name(f"mine.old-{number}")
        assert texts(place) == before
        assert not run.exists()
        run.mkdir()
        for name in ("recipe.yaml", "environment.json"):
            (run / name).write_text(name)
        before = texts(run)


def test_where_nothing_is_nothing_is_moved(tmp_path):
    assert set_aside(tmp_path / "none") is None
    (tmp_path / "empty").mkdir()
    assert set_aside(tmp_path / "empty") is None


def test_a_directory_of_something_else_stays(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(RunDirectoryError, match="nothing that topr knows"):
        set_aside(tmp_path)


def test_what_is_read_stays(run, tmp_path):
    model = str(run / "iteration-01/model")
    with pytest.raises(RunDirectoryError, match="is read by what you start"):
        set_aside(run, ["quickstart", model])
    others = ["Think. " * 1000, "~nobody/x", "\0", str(tmp_path), "no/such/path"]
    assert set_aside(run, others) is not None


def test_what_another_process_writes_stays(run):
    nested = run / "other-run"
    with locked(nested), pytest.raises(RunDirectoryError, match="another process"):
        set_aside(run)
    assert set_aside(run) is not None


def test_paths_of_a_recipe_are_among_its_texts():
    recipe = {"model": {"path": "m"}, "compare": [{"task": {"rollouts": "r"}}], "n": 4, "x": None}
    assert list(names_in(recipe)) == ["m", "r"]
