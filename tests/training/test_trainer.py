"""The trainer: its gradient against plain computations, invariances, resuming, and refusals."""

import itertools
import json
import logging
import os
from pathlib import Path
from shutil import which

import pytest
import torch
from peft import LoraConfig
from torch._dynamo.utils import counters
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from rollouts_for_training import made_rows, plain_logprobs
from tiny import EOS, TURN_END, checkpoint_activations, save_tiny, tiny_model, tiny_tokenizer
from topr.errors import ConfigError, DataError, DivergedError, ModelError, TrainingError
from topr.objectives import make_objective
from topr.stages.train_arguments import CHECKPOINTING
from topr.training import TOPRConfig, TOPRTrainer
from topr.training.data import prepare_rows
from topr.training.step import BackwardSkipping


def make_trainer(tmp_path, rows, model=None, *, name="out", **arguments):
    peft_config = arguments.pop("peft_config", None)
    settings = {
        "output_dir": str(tmp_path / name),
        "per_device_train_batch_size": 16,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "optim": "sgd",
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,
        "seed": 5,
    }
    return TOPRTrainer(
        model=model if model is not None else tiny_model(),
        args=TOPRConfig(**(settings | arguments)),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


def gradients(trainer, indices=None):
    """The gradient of one step over the given rows."""
    if "behavior_logprobs" not in trainer.rows.column_names:
        trainer.prepare_behavior()
    indices = indices if indices is not None else range(len(trainer.rows))
    trainer.model.zero_grad()
    trainer.training_step(trainer.model, {"rows": [trainer.rows[i] for i in indices]})
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters()}


def plain_gradients(model, rows, objective, *, by_length, baseline=0.0, shift=0.0):
    """Autograd of the paper's formula, sequence by sequence, without any padding."""
    model.zero_grad()
    logprobs = [plain_logprobs(model, row) for row in rows]
    loss = torch.zeros((), dtype=torch.float64)
    for row, logprob in zip(rows, logprobs, strict=True):
        rho = (logprob.detach() - torch.tensor(row["logprobs"])).sum().exp()
        advantage = row["reward"] - baseline
        low, high = objective.positive if advantage >= 0 else objective.negative
        scale = 1 / len(logprob) if by_length else 1.0
        loss = loss - advantage * rho.clamp(low, high) * scale * logprob.sum() / len(rows)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(ours, theirs, tolerance=2e-5):
    for name, expected in theirs.items():
        size = expected.norm().item()
        assert (ours[name] - expected).norm().item() <= tolerance * max(size, 1e-3), name


def drifted(share=0.05):
    """Rows whose behaviour model is another one, so that the ratios are far from 1."""
    rows = made_rows(model=tiny_model(seed=1))
    for row in rows:  # bring the ratios to where the taper bends
        ours = plain_logprobs(tiny_model(), row).detach()
        theirs = torch.tensor(row["logprobs"])
        row["logprobs"] = (ours + share * (theirs - ours)).clamp(max=0).tolist()
    return rows


@pytest.fixture
def drifted_rows():
    return drifted()


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("normalization", ["length", "none"])
def test_the_gradient_is_the_papers(tmp_path, drifted_rows, architecture, normalization):
    trainer = make_trainer(
        tmp_path,
        drifted_rows,
        tiny_model(architecture),
        loss_normalization=normalization,
        baseline=-0.3,
    )
    expected = plain_gradients(
        tiny_model(architecture),
        drifted_rows,
        make_objective("topr"),
        by_length=normalization == "length",
        baseline=-0.3,
    )
    assert_same(gradients(trainer), expected)


def test_a_model_whose_rows_change_each_other_has_the_gradient_of_single_sequences(
    tmp_path, drifted_rows
):
    def neighbours():
        model = tiny_model()
        model.get_input_embeddings().register_forward_hook(
            lambda _, __, found: found + 0.05 * (found.shape[0] - 1)
        )
        return model

    trainer = make_trainer(tmp_path, drifted_rows, neighbours(), layout="padded")
    assert trainer.forward.alone
    expected = plain_gradients(neighbours(), drifted_rows, make_objective("topr"), by_length=True)
    assert_same(gradients(trainer), expected)


