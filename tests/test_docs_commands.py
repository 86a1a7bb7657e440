"""Every command block of README and of the pages to learn from, run as it is written, in a folder
that looks like a clone after `make quickstart`; and the examples.

Two things stand in: `make` only looks whether its target is there, and runs of the quickstart are
made small. A model that has learned how an answer ends takes the place of the quickstart's.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from command_line import read_jsonl
from topr.tasks.arithmetic.tokenizer import build_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[1]
LEARN = ["quickstart", "your-data", "own-data", "real-model"]
PAGES = [ROOT / "README.md", *(ROOT / f"docs/{name}.md" for name in LEARN)]
BLOCK = re.compile(r"^```(sh|python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MADE = {
    "README": [
        "runs/mine/report.html", "runs/mine/iteration-01/model/model.safetensors",
        "trained/model/model.safetensors", "trained-from-python/report.html",
    ],
    "own-data": ["graded.jsonl", "trained-dataset/report.html"],
}  # fmt: skip
"""What a page promises, beyond that its commands end well."""
SMALL = (
    "task.train_problems=6 task.test_problems=4 task.warmup.hidden_size=16 "
    "task.warmup.num_layers=1 task.warmup.num_heads=2 task.warmup.intermediate_size=16 "
    "task.warmup.steps=20 generate.n=4 generate.max_tokens=12 train.max_steps=2 evaluate.n=2 "
    "evaluate.pass_at=[1] grade.none_right=warn grade.workers=1"
)
TOPR = f"""#!/bin/sh
case "$1 $2" in
  "run quickstart") exec "{sys.executable}" -m topr "$@" {SMALL} ;;
  *) exec "{sys.executable}" -m topr "$@" ;;
esac
"""
MAKE = f"""#!/bin/sh
grep -q "^$1:" "{ROOT}/Makefile"
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model that ends in an answer, now and then the right one."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    net = LlamaForCausalLM(config)
    rows = read_jsonl(ROOT / "docs/completions.jsonl")
    short = [row for row in rows if row["completion"].startswith("so ")]
    ids = [
        [*tokenizer(f"{row['prompt']} {row['completion']}")["input_ids"], tokenizer.eos_token_id]
        for row in short
    ]
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(240):
        batch = torch.tensor([ids[step % len(ids)]])
        net(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    path = tmp_path_factory.mktemp("model")
    net.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def clone(tmp_path, model) -> Path:
    """A folder with the sample data, the quickstart's model, and the commands."""
    folder = tmp_path / "clone"
    (folder / "docs").mkdir(parents=True)
    for sample in (ROOT / "docs").glob("*.jsonl"):
        shutil.copy(sample, folder / "docs")
    shutil.copytree(model, folder / "runs/quickstart/iteration-01/model")
    (folder / "bin").mkdir()
    for name, text in (("topr", TOPR), ("make", MAKE)):
        (folder / "bin" / name).write_text(text, encoding="utf-8")
        (folder / "bin" / name).chmod(0o755)
    return folder


def run(folder: Path, *command: str) -> str:
    environment = {
        **os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "TOPR_CACHE": str(folder / "cache"),
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_its_blocks_run_as_written(page, clone):
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks
    for language, text in blocks:
        if language == "sh":
            run(clone, "bash", "-euc", text)
        elif language == "python":
            run(clone, sys.executable, "-c", text)
        else:
            name = re.match(r"# (\S+\.yaml)\n", text)
            assert name, "a recipe to save begins with its name"
            (clone / name[1]).write_text(text, encoding="utf-8")
    for path in MADE.get(page.stem, ()):
        assert (clone / path).is_file(), path


def test_the_example_of_own_completions(clone, tmp_path):
    shown = run(
        clone, sys.executable, str(ROOT / "examples/own_completions.py"),
        "runs/quickstart/iteration-01/model", str(tmp_path / "out"),
    )  # fmt: skip
    assert re.search(r"\d+ of 96 completions are kept, \d+ of them right", shown)
    assert "log_ratio/negative: 0.000 -> -" in shown
    assert (tmp_path / "out/report.html").is_file()


def test_the_example_of_an_own_objective_trains(clone):
    shutil.copy(ROOT / "examples/own_objective.py", clone)
    shown = run(
        clone, "topr", "run", "quickstart", "-o", "run", "iterations=1", "compare={}",
        "model.path=runs/quickstart/iteration-01/model", "task.train_problems=16",
        "task.test_problems=4", "evaluate.n=16", "grade.none_right=warn", "train.max_steps=2",
        "train.objective=own_objective:Cautious", "train.objective_args={limit: 1.5}",
    )  # fmt: skip
    assert "Cautious (iteration 1): pass@1" in shown
    assert (clone / "run/iteration-01/model/model.safetensors").is_file()


def test_the_example_of_an_own_reward():
    shown = run(ROOT / "examples", sys.executable, "own_reward.py")
    assert [line.split()[0] for line in shown.splitlines()] == ["1.0", "-1.0", "-1.0", "None"]


def test_the_notebook_runs_and_holds_no_outputs(tmp_path):
    notebook = json.loads((ROOT / "examples/first_run.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    shown = run(tmp_path, sys.executable, "-c", "\n".join("".join(c["source"]) for c in code))
    assert re.search(r"^topr: pass@1 [\d.]+% \[", shown, re.MULTILINE)
    assert re.search(r"^256 completions, \d+ of them right$", shown, re.MULTILINE)
    assert "weight of wrong completions" in shown
    assert (tmp_path / "runs/first-run/report.html").is_file()
