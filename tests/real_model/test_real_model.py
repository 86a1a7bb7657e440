"""A real language model on real questions, through every stage, by the command line.

Run by `make test-real-model`, which says by an environment variable where models are kept; skipped
elsewhere. SmolLM2-135M-Instruct, of 4-bit weights in a GGUF file, solves next to none of these
questions: what is tested is that all of it works, not that the model learns.
"""

import base64
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from command_line import topr
from topr.store import read_manifest, read_table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("REAL_MODELS" not in os.environ, reason="run by `make test-real-model`"),
]
MODEL = "smollm2-135m-instruct"
SHARED = Path(__file__).parents[2] / "../shared"
FETCH = SHARED / "models/fetch.py"
DATA = (SHARED / "data").absolute()
RECIPE = """
task:
  name: gsm8k
  train_file: {data}/gsm8k_train.jsonl.gz
  test_file: {data}/gsm8k_test.jsonl.gz
  train_problems: 3
  validation_problems: 0
  test_problems: 1
  few_shot: 2
  prompt: plain
model: {{path: {model}, gguf_file: model.gguf, device: cpu}}
generate: {{n: 4, max_tokens: 40}}
grade: {{workers: 1, truncated: grade, none_right: warn}}
train:
  behavior_logprobs: recompute
  optim: adamw_torch
  learning_rate: 1.0e-5
  global_batch_size: 12
  max_steps: 1
evaluate: {{n: 2, pass_at: [1], greedy: false, bootstrap: 100}}
"""


@pytest.fixture(scope="module")
def model() -> Path:
    """The directory of the GGUF file, fetched where it is not there."""
    folder = Path(os.environ["REAL_MODELS"])
    if not (folder / MODEL / "model.gguf").is_file():
        assert FETCH.is_file(), f"no {MODEL} in {folder}, and no {FETCH} to fetch it with"
        subprocess.run([sys.executable, FETCH, folder, MODEL], check=True)
    return (folder / MODEL).absolute()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    assert DATA.is_dir(), f"no {DATA} with GSM8K's questions"  # a fixture would skip
    recipe = RECIPE.format(data=DATA, model=model)
    (folder / "small.yaml").write_text(recipe, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPR_CACHE", str(folder / "cache"))
        said = topr(folder, "run", "small.yaml", "-o", "run", threads=os.cpu_count() or 1).stdout
    assert "topr (iteration 1): pass@1" in said
    return folder


def test_completions_are_graded_and_their_log_mu_is_the_trainers(folder):
    rows = read_table(folder / "run/iteration-01/graded").to_pylist()
    assert len(rows) == 12
    for row in rows:
        assert len(row["logprobs"]) == len(row["completion_ids"]) <= 40
    # Two worked examples are enough for it to answer in their format now and then.
    assert {"wrong", "correct"} & {row["grade"] for row in rows}
    assert any("The answer is" in row["completion"] for row in rows)
    gap = read_manifest(folder / "run/iteration-01/training").details["behavior_gap"]
    assert gap["behavior_gap/token_mean"] < 1e-3
    assert gap["behavior_gap/sequence_max"] < 1e-2


def test_the_trained_model_differs_from_its_base_and_generates(folder):
    trained = folder / "run/iteration-01/model"
    (base,) = (folder / "cache/gguf").iterdir()
    before, after = (load_file(path / "model.safetensors") for path in (base, trained))
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name].float(), after[name])]
    assert len(changed) > len(before) / 2
    # One step of a rate of 1e-5: AdamW moves no weight further.
    assert max((after[n] - before[n].float()).abs().max() for n in before) < 1.1e-5
    model = AutoModelForCausalLM.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0])


def test_lineage_and_report_show_the_file_and_the_completions(folder):
    said = topr(folder, "lineage", "run").stdout
    assert "weights from model.gguf of" in said
    page = (folder / "run/report.html").read_text(encoding="utf-8")
    packed = re.search('id="report-data">([^<]+)<', page)
    assert packed is not None
    shown = zlib.decompress(base64.b64decode(packed[1])).decode("utf-8")
    rows = read_table(folder / "run/iteration-01/evaluation").to_pylist()
    firsts = [row["completion"].strip().splitlines()[0] for row in rows if row["completion"]]
    assert any(json.dumps(first)[1:-1] in shown for first in firsts if len(first) > 20)
    summary = json.loads((folder / "run/summary.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in summary["models"]] == ["base", "topr"]