def test_the_taper_bends_on_these_rows(tmp_path, drifted_rows):
    # Guards the test above: some negatives must be inside (0, 1), else it would say little.
    trainer = make_trainer(tmp_path, drifted_rows)
    gradients(trainer)
    counts = trainer._statistics.histogram()["negative"]
    assert sum(counts[1:19]) >= 2


def test_positives_only_is_the_models_own_cross_entropy(tmp_path):
    rows = [row for row in made_rows() if row["reward"] > 0]
    ours = gradients(make_trainer(tmp_path, rows))
    model = tiny_model()
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        labels = ids.clone()
        labels[0, : len(row["prompt_ids"])] = -100
        (model(input_ids=ids, labels=labels).loss / len(rows)).backward()
    assert_same(ours, {name: p.grad for name, p in model.named_parameters()})


@pytest.mark.parametrize("objective", ["topr", "grpo", "dpo", "asymre"])
def test_micro_batches_and_order_do_not_change_the_gradient(tmp_path, drifted_rows, objective):
    whole = gradients(make_trainer(tmp_path, drifted_rows, objective=objective))
    for tokens, layout in itertools.product((1, 60, 150), ("shared", "padded")):
        trainer = make_trainer(
            tmp_path, drifted_rows, objective=objective, micro_batch_tokens=tokens, layout=layout
        )
        assert_same(gradients(trainer, list(reversed(range(16)))), whole)


def test_accumulation_is_the_same_as_one_batch(tmp_path, drifted_rows):
    def trained(**arguments):
        trainer = make_trainer(
            tmp_path, drifted_rows, num_train_epochs=3, learning_rate=1e-3, **arguments
        )
        trainer.train()
        return trainer

    whole = trained(per_device_train_batch_size=8)
    parts = trained(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    named = trained(
        global_batch_size=8, per_device_train_batch_size=64, gradient_accumulation_steps=4
    )
    assert_same(dict(named.model.named_parameters()), dict(parts.model.named_parameters()), 0.0)
    assert whole.state.global_step == parts.state.global_step == 6
    assert_same(dict(parts.model.named_parameters()), dict(whole.model.named_parameters()))
    for a, b in zip(whole.state.log_history, parts.state.log_history, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
            assert a["weight/negative"] == pytest.approx(b["weight/negative"], rel=1e-4)


@pytest.mark.parametrize("source", ["sampler", "recompute"])
def test_log_rho_is_0_on_the_first_batch_of_an_unchanged_model(tmp_path, source):
    trainer = make_trainer(tmp_path, made_rows(), behavior_logprobs=source, learning_rate=0.1)
    trainer.train()
    first = trainer.state.log_history[0]
    assert abs(first["log_ratio/positive"]) < 1e-4
    assert abs(first["log_ratio/negative"]) < 1e-4
    assert first["weight/negative"] == pytest.approx(1.0, abs=1e-4)
    assert first["behavior_gap/sequence_max"] < 1e-3


def test_recomputed_logprobs_are_cached(tmp_path, monkeypatch):
    rows = made_rows(logprobs=False)
    first = make_trainer(tmp_path, rows, behavior_logprobs="recompute")
    first.prepare_behavior()
    monkeypatch.setattr("topr.training.behavior.recompute", None)  # a call would fail
    second = make_trainer(tmp_path, rows, behavior_logprobs="recompute")
    second.prepare_behavior()
    assert second.rows["behavior_logprobs"] == first.rows["behavior_logprobs"]
    other = make_trainer(tmp_path, rows, tiny_model(seed=2), behavior_logprobs="recompute")
    with pytest.raises(TypeError):  # another model: the cache must not be used
        other.prepare_behavior()


def test_positives_rise_and_negatives_fall(tmp_path):
    trainer = make_trainer(
        tmp_path,
        made_rows(),
        num_train_epochs=20,
        learning_rate=0.05,
        behavior_logprobs="recompute",
    )
    trainer.train()
    last = [line for line in trainer.state.log_history if "loss" in line][-1]
    assert last["log_ratio/positive"] > 1.0
    assert last["log_ratio/negative"] < -1.0
    assert last["weight/positive"] == 1.0
    assert last["weight/negative"] < 0.5
    assert last["effective_positive_share"] == 0.5
    assert sum(last["weight_histogram"]["negative"]) == 8


class _Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [3, 5, 8])
def test_a_resumed_training_ends_with_the_weights_of_a_straight_one(tmp_path, stop):
    arguments = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 2,
        "behavior_logprobs": "recompute",
    }
    straight = make_trainer(tmp_path, made_rows(), name="straight", **arguments)
    straight.train()
    broken = make_trainer(tmp_path, made_rows(), name="broken", **arguments)
    broken.add_callback(_Kill(stop))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = make_trainer(tmp_path, made_rows(), name="broken", **arguments)
    resumed.train(resume_from_checkpoint=True)
    for (name, a), (_, b) in zip(
        straight.model.named_parameters(), resumed.model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    losses = [
        [line["loss"] for line in trainer.state.log_history if "loss" in line]
        for trainer in (straight, resumed)
    ]
    assert losses[0] == losses[1]


def test_a_checkpoint_with_other_batches_is_not_gone_on_from(tmp_path):
    """Those of a topr that dealt whole prompts in another way say nothing of their batches."""
    arguments = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 2}
    arguments |= {"per_device_train_batch_size": 4, "shuffle_by": "prompt"}
    make_trainer(tmp_path, made_rows(), name="run", **arguments).train()
    last = Path(get_last_checkpoint(str(tmp_path / "run")))
    other = make_trainer(
        tmp_path, made_rows(), name="run", **arguments | {"shuffle_by": "completion"}
    )
    with pytest.raises(TrainingError, match=f"{last}.*other order"):
        other.train(resume_from_checkpoint=True)
    (last / "batches.json").unlink()
    again = make_trainer(tmp_path, made_rows(), name="run", **arguments)
    for resume in (True, str(last)):
        with pytest.raises(TrainingError, match=f"{last}.*begin this training anew"):
            again.train(resume_from_checkpoint=resume)
    assert again.rows.column_names == other.rows.column_names  # refused before log mu was looked at
    other.train(resume_from_checkpoint=True)


