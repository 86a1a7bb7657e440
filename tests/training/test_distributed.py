"""Several processes end with the weights and the numbers of one."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from distributed_worker import CASES, LORA, MODELS, RESUMED, SHARDED, trained, trainer_of
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, set_seed

from tiny import save_tiny, tiny_model

HERE = Path(__file__).parent
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")


def launch(count, *arguments, folder=None, launcher=("torch.distributed.run",), check=True):
    """Start a script or module in several processes, as torchrun does."""
    path = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [
            sys.executable, "-m", *launcher, "--nproc_per_node", str(count), "--standalone",
            *map(str, arguments),
        ],
        env={
            **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(path),
        },
        cwd=folder, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (done.returncode == 0) == check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes trained all cases."""
    directory = tmp_path_factory.mktemp("two")
    launch(2, HERE / "distributed_worker.py", directory, "whole")
    return directory


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The folder in which two processes trained all cases with sharded weights."""
    directory = tmp_path_factory.mktemp("sharded")
    save_tiny(directory / "stored", initializer_range=0.1)
    save_tiny(directory / "stored_tied", tie_word_embeddings=True)
    launch(2, HERE / "distributed_worker.py", directory, "sharded")
    return directory


@pytest.fixture(scope="module")
def zero(tmp_path_factory):
    """The folder in which two processes trained all cases by DeepSpeed."""
    directory = tmp_path_factory.mktemp("zero")
    launch(2, HERE / "distributed_worker.py", directory, "zero")
    return directory


def distance(a, b):
    return sum((a[name] - b[name]).double().square().sum() for name in a).sqrt().item()


def initial(case):
    model = MODELS.get(case, tiny_model)()
    if case == "lora":
        set_seed(5)
        model = get_peft_model(model, LORA)
    return dict(model.named_parameters())


def assert_as_alone(directory, tmp_path, case, arguments):
    """The weights and the log of two processes are those of one."""
    alone, log = trained(tmp_path, case, **arguments)
    first, second = (load_file(directory / f"{case}-{rank}.safetensors") for rank in (0, 1))
    assert distance(first, second) == 0
    assert_close(first, alone, case)
    for rank in (0, 1):
        assert_same_log(directory / f"{case}-{rank}.json", log)


def assert_close(ours, expected, case):
    """Weights are the same but for rounding, beside the way that training moved them."""
    way = distance(expected, initial(case))
    assert way > 1e-2
    # Adam divides by the gradient's own size, so rounding counts where a gradient is near 0. In
    # the other cases rounding was 3.5e-5 at most, by the processor's instructions.
    assert distance(ours, expected) < (1e-2 if case == "adamw" else 1e-4) * way


def assert_same_log(path, log, *, without=frozenset()):
    """The log has the numbers of another, and all but some keys."""
    timing = {"tokens_per_second", "train_runtime", "train_samples_per_second",
              "train_steps_per_second", "total_flos"}  # fmt: skip
    ours = json.loads(path.read_text())
    assert len(ours) == len(log)
    for line, expected in zip(ours, log, strict=True):
        assert line.keys() == expected.keys() - without
        for key in expected.keys() - timing - without - {"weight_histogram"}:
            assert line[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-5), key
        assert line.get("weight_histogram") == expected.get("weight_histogram")


def saved(directory, case):
    """The weights of a model as it was written."""
    if case == "lora":
        model = PeftModel.from_pretrained(tiny_model(), directory)
    else:
        model = AutoModelForCausalLM.from_pretrained(directory, use_safetensors=True)
    return dict(model.named_parameters())


@pytest.mark.parametrize("case", sorted(CASES))
def test_two_processes_end_where_one_does(two, tmp_path, case):
    assert_as_alone(two, tmp_path, case, CASES[case])


@pytest.mark.parametrize("case", sorted(SHARDED))
def test_sharded_weights_end_where_whole_ones_do(sharded, tmp_path, case):
    assert_as_alone(sharded, tmp_path, case, SHARDED[case])
    expected = load_file(sharded / f"{case}-0.safetensors")
    assert distance(expected, saved(sharded / f"{case}-saved", case)) == 0


@pytest.mark.parametrize("case", ["stored", "stored_tied"])
def test_the_first_process_reads_sharded_weights_and_the_others_get_them(sharded, case):
    stored = load_file(sharded / case / "model.safetensors")
    for rank, read in ((0, 1), (1, 0)):
        assert json.loads((sharded / f"{case}-{rank}.json").read_text())["read"] == read
        begun = load_file(sharded / f"{case}-{rank}.safetensors")
        assert begun.keys() <= stored.keys()
        assert all(torch.equal(weight, stored[name]) for name, weight in begun.items())


def test_three_processes_go_on_where_two_with_sharded_weights_were_killed(sharded, tmp_path):
    launch(3, HERE / "distributed_worker.py", sharded, "resumed")
    straight = trainer_of(tmp_path, "straight", **RESUMED)
    straight.train()
    expected = dict(straight.model.named_parameters())
    way = distance(expected, dict(tiny_model().named_parameters()))
    ours = load_file(sharded / "resumed-0.safetensors")
    assert distance(ours, expected) < 1e-2 * way


def test_an_optimizer_that_cannot_be_sharded_is_refused_before_it_starts(sharded):
    assert "optim=adafactor, the default" in (sharded / "refused.txt").read_text()


@needs_deepspeed
@pytest.mark.parametrize(
    ("case", "stage"),
    [("topr", 0), ("topr", 2), ("adamw", 2), *((case, 3) for case in sorted(SHARDED))],
)
def test_deepspeed_ends_where_one_process_does(zero, tmp_path, case, stage):
    alone, log = trained(tmp_path, case, **SHARDED[case])
    assert_close(saved(zero / f"{case}-{stage}-saved", case), alone, case)
    for rank in (0, 1):
        # Without sharding DeepSpeed does not tell the gradient's norm.
        without = {"grad_norm"} if stage == 0 else set()
        assert_same_log(zero / f"{case}-{stage}-{rank}.json", log, without=without)


@needs_deepspeed
def test_log_mu_is_kept_under_the_whole_weights_name(zero, tmp_path):
    trained(tmp_path, "recompute", **SHARDED["recompute"])
    (ours,), (expected,) = (list((d / "recompute").glob("behavior-*")) for d in (zero, tmp_path))
    assert ours.name == expected.name


@needs_deepspeed
def test_deepspeed_goes_on_where_it_was_killed(zero, tmp_path):
    straight = trainer_of(tmp_path, "straight", **RESUMED)
    straight.train()
    expected = dict(straight.model.named_parameters())
    way = distance(expected, dict(tiny_model().named_parameters()))
    assert distance(saved(zero / "resumed-saved", "resumed"), expected) < 1e-2 * way


@needs_deepspeed
def test_what_deepspeed_would_train_or_save_wrongly_is_refused(zero):
    adafactor, unsaved, other = (zero / "refused.txt").read_text().splitlines()
    assert "optim=adafactor, the default" in adafactor
    assert "configuration names an optimizer" in other
    assert "without zero_optimization.stage3_gather_16bit_weights_on_model_save" in unsaved


def test_a_nan_in_one_process_stops_all(two):
    said = [(two / f"diverged-{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert "the loss is nan; the weights were not changed" in said[0]
    saved = json.loads((two / "diverged" / "diverged.json").read_text())
    assert len(saved["rows"]) == 8


def test_one_process_goes_on_where_two_were_killed(two, tmp_path):
    straight = trainer_of(tmp_path, "straight", **RESUMED)
    straight.train()
    resumed = trainer_of(two, "broken", **RESUMED)
    resumed.train(resume_from_checkpoint=True)
    assert [line["step"] for line in resumed.state.log_history] == [*range(1, 10), 9]
    ours, expected = (dict(each.model.named_parameters()) for each in (resumed, straight))
    way = distance(expected, dict(tiny_model().named_parameters()))
    assert distance(ours, expected) < 1e-2 * way
