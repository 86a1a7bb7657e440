"""`topr import` and `topr export` as a stranger types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import read_jsonl, topr, write_jsonl
from tiny import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    save_tiny(folder / "model", chat_template=True)
    chat = [{"role": "user", "content": "1+1?"}]
    row = {"prompt": chat, "completions": ["2", "3"], "rewards": [1, 0], "gold": "2"}
    write_jsonl(folder / "grouped.jsonl", [row])
    return folder


def test_a_foreign_file_goes_in_and_out_again(folder: Path) -> None:
    said = topr(folder, "import", "grouped.jsonl", "-o", "in", "--tokenizer", "model").stdout
    assert said.splitlines()[0] == "format: grouped"
    assert "2 completions were text only: tokenised here, once" in said
    assert "2 do not say how they ended: taken as ended by themselves" in said
    assert "2 have the grade of column reward: -1 for wrong, +1 for right" in said
    assert "train.behavior_logprobs=recompute" in said
    manifest = json.loads((folder / "in" / "manifest.json").read_text())
    assert manifest["details"]["tokenized"] == {"prompts": 2, "completions": 2}
    again = topr(folder, "import", "grouped.jsonl", "-o", "in", "--tokenizer", "model").stdout
    assert again == said
    said = topr(folder, "export", "in", "-o", "kto.jsonl", "--format", "trl-kto").stdout
    assert said == "2 rows in kto.jsonl\n"
    rows = read_jsonl(folder / "kto.jsonl")
    assert [(row["completion"], row["label"]) for row in rows] == [("2", True), ("3", False)]
    assert rows[0]["prompt"] == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    said = topr(folder, "export", "in", "-o", "verl.jsonl", "--format", "verl").stdout
    assert "1 prompts are written as their question only, for verl's own chat template" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "grouped.jsonl", "-o", "x", "--tokenizer", "model", "--format", "trll"],
         "there is no format 'trll', only columns, topr, trl"),
        (["import", "grouped.jsonl", "-o", "x", "--tokenizer", "model", "--format", "tinker"],
         "row 1: found the columns prompt, completions, rewards, gold, expected loss_fn_inputs"),
        (["import", "nowhere", "-o", "x", "--tokenizer", "model"], "nowhere is not there"),
        (["export", "grouped.jsonl", "-o", "x.parquet", "--format", "trl"],
         "grouped.jsonl cannot be read as parquet, as rollouts are kept (`topr import` makes"),
        (["export", "model", "-o", "grouped.jsonl", "--format", "trl"], "is not overwritten"),
        (["export", "model", "-o", "x.xlsx", "--format", "trl"], "unknown kind of file"),
    ],
)  # fmt: skip
def test_mistakes_get_one_message_and_leave_nothing(
    folder: Path, arguments: list[str], message: str
) -> None:
    before = sorted(folder.iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "topr", *arguments],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(folder.iterdir()) == before