def test_a_diverged_step_stops_the_run_and_names_its_rows(tmp_path):
    model = tiny_model()
    trainer = make_trainer(tmp_path, made_rows(), model, per_device_train_batch_size=4)
    trainer.prepare_behavior()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(DivergedError, match=r"the loss is nan.*4 completions"):
        trainer.train()
    saved = json.loads((tmp_path / "out/diverged.json").read_text())
    assert len(saved["rows"]) == 4
    assert saved["rows"][0]["name"].startswith("p")


def test_an_infinite_gradient_stops_before_the_weights_change(tmp_path):
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = make_trainer(tmp_path, made_rows(), model, max_grad_norm=1.0)
    model.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(DivergedError, match="gradient's norm is"):
        trainer.train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_settings_that_do_nothing_say_so(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="topr.training")
    make_trainer(tmp_path, made_rows(), learning_rate=1e-7).train()
    assert "the taper was never active" not in caplog.text  # a single step per epoch: no ratio yet
    caplog.clear()
    rows = made_rows()
    make_trainer(
        tmp_path, rows, learning_rate=1e-6, per_device_train_batch_size=4, num_train_epochs=2
    ).train()
    assert caplog.text.count("the taper was never active in this epoch") == 1
    caplog.clear()
    make_trainer(
        tmp_path,
        rows,
        learning_rate=1e-30,
        per_device_train_batch_size=4,
        behavior_logprobs="recompute",
        micro_batch_tokens=1,
    ).train()
    assert "the ratio pi/mu was 1" in caplog.text
    assert "the taper was never active" not in caplog.text
    caplog.clear()
    make_trainer(tmp_path, [row for row in rows if row["reward"] > 0])
    assert "none of the 8 completions has a negative advantage (8 positive, 0 zero)" in caplog.text
    caplog.clear()
    make_trainer(tmp_path, [row for row in rows if row["reward"] < 0])
    assert "none of the 8 completions has a positive advantage" in caplog.text
    caplog.clear()
    make_trainer(tmp_path, rows, baseline=-1.0)
    assert "none of the 16 completions has a negative advantage (8 positive, 8 zero)" in caplog.text


