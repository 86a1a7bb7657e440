"""`--overwrite` of the commands: it asks, and a command that would be refused removes nothing."""

import io
import json
import sys
from pathlib import Path

import pytest
import typer

from tiny import save_tiny
from topr.cli import app
from topr.cli.overwriting import make_room
from topr.errors import ConfigError, RunDirectoryError, ToprError

RUN = ("recipe.yaml", "environment.json", "summary.json", "iteration-01/model/config.json")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, and rows to train on."""
    monkeypatch.chdir(tmp_path)
    for name in RUN:
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{iterations: 1}")
    rows = [{"prompt": "1+1=", "completion": "2", "reward": reward} for reward in (1.0, -1.0)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def left(home: Path) -> set[str]:
    return {str(path.relative_to(home / "run")) for path in (home / "run").rglob("*.*")}


class Terminal(io.StringIO):
    """Standard input of somebody who types."""

    def isatty(self) -> bool:
        return True


def test_it_asks_on_a_terminal_and_refuses_without_one(home, monkeypatch, capsys):
    run = Path("run")
    with pytest.raises(ConfigError, match="--yes belongs to --overwrite"):
        make_room(run, [], resume=True, yes=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(ConfigError, match=r"no terminal.*--yes"):
        make_room(run, [], resume=False, yes=False)
    monkeypatch.setattr(sys, "stdin", Terminal("n\ny\n"))
    with pytest.raises(typer.Abort):
        make_room(run, [], resume=False, yes=False)
    assert left(home) == set(RUN)
    make_room(run, [], resume=False, yes=False)
    assert capsys.readouterr().out.count(f"Remove {len(RUN)} files") == 2
    assert left(home) == {".lock"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "rows.jsonl", "-m", "tiny", "train.objective=tpor"], "no objective 'tpor'"),
        (["train", "rows.jsonl", "-m", "./none"], "no directory none"),
        (
            ["train", "rows.jsonl", "-m", "tiny", "--behavior-model", "at/no/place"],
            "no directory at/no/",
        ),
        (["train", "named.jsonl", "-m", "tiny"], "no column 'prompt'"),
        (["train", "rows.jsonl", "-m", "tiny", "train.training_arguments.lr=1"], r"\.lr"),
        (["run", "quickstart", "model.path=./none"], "no directory none"),
        (["run", "quickstart", "train.objective=tpor"], "no objective 'tpor'"),
        (["study", "leaderboard", "--add", "no_such:Mine"], "no_such"),
        (["study", "leaderboard", "recipe.model.path=./none"], "no directory none"),
    ],
)
def test_what_would_be_refused_removes_nothing(arguments, told, home):
    save_tiny(home / "tiny")
    (home / "named.jsonl").write_text('{"question": "1+1=", "completion": "2", "reward": 1.0}\n')
    command = [*arguments, "-o", "run", "--overwrite", "--yes"]
    with pytest.raises(ToprError, match=told):
        app(command, standalone_mode=False)
    assert left(home) == set(RUN)


def test_a_training_takes_the_place_of_what_was_there(home, capsys):
    save_tiny(home / "tiny")
    settings = ["train.max_steps=1", "train.global_batch_size=2", "train.batch_size=2"]
    command = ["train", "rows.jsonl", "-m", "tiny", "-o", "run", *settings, "--overwrite", "--yes"]
    app(command, standalone_mode=False)
    assert "trained 1 step of topr on 2 completions" in " ".join(capsys.readouterr().out.split())
    assert "model/model.safetensors" in left(home)
    assert not {"summary.json", "iteration-01/model/config.json"} & left(home)
    with pytest.raises(RunDirectoryError, match="is read"):
        app([*command[:3], "run/model", *command[4:]], standalone_mode=False)
