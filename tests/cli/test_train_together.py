"""`topr train` under a launcher of processes, and what the other commands say there."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from command_line import read_jsonl, topr, write_jsonl
from tiny import save_tiny
from topr.store import locked, read_manifest

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = (
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
)  # fmt: skip
SHARDED = (
    "train.optim=adamw_torch",
    "train.training_arguments={fsdp: true, fsdp_config: {version: 2}}",
)
ACCELERATE_FSDP = (
    "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2",
    "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", *ACCELERATE[2:],
)  # fmt: skip
SETTINGS = (
    "train", "rows.jsonl", "-m", "model", "train.global_batch_size=4", "train.learning_rate=1e-3",
    "train.behavior_logprobs=recompute", "train.save_steps=1", "train.snapshots=[2]",
)  # fmt: skip
PROBED = (*SETTINGS, "--probe", "probe.yaml", "train.watch=stop", "train.watch_steps=1")
RECIPE = """
task: {name: jsonl, train_file: asked.jsonl, validation_problems: 3, test_problems: 1}
generate: {max_tokens: 4}
grade: {workers: 1}
"""


def launched(folder, launcher, *arguments):
    return subprocess.run(
        [sys.executable, *(("-m", *launcher) if launcher else ()), "-m", "topr", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=folder, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, rows, and what one process made of them in `one`."""
    folder = tmp_path_factory.mktemp("together")
    save_tiny(folder / "model", initializer_range=0.1)
    rows = [
        {"prompt": f"{a} + {b} =", "completion": f" {a + b + wrong}", "reward": 1 - 2 * wrong}
        for a in range(3) for b in range(2) for wrong in (0, 1)
    ]  # fmt: skip
    write_jsonl(folder / "rows.jsonl", rows)
    asked = [{"prompt": f"{a} + 7 =", "answer": str(a + 7)} for a in range(6)]
    write_jsonl(folder / "asked.jsonl", asked)
    (folder / "probe.yaml").write_text(RECIPE)
    topr(folder, *PROBED, "-o", "one")
    return folder


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "launcher",
    [TORCHRUN, pytest.param(ACCELERATE, marks=pytest.mark.slow)],
    ids=["torchrun", "accelerate"],
)
def test_two_processes_leave_what_one_leaves(folder, tmp_path, launcher):
    done = launched(folder, launcher, *PROBED, "-o", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 3 steps") == 1  # one process speaks
    assert done.stdout.count("probe at step 0: ") == 1
    probes = [read_jsonl(f / "training/probes.jsonl") for f in (tmp_path / "two", folder / "one")]
    assert [p["step"] for p in probes[0]] == [p["step"] for p in probes[1]] == [0, 1, 2, 3]
    assert [p["probe/ended"] for p in probes[0]] == [p["probe/ended"] for p in probes[1]]
    assert files(tmp_path / "two") == files(folder / "one")
    ours, theirs = (read_manifest(f / "training") for f in (tmp_path / "two", folder / "one"))
    assert ours.fingerprint == theirs.fingerprint
    for name in ("model", "snapshots/step-000002"):
        before = load_file(folder / "model/model.safetensors")
        a, b = (
            load_file(f / name / "model.safetensors") for f in (tmp_path / "two", folder / "one")
        )
        way = sum((b[k] - before[k]).square().sum() for k in b).sqrt()
        assert way > 1e-3
        assert sum((a[k] - b[k]).square().sum() for k in b).sqrt() < 1e-4 * way
    logs = [
        [json.loads(line) for line in (f / "training/log.jsonl").read_text().splitlines()]
        for f in (tmp_path / "two", folder / "one")
    ]
    for a, b in zip(*logs, strict=True):
        assert a["log_ratio/negative"] == pytest.approx(b["log_ratio/negative"], abs=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    again = launched(folder, launcher, *PROBED, "-o", str(tmp_path / "two"))
    assert again.returncode == 0, again.stderr  # it is done: nothing is trained, nothing waits


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [(TORCHRUN, SHARDED), pytest.param(ACCELERATE_FSDP, SHARDED[:1], marks=pytest.mark.slow)],
    ids=["torchrun", "accelerate"],
)
def test_sharded_weights_are_saved_whole_and_are_those_of_one(folder, tmp_path, launcher, settings):
    if not (folder / "adamw").exists():
        topr(folder, *SETTINGS, *SHARDED[:1], "-o", "adamw")
    probe = ("--probe", "probe.yaml")
    done = launched(folder, launcher, *SETTINGS, *settings, *probe, "-o", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "two") == files(folder / "adamw")  # no probe of pieces
    for name in ("model", "snapshots/step-000002"):
        before, a, b = (
            load_file(f / "model.safetensors")
            for f in (folder / "model", tmp_path / "two" / name, folder / "adamw" / name)
        )
        way = sum((b[k] - before[k]).square().sum() for k in b).sqrt()
        assert way > 1e-2
        assert sum((a[k] - b[k]).square().sum() for k in b).sqrt() < 1e-2 * way


def test_a_run_is_refused_there_and_told_what_to_do(folder):
    done = launched(folder, TORCHRUN, "run", "quickstart", "-o", "never")
    assert done.returncode != 0
    assert "topr run was started as one of 2 processes" in done.stderr
    assert "torchrun --nproc_per_node 2 -m topr train" in done.stderr
    assert not (folder / "never").exists()


def test_an_error_of_the_first_process_ends_the_others(folder):
    (folder / "taken/training").mkdir(parents=True)
    (folder / "taken/training/manifest.json").write_text("{}")
    done = launched(folder, TORCHRUN, *SETTINGS, "-o", "taken")
    assert done.returncode != 0
    assert "manifest.json is not a manifest" in done.stderr


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["alone", "torchrun"])
def test_a_training_that_goes_on_elsewhere_is_left_alone(folder, tmp_path, launcher):
    """As after a kill of torchrun, which leaves its workers training."""
    work = tmp_path / "out/training"
    (work / "checkpoint-1").mkdir(parents=True)  # not complete: it is being written
    with locked(work):
        done = launched(folder, launcher, *SETTINGS, "-o", str(tmp_path / "out"))
    assert done.returncode != 0
    assert f"another process is running in {work} (process {os.getpid()} on " in done.stderr
    assert (work / "checkpoint-1").is_dir()