def test_a_baseline_that_leaves_no_gradient_is_refused_and_data_that_leave_none_are_named(
    tmp_path, caplog
):
    rows = made_rows()
    with pytest.raises(ConfigError, match=r"none of the 16 .* under dpo with baseline -1 .*Set"):
        make_trainer(tmp_path, rows, objective="dpo", baseline=-1.0)
    halves = from_function(rows)
    with pytest.raises(ConfigError, match=r"dpo with baseline 0 .*Set baseline=0\.5"):
        make_trainer(tmp_path, halves, objective="dpo")
    make_trainer(tmp_path, halves, objective="dpo", baseline=0.5)
    assert "does nothing with objective" not in caplog.text
    for c in (1.0, -1.5):
        with pytest.raises(ConfigError, match=rf"baseline={c:g} with rewards of \+1 and -1"):
            make_trainer(tmp_path, rows, baseline=c)
    caplog.clear()
    caplog.set_level(logging.WARNING, logger="topr.training")
    right = [row for row in rows if row["reward"] > 0]
    make_trainer(tmp_path, right, objective="dpo")  # No pair: another base may have made some.
    assert "no gradient will flow" in caplog.text


def test_what_a_baseline_is_to_an_objective_is_said_and_no_share_is_logged_that_does_not_hold(
    tmp_path, caplog
):
    caplog.set_level(logging.WARNING, logger="topr.training")
    rows = made_rows()
    for objective, acts, share in (
        ("topr", True, True), ("ppo", True, True), ("apo", True, True), ("sft", True, False),
        ("grpo", False, False), ("asymre", False, False), ("dpo", False, False),
    ):  # fmt: skip
        caplog.clear()
        trainer = make_trainer(tmp_path, rows, objective=objective, baseline=-0.3)
        assert ("baseline=-0.3 does nothing" in caplog.text) == (not acts), objective
        plain = gradients(make_trainer(tmp_path, rows, objective=objective))
        changed = gradients(trainer)
        same = all(torch.allclose(changed[n], plain[n], atol=1e-7) for n in plain)
        assert same == (not acts), objective
        trainer.train()
        logged = trainer.state.log_history[0]
        assert ("effective_positive_share" in logged) == share, objective
    # Rewards of 1 and 0 need no baseline where each prompt's mean is one.
    caplog.clear()
    halves = from_function(rows)
    make_trainer(tmp_path, halves, objective="grpo")
    assert caplog.text == ""


def test_greedy_rows_are_trained_on_only_where_no_ratio_is_formed(tmp_path):
    rows = [row | {"sampling": {"temperature": 0.0}} for row in made_rows(logprobs=False)]
    with pytest.raises(DataError, match="16 were sampled at temperature 0"):
        make_trainer(tmp_path, rows, behavior_logprobs="recompute")
    trainer = make_trainer(tmp_path, rows, objective="sft", behavior_logprobs="recompute")
    assert (trainer.composition.rows, trainer.composition.greedy) == (16, 0)
    drawn = [row | {"sampling": {"temperature": 1.0}} for row in rows]
    plain = make_trainer(tmp_path, drawn, objective="sft", behavior_logprobs="recompute")
    assert_same(gradients(trainer), gradients(plain))


def test_negatives_are_not_all_dropped_by_a_number_above_their_taper(tmp_path):
    limits = {"objective": "taper", "objective_args": {"negative": (0.0, 0.4)}}
    with pytest.raises(ConfigError, match=r"would drop every negative: no taper exceeds 0\.4"):
        make_trainer(tmp_path, made_rows(), skip_negatives=0.5, **limits)
    make_trainer(tmp_path, made_rows(), skip_negatives=0.3, **limits)


def from_function(rows):
    """Rewards of 1 and 0 that a user's function gave, as topr records them."""
    return [
        row | {"reward": max(row["reward"], 0.0), "grade": "correct", "answer": None}
        for row in rows
    ]


VERDICTS = [(1, 0), (True, False), ("correct", "wrong"), ("True", "False"), ("1", "0.0")]


