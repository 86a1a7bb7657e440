"""`topr.integrations.trl` inside TRL's real `GRPOTrainer`, beside topr's own trainer."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from transformers import FalconConfig, FalconForCausalLM

from tiny import PAD, tiny_model, tiny_tokenizer
from topr.errors import ConfigError
from topr.integrations.trl import TOPRGRPOConfig, TOPRGRPOTrainer
from topr.training import TOPRConfig, TOPRTrainer

PROMPTS = ["The answer is", " a = 1 2"]
GROUP = 4


class Rewarder:
    """Rewards a completion by its ids, and keeps what it saw."""

    __name__ = "parity"

    def __init__(self):
        self.rows = []

    def __call__(self, prompts, completion_ids, **_):
        rewards = [1.0 if sum(ids) % 2 else -1.0 for ids in completion_ids]
        for prompt, ids, reward in zip(prompts, completion_ids, rewards, strict=True):
            row = {"prompt": prompt, "completion_ids": list(ids), "reward": reward}
            self.rows.append({**row, "prompt_ids": tiny_tokenizer()(prompt)["input_ids"]})
        return rewards


def make_online(tmp_path, model=None, rewarder=None, rollout_func=None, **arguments):
    settings = {
        "output_dir": str(tmp_path / "online"),
        "per_device_train_batch_size": 2 * GROUP,
        "num_generations": GROUP,
        "max_completion_length": 6,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "learning_rate": 2e-2,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "seed": 3,
    }
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    return TOPRGRPOTrainer(
        model if model is not None else tiny_model(),
        rewarder if rewarder is not None else Rewarder(),
        TOPRGRPOConfig(**(settings | arguments)),
        train_dataset=Dataset.from_dict({"prompt": 2 * PROMPTS}),
        processing_class=tokenizer,
        rollout_func=rollout_func,
    )


def make_offline(tmp_path, rows, model=None, **arguments):
    settings = {
        "output_dir": str(tmp_path / "offline"),
        "per_device_train_batch_size": len(rows),
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "optim": "sgd",
        "learning_rate": 2e-2,
        "max_grad_norm": 0.0,
    }
    return TOPRTrainer(
        model=model if model is not None else tiny_model(),
        args=TOPRConfig(**(settings | arguments)),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
    )


def assert_same(ours, theirs, tolerance=1e-4):
    for name, expected in theirs.items():
        size = expected.norm().item()
        assert (ours[name] - expected).norm().item() <= tolerance * max(size, 1e-3), name


def moved(model):
    """How far a trained model's weights are from the tiny model's."""
    start = dict(tiny_model().named_parameters())
    return {name: p.detach() - start[name].detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("objective", "normalization"),
    [("topr", None), ("topr", "none"), ("tis", "length"), ("grpo", None), ("asymre", None)],
)
def test_steps_on_one_batch_move_the_weights_as_our_trainer_does(
    tmp_path, objective, normalization
):
    # TRL draws 8 completions and takes 3 steps on them; our trainer takes 3 epochs over the same
    # completions, mu recomputed from the same start. From step 2 on the ratio is not 1.
    arguments = {"objective": objective, "loss_normalization": normalization, "baseline": -0.2}
    rewarder = Rewarder()
    online = make_online(tmp_path, rewarder=rewarder, num_iterations=3, max_steps=3, **arguments)
    online.train()
    assert {row["reward"] for row in rewarder.rows} == {1.0, -1.0}
    assert len(rewarder.rows) == 2 * GROUP
    offline = make_offline(
        tmp_path, rewarder.rows, behavior_logprobs="recompute", num_train_epochs=3, **arguments
    )
    offline.train()
    assert offline.state.global_step == 3
    assert_same(moved(online.model), moved(offline.model))
    ratios = [line["log_ratio/negative"] for line in online.state.log_history if "loss" in line]
    assert ratios[0] == pytest.approx(0.0, abs=1e-5)
    assert abs(ratios[2]) > 0.05  # else the ratio was not tried
    theirs = [line["log_ratio/negative"] for line in offline.state.log_history if "loss" in line]
    assert ratios == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@pytest.mark.slow
def falcon():
    config = FalconConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=32, num_attention_heads=4,
        num_hidden_layers=2, hidden_dropout=0.5, attention_dropout=0.5, initializer_range=0.2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return FalconForCausalLM(config)


@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing:FutureWarning")  # of TRL's calls
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_with_dropout_samples_and_trains_without_it(tmp_path, checkpointing):
    rewarder, model, modes = Rewarder(), falcon(), []
    for module in model.transformer.modules():
        module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    online = make_online(
        tmp_path,
        model,
        rewarder,
        num_iterations=2,
        max_steps=2,
        activation_checkpointing=checkpointing,
    )
    online.train()
    assert modes
    assert not any(modes)
    offline = make_offline(
        tmp_path, rewarder.rows, falcon(), behavior_logprobs="recompute", num_train_epochs=2
    )
    offline.train()
    ratios = [line["log_ratio/negative"] for line in online.state.log_history if "loss" in line]
    theirs = [line["log_ratio/negative"] for line in offline.state.log_history if "loss" in line]
    assert ratios == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    before = dict(falcon().named_parameters())
    steps = [
        {name: p.detach() - before[name].detach() for name, p in trainer.model.named_parameters()}
        for trainer in (online, offline)
    ]
    assert_same(*steps, tolerance=1e-3)


def test_two_processes_move_the_weights_as_our_trainer_does_on_all_completions(tmp_path):
    here = Path(__file__).parent
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_addr", "127.0.0.1", "--master_port", port]
    done = subprocess.run(
        [sys.executable, *launch, here / "online_on_two.py", tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(here.parent)])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [
        row for rank in "01" for row in json.loads((tmp_path / f"rows-{rank}.json").read_text())
    ]
    assert len(rows) == 2 * GROUP
    offline = make_offline(
        tmp_path, rows, behavior_logprobs="recompute", num_train_epochs=3, baseline=-0.2
    )
    offline.train()
    start = dict(tiny_model().named_parameters())
    for rank in "01":
        end = load_file(tmp_path / f"{rank}.safetensors")
        assert_same({n: p - start[n].detach() for n, p in end.items()}, moved(offline.model))


def made_inputs(online, rows, behavior):
    """A micro-batch as TRL makes it: prompts padded left, completions right."""

    def padded(column, side, value):
        tensors = [torch.as_tensor(row[column]) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)

    ids = padded("completion_ids", "right", PAD)
    lengths = torch.tensor([len(row["completion_ids"]) for row in rows])
    prompts = padded("prompt_ids", "left", PAD)
    widths = torch.tensor([len(row["prompt_ids"]) for row in rows])
    columns = torch.arange(prompts.size(1))
    return {
        "prompt_ids": prompts,
        "prompt_mask": (columns >= prompts.size(1) - widths[:, None]).long(),
        "completion_ids": ids,
        "completion_mask": (torch.arange(ids.size(1)) < lengths[:, None]).long(),
        "advantages": torch.tensor([row["reward"] for row in rows]) - online.args.baseline,
        "group": torch.arange(len(rows)) // GROUP,
        behavior: padded("logprobs", "right", 0.0),
    }


def drifted_rows():
    """Completions of several lengths with log mu far enough from pi for the taper to bend."""
    generator = torch.Generator().manual_seed(4)
    rows = []
    for number in range(2 * GROUP):
        length = 1 + number % 5
        drift = 1.2 * torch.rand(length, generator=generator) - 0.2
        row = {"completion_ids": torch.randint(5, 270, (length,), generator=generator).tolist()}
        row["prompt_ids"] = tiny_tokenizer()(PROMPTS[number // GROUP])["input_ids"]
        with torch.no_grad():
            ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
            table = tiny_model()(input_ids=ids).logits[0, -length - 1 : -1].log_softmax(-1)
        pi = table.gather(1, torch.tensor(row["completion_ids"])[:, None]).squeeze(1)
        row["policy"] = pi.tolist()
        row["logprobs"] = (pi + drift).clamp(max=0).tolist()
        rows.append({**row, "reward": 1.0 if number % 2 else -1.0})
    return rows


@pytest.mark.parametrize(
    ("source", "column"),
    [("recompute", "old_per_token_logps"), ("sampler", "sampling_per_token_logps")],
)
def test_the_gradient_of_a_batch_is_our_trainers(tmp_path, source, column):
    rows = drifted_rows()
    online = make_online(tmp_path, baseline=0.1)
    online.args.behavior_logprobs = source
    online.current_gradient_accumulation_steps = 1
    online.model.train()
    loss = online._compute_loss(online.model, made_inputs(online, rows, column))
    loss.backward()
    for row in rows:
        row["prompt"] = ""
    offline = make_offline(tmp_path, rows, baseline=0.1)
    offline.prepare_behavior()
    batch = [offline.rows[i] for i in range(len(rows))]
    theirs = offline.training_step(offline.model, {"rows": batch})
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-4)
    assert_same(
        {name: p.grad for name, p in online.model.named_parameters()},
        {name: p.grad for name, p in offline.model.named_parameters()},
    )
    weight = online._metrics["train"]["weight/negative"][-1]
    assert 0.05 < weight < 0.95  # the taper bends on these rows
    assert weight == pytest.approx(offline._statistics.summary()["weight/negative"], rel=1e-4)


def test_a_token_without_a_recorded_probability_counts_as_unchanged(tmp_path):
    rows = drifted_rows()
    online = make_online(tmp_path)
    inputs = made_inputs(online, rows, "sampling_per_token_logps")
    online.args.behavior_logprobs = "sampler"
    mask = inputs["completion_mask"].bool()
    logprobs = torch.full(mask.shape, -1.0)
    inputs["sampling_per_token_logps"][2, 1] = math.nan
    log_ratio = online._log_ratio(logprobs, mask, inputs)
    assert log_ratio[2, 1] == 0
    assert log_ratio[2, 0].item() == pytest.approx(-1.0 - rows[2]["logprobs"][0])
    assert (log_ratio[~mask] == 0).all()


def test_accumulation_and_generation_in_parts_run(tmp_path):
    # 16 completions are drawn at once and used by 2 steps of 2 micro-batches of 4.
    rewarder = Rewarder()
    online = make_online(
        tmp_path,
        rewarder=rewarder,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        max_steps=4,
    )
    online.train()
    assert len(rewarder.rows) == 2 * 16
    lines = [line for line in online.state.log_history if "loss" in line]
    assert abs(lines[0]["log_ratio/negative"]) < 1e-5 < abs(lines[1]["log_ratio/negative"])
    assert abs(lines[2]["log_ratio/negative"]) < 1e-5  # drawn anew


def test_an_external_sampler_gives_its_own_probabilities(tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func may change, TRL says
    rows = drifted_rows()

    def rollout(_prompts, _trainer):
        names = ("prompt_ids", "completion_ids", "logprobs")
        return {name: [row[name] for row in rows] for name in names}

    rewarder = Rewarder()
    online = make_online(
        tmp_path,
        rewarder=rewarder,
        rollout_func=rollout,
        behavior_logprobs="sampler",
        max_steps=1,
    )
    online.train()
    negatives = [
        sum(row["policy"]) - sum(row["logprobs"])
        for row, seen in zip(rows, rewarder.rows, strict=True)
        if seen["reward"] < 0
    ]
    expected = sum(negatives) / len(negatives)
    assert abs(expected) > 0.1
    assert online.state.log_history[0]["log_ratio/negative"] == pytest.approx(expected, rel=1e-4)


def test_advantages_are_rewards_minus_the_baseline_and_logged(tmp_path):
    rewarder = Rewarder()
    online = make_online(tmp_path, rewarder=rewarder, baseline=0.25, max_steps=1)
    online.model.train()
    batch = online._generate_and_score_completions([{"prompt": p} for p in PROMPTS for _ in "abcd"])
    expected = [row["reward"] - 0.25 for row in rewarder.rows]
    assert batch["advantages"].tolist() == expected
    assert list(online._logs["advantages"]) == expected
    assert batch["group"].tolist() == [0] * GROUP + [1] * GROUP


def test_an_unscored_completion_does_not_train(tmp_path):
    def some(prompts, **_):
        return [None if k % 2 else 1.0 for k in range(len(prompts))]

    online = make_online(tmp_path, rewarder=some, baseline=0.5)
    online.model.train()
    batch = online._generate_and_score_completions([{"prompt": p} for p in PROMPTS for _ in "abcd"])
    assert batch["advantages"].tolist() == [0.5, 0.0] * GROUP


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.1}, "beta=0.1 has no effect"),
        ({"top_entropy_quantile": 0.2}, "no effect"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "not normalised"),
        ({"behavior_logprobs": "sampler"}, "transformers records none"),
        ({"behavior_logprobs": "sampler", "use_vllm": True, "top_k": 5}, "changed distribution"),
        (
            {
                "behavior_logprobs": "sampler",
                "use_vllm": True,
                "generation_kwargs": {"presence_penalty": 0.5},
            },
            "with presence_penalty=0.5: .* changed distribution",
        ),
        ({"generation_kwargs": {"do_sample": False}}, "samples nothing"),
        ({"behavior_logprobs": "sampled"}, "behavior_logprobs.*'sampler' or 'recompute'"),
        ({"loss_normalization": "lenght"}, "loss_normalization"),
        ({"loss_normalization": "constant", "normalization_constant": -2.0}, "greater than 0"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0: noise"),
        ({"label_smoothing_factor": 0.1}, "no labels to smooth"),
        ({"objective": "dpo", "gradient_accumulation_steps": 2}, "in one micro-batch"),
        ({"baseline": True}, "baseline=True: expected a number"),
        ({"baseline": "half"}, "baseline.*half"),
        ({"objective": "dpo", "objective_args": "{bad"}, "objective_args.*{bad"),
        ({"objective": "tiss"}, "Did you mean 'tis'"),
        ({"objective": "topr", "objective_args": {"beta": 1}}, "has no beta"),
    ],
)
def test_what_would_do_nothing_or_harm_is_refused(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_online(tmp_path, **arguments)


def test_numbers_as_text_are_numbers_in_the_loss(tmp_path, caplog):
    given = {"loss_normalization": "constant", "normalization_constant": "2"}
    args = make_online(tmp_path, baseline="0.5", **given).args
    assert (args.baseline, args.normalization_constant) == (0.5, 2.0)
    assert make_online(tmp_path, baseline=None).args.baseline == 0.0


def test_what_a_baseline_is_to_an_objective_is_said(tmp_path, caplog):
    whole = {"steps_per_generation": 1, "baseline": -1.0}
    make_online(tmp_path, objective="dpo", **whole)
    assert "at least this reward count as right" in caplog.text
    make_online(tmp_path, objective="grpo", **whole)
    assert "it does nothing" in caplog.text


def test_arguments_of_the_objective_come_as_text_from_a_command_line(tmp_path):
    online = make_online(
        tmp_path, objective="taper", objective_args='{"negative": [0.0, 0.5], "level": "token"}'
    )
    assert online.objective.negative == (0.0, 0.5)
    assert online.objective.level == "token"