@pytest.mark.parametrize(("right", "wrong"), VERDICTS)
def test_a_column_of_verdicts_is_1_and_minus_1_as_in_an_import(tmp_path, caplog, right, wrong):
    signed = made_rows()
    rows = [row | {"reward": right if row["reward"] > 0 else wrong} for row in signed]
    caplog.set_level(logging.WARNING, logger="topr.training")
    trainer = make_trainer(tmp_path, rows)
    assert trainer.rows["reward"] == [row["reward"] for row in signed]
    assert "8 rows get the reward -1" in caplog.text
    with pytest.raises(ConfigError, match=r"baseline=0\.5 lies between .* leave baseline out"):
        make_trainer(tmp_path, rows, baseline=0.5)
    make_trainer(tmp_path, rows, baseline=-0.3)
    # Another number in the column: then they are rewards.
    mixed = [*rows, signed[0] | {"reward": 0.5}]
    assert make_trainer(tmp_path, mixed).rows["reward"][:2] == [1.0, 0.0]


def test_rewards_of_1_and_0_are_said_to_have_no_negatives(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="topr.training")
    rows = from_function(made_rows())
    trainer = make_trainer(tmp_path, rows)
    assert "rewards of 1 and 0 need baseline 0.5" in caplog.text
    assert trainer.effective_positive_share is None  # defined for +1 and -1 alone
    caplog.clear()
    halves = gradients(make_trainer(tmp_path, rows, baseline=0.5))
    assert caplog.text == ""
    signed = gradients(make_trainer(tmp_path, made_rows()))
    assert_same(halves, {name: gradient / 2 for name, gradient in signed.items()})
    with pytest.raises(ConfigError, match="needs rewards of"):
        make_trainer(tmp_path, rows, effective_positive_share=0.2)


def test_log_rho_is_0_under_autocast_too(tmp_path):
    # mu must come from the numerics of the training steps, not from a float32 pass.
    trainer = make_trainer(tmp_path, made_rows(), behavior_logprobs="recompute", bf16=True)
    trainer.train()
    first = trainer.state.log_history[0]
    assert abs(first["log_ratio/positive"]) < 1e-4
    assert abs(first["log_ratio/negative"]) < 1e-4
    assert first["behavior_gap/sequence_max"] > 1e-3  # against the recorded float32


def test_gradient_checkpointing_does_not_change_the_gradient(tmp_path, drifted_rows):
    plain = gradients(make_trainer(tmp_path, drifted_rows))
    trainer = make_trainer(tmp_path, drifted_rows, micro_batch_tokens=100)
    checkpoint_activations(trainer.model)
    assert_same(gradients(trainer), plain)


def test_weights_too_coarse_for_small_rates_are_named(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="topr.training")
    make_trainer(tmp_path, made_rows(), tiny_model().to(torch.bfloat16))
    assert "an update below 0.4 % of a weight is rounded away" in caplog.text
    with pytest.raises(TrainingError, match="float16"):
        make_trainer(tmp_path, made_rows(), tiny_model().to(torch.float16))


def test_the_share_of_the_gradient_knows_the_normalisation(tmp_path):
    # A positive of 20 tokens and a negative of 2, on policy, not divided by length: 20/22.
    def row(length, reward):
        return {
            "prompt_ids": [5, 6],
            "completion_ids": list(range(10, 10 + length)),
            "reward": reward,
        }

    rows = [row(20, 1.0), row(2, -1.0)]
    shares = {"none": 20 / 22, "length": 0.5}
    for normalization, expected in shares.items():
        trainer = make_trainer(
            tmp_path, rows, loss_normalization=normalization, behavior_logprobs="recompute"
        )
        gradients(trainer)
        share = trainer._statistics.summary()["gradient_share/positive"]
        assert share == pytest.approx(expected, rel=1e-5)


def test_an_id_of_a_padded_embedding_is_trained_on(tmp_path):
    beyond = len(tiny_tokenizer())
    row = {"prompt_ids": [5, 6], "completion_ids": [beyond], "reward": 1.0}
    model = tiny_model(vocab_size=beyond + 8)
    make_trainer(tmp_path, [row], model, behavior_logprobs="recompute", max_steps=1).train()


def test_a_sampler_that_disagrees_is_reported(tmp_path, caplog):
    rows = made_rows(model=tiny_model(seed=1))
    caplog.set_level(logging.WARNING, logger="topr.training")
    trainer = make_trainer(tmp_path, rows)
    trainer.prepare_behavior()
    assert "set behavior_logprobs=recompute" in caplog.text
    first = plain_logprobs(tiny_model(), rows[0]).sum() - sum(rows[0]["logprobs"])
    assert trainer.behavior_gap.sequence_max >= abs(first.item()) - 1e-3


def test_an_answer_to_messages_ends_as_a_turn_does_and_text_as_a_text():
    tokenizer = tiny_tokenizer(chat_template=True)
    assert TURN_END != EOS
    turn = [{"role": "user", "content": "2 + 2 ?"}]
    rows, _ = prepare_rows(
        [
            {"prompt": turn, "completion": "4", "reward": 1},
            {"prompt": "2 + 2 ?", "completion": "4", "reward": 1},
            {"prompt": turn, "completion": "4", "reward": 1, "finish_reason": "length"},
        ],
        tokenizer,
    )
    text = tokenizer("4", add_special_tokens=False)["input_ids"]
    assert rows["completion_ids"] == [[*text, TURN_END], [*text, EOS], text]


def test_rows_are_checked_before_any_step(tmp_path):
    rows = made_rows()
    cases = [
        ([{k: v for k, v in rows[0].items() if k != "reward"}], "row 0 has no column 'reward'"),
        (
            [rows[0] | {"reward": float("nan")}],
            "row 0: column reward .* holds nan, expected a finite number",
        ),
        ([rows[0] | {"logprobs": [0.0]}], r"logprobs .*holds \[0\.0\], expected \d+ numbers"),
        ([rows[0] | {"logprobs": [0.5] * len(rows[0]["logprobs"])}], "at most 0"),
        ([rows[0] | {"completion_ids": [9999], "logprobs": None}], "another model's tokenizer"),
        ([rows[0] | {"reward": None}], "no rows to train on: 1 have no reward"),
        ([{"prompt": [3], "completion": "a", "reward": 1}], r"holds \[3\], expected text"),
        ([{"prompt": "a", "completion": None, "reward": 1}], "row 0: column completion .* None"),
        (
            [{"prompt": [{"content": "a"}], "completion": "b", "reward": 1}],
            "the keys role and content",
        ),
        ([{"prompt": ["a"], "completion": "b", "reward": 1}], "the keys role and content"),
    ]
    for bad, message in cases:
        with pytest.raises(DataError, match=message):
            make_trainer(tmp_path, bad)
    endless = tiny_tokenizer()
    endless.eos_token = None
    with pytest.raises(ModelError, match="the tokenizer has no eos_token"):
        prepare_rows([{"prompt": "a", "completion": "b", "reward": 1}], endless)
    with pytest.raises(DataError, match="16 of 16 rows have no logprobs"):
        make_trainer(tmp_path, made_rows(logprobs=False)).train()
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 500}
    with pytest.raises(DataError, match="sampled with top-k"):
        make_trainer(tmp_path, [row | {"sampling": sampling} for row in rows]).train()
    with pytest.raises(ConfigError, match="set one"):
        make_trainer(tmp_path, rows, baseline=0.1, effective_positive_share=0.1)


def test_rows_without_a_reward_or_too_long_are_left_out_and_counted(tmp_path):
    rows = made_rows()
    rows[0]["reward"] = None
    longest = max(len(row["prompt_ids"] + row["completion_ids"]) for row in rows[1:])
    composition = make_trainer(tmp_path, rows, max_length=longest - 1).composition
    assert composition.unscored == 1
    assert composition.too_long >= 1
    assert composition.rows == 16 - 1 - composition.too_long


def test_completions_that_were_cut_off_are_left_out_where_asked(tmp_path):
    rows = made_rows()
    for number, row in enumerate(rows):
        row["finish_reason"] = "length" if number in (1, 2) else "stop"
    assert make_trainer(tmp_path, rows).composition.truncated == 0
    trainer = make_trainer(tmp_path, rows, mask_truncated=True)
    assert (trainer.composition.truncated, trainer.composition.rows) == (2, 14)
    assert set(trainer.rows["row"]) == set(range(16)) - {1, 2}
    del rows[3]["finish_reason"]
    with pytest.raises(DataError, match="row 3 has no column 'finish_reason'"):
        make_trainer(tmp_path, rows, mask_truncated=True)


def test_text_alone_is_tokenised_with_an_end(tmp_path):
    rows = [
        {"prompt": "The answer", "completion": " is 12", "reward": 1},
        {"prompt": "The answer", "completion": " is 12", "reward": -1, "finish_reason": "length"},
    ]
    trainer = make_trainer(tmp_path, rows, behavior_logprobs="recompute")
    tokenizer = tiny_tokenizer()
    ended, cut = trainer.rows["completion_ids"]
    assert ended == [*cut, tokenizer.eos_token_id]
    assert tokenizer.decode(cut) == " is 12"
    trainer.train()


def test_a_model_path_and_lora(tmp_path):
    path = save_tiny(tmp_path / "model")
    trainer = TOPRTrainer(
        model=str(path),
        args=TOPRConfig(
            output_dir=str(tmp_path / "out"), use_cpu=True, disable_tqdm=True, save_strategy="no",
            learning_rate=1e-2, optim="sgd", num_train_epochs=2,
        ),
        train_dataset=made_rows(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    assert abs(trainer.state.log_history[0]["log_ratio/negative"]) < 1e-4
    changed = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert changed
    assert all("lora_" in name for name in changed)
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()


def skipping(tmp_path, rows, rule, **arguments):
    return make_trainer(tmp_path, rows, skip_negatives=rule, **arguments)


@pytest.mark.parametrize("rule", [0.0, 0.5, "sample"])
@pytest.mark.parametrize("seen_before", [False, True])
def test_a_skipped_negative_leaves_exactly_the_others_gradient(tmp_path, rule, seen_before):
    drifted_rows = drifted(share=0.2)
    trainer = skipping(tmp_path, drifted_rows, rule)
    if seen_before:  # Then it is known which are likely to be skipped, and they go first.
        gradients(trainer)
    ours = gradients(trainer)
    step = trainer._step(list(trainer.rows), 16)
    trainer._passes.run(trainer.model, step)
    if seen_before:
        assert step.first() or rule == 0.0
    # By hand: each completion's own gradient, times what the rule makes of it.
    expected = None
    for i, row in enumerate(drifted_rows):
        alone = plain_gradients(tiny_model(), [row], make_objective("topr"), by_length=True)
        rho = (plain_logprobs(tiny_model(), row).detach() - torch.tensor(row["logprobs"])).sum()
        taper = min(1.0, rho.exp().item()) if row["reward"] < 0 else 1.0
        chance = trainer._skipping.uniform(0, {"row": i})
        kept = {0.0: 1.0, 0.5: float(taper > 0.5), "sample": float(chance < taper) / taper}[rule]
        factor = kept if row["reward"] < 0 else 1.0
        assert step.keep_scale_B[i].item() == pytest.approx(factor, rel=1e-3)
        part = {name: g * factor / 16 for name, g in alone.items()}
        expected = part if expected is None else {n: expected[n] + part[n] for n in part}
    assert_same(ours, expected)
    logged = trainer._statistics.summary()
    if rule != 0.0:
        assert 0 < logged["backward/skipped"] < 0.5
        assert 0 < logged["backward/dropped_weight"] < 0.5


def test_sampled_skipping_is_unbiased():
    skip = BackwardSkipping(rule="sample", seed=3)
    for taper in (0.05, 0.4, 1.0, 7.0):
        factors = [
            skip.keep_scale(taper, skip.uniform(step, {"row": row}))
            for step in range(20)
            for row in range(200)
        ]
        mean = sum(factors) / len(factors)
        assert mean == pytest.approx(1.0, abs=4 * (1 / min(taper, 1.0) / len(factors)) ** 0.5)


def test_skipping_needs_a_taper(tmp_path):
    with pytest.raises(ConfigError, match=r"skip_negatives=0\.5 with objective 'dpo'"):
        skipping(tmp_path, made_rows(), 0.5, objective="dpo")
    with pytest.raises(ConfigError, match=r"skip_negatives.*often"):
        skipping(tmp_path, made_rows(), "often")


def test_running_out_of_memory_halves_the_budget_and_repeats_the_step(
    tmp_path, drifted_rows, monkeypatch, caplog
):
    expected = gradients(make_trainer(tmp_path, drifted_rows))
    trainer = make_trainer(tmp_path, drifted_rows, micro_batch_tokens=150)
    backward, calls = trainer.accelerator.backward, []

    def failing(loss):
        calls.append(loss)
        if len(calls) in (2, 4):  # after it has left a part of a gradient
            backward(loss)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        backward(loss)

    monkeypatch.setattr(trainer.accelerator, "backward", failing)
    assert_same(gradients(trainer), expected)
    assert trainer._passes.tokens < 80
    assert caplog.text.count("memory ran out in a forward pass of") == 2


def test_out_of_memory_repeats_the_accumulated_batches_too(tmp_path, drifted_rows, monkeypatch):
    expected = gradients(make_trainer(tmp_path, drifted_rows))
    trainer = make_trainer(tmp_path, drifted_rows)
    trainer.prepare_behavior()
    rows = list(trainer.rows)
    backward, calls = trainer.accelerator.backward, []

    def failing(loss):
        calls.append(loss)
        if len(calls) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        backward(loss)

    monkeypatch.setattr(trainer.accelerator, "backward", failing)
    for half in (rows[:8], rows[8:]):
        trainer.training_step(trainer.model, {"rows": half}, num_items_in_batch=16)
    assert_same({n: p.grad for n, p in trainer.model.named_parameters()}, expected)


def test_a_single_sequence_that_does_not_fit_is_an_error(tmp_path, drifted_rows, monkeypatch):
    trainer = make_trainer(tmp_path, drifted_rows)

    def failing(loss):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer.accelerator, "backward", failing)
    with pytest.raises(TrainingError, match="memory ran out on a single sequence"):
        gradients(trainer)


def moved(tmp_path, **arguments):
    """What a short training does to the weights, as one vector."""
    model = tiny_model(initializer_range=0.1)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    rows = made_rows(logprobs=False)
    trainer = make_trainer(
        tmp_path, rows, model, behavior_logprobs="recompute", num_train_epochs=3,
        per_device_train_batch_size=8, **arguments,
    )  # fmt: skip
    shapes = set[torch.Size]()
    model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: shapes.add(ids[0].shape))
    trainer.train()
    assert len(shapes) > 4
    assert model.is_gradient_checkpointing == (CHECKPOINTING in arguments)
    return torch.cat([p.detach().flatten() for p in model.parameters()]) - before


def test_gradient_checkpointing_trains_the_same(tmp_path):
    expected = moved(tmp_path)
    found = moved(tmp_path, **{CHECKPOINTING: True})
    assert expected.norm() > 0.01
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_bfloat16_autocast_trains_nearly_the_same(tmp_path):
    expected = moved(tmp_path)
    found = moved(tmp_path, bf16=True)
    assert 1e-5 < (found - expected).norm() / expected.norm() < 0.03


@pytest.mark.slow
@pytest.mark.skipif(which("g++") is None, reason="compiling on a CPU needs g++")
@pytest.mark.filterwarnings("default")  # of torch's compiler
def test_compiled_layers_train_the_same(tmp_path):
    arguments = {"layout": "padded", "micro_batch_tokens": 60}  # passes of several shapes
    expected = moved(tmp_path, **arguments)
    counters.clear()
    found = moved(tmp_path, torch_compile=True, **arguments)
    assert expected.norm() > 0.01
    assert (found - expected).norm() < 1e-4 * expected.norm()
    # With and without a gradient, with and without padding: whatever the shape.
    assert 0 < counters["stats"]["unique_graphs"] <= 4
    assert "ACCELERATE_DYNAMO_BACKEND" not in os.environ


def test_accelerates_own_way_of_compiling_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(TrainingError, match="the dynamo backend inductor"):
        make_trainer(tmp_path, made_rows())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"torch_compile": True}, "torch_compile with layout=auto: .* compiled again"),
        ({"use_liger_kernel": True}, "need a GPU"),
        ({"fsdp": True}, "sharded weights are asked for"),
    ],
)
def test_switches_that_would_not_work_are_refused(tmp_path, arguments, message):
    with pytest.raises(TrainingError, match=message):
        make_trainer(tmp_path, made_rows(), **arguments)
