"""What topr makes of a model: right, refused, or (never) something else.

Trainer and engine are each compared with the plain computation: a copy of the model as it was made,
in evaluation mode, on one sequence at a time, without cache, batch or padding. No tests here.
"""

import copy
import random
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from tiny import EOS, PAD, tiny_tokenizer
from topr.engines.base import Request
from topr.engines.kv_cache import Batching
from topr.engines.transformers import TransformersEngine
from topr.errors import ToprError
from topr.records import SamplingParams
from topr.training import TOPRConfig, TOPRTrainer

TOLERANCE = 1e-4
"""Of a log-probability, in nats, and of a gradient, as a share of its norm."""
TOKENIZER = tiny_tokenizer()
PROMPTS = (3, 14, 21)
"""Tokens of the prompts: some shorter, some longer than `zoo.WINDOW`."""
COMPLETIONS = (6, 1, 17)
LIMIT = 20
"""New tokens of a completion that the engine draws."""
ENDS = [PAD, *range(EOS, EOS + 20)]
"""Ids that end a completion, many, so that completions end at different lengths."""


WAYS = {
    Batching.SHARED: "side by side",
    Batching.REFILLED: "side by side",
    Batching.PADDED: "batch by batch",
    Batching.LEVEL: "prompts as long together",
    Batching.SINGLE: "one at a time",
}
"""What the table says of the engine."""


class Outcome(StrEnum):
    """What became of a model."""

    RIGHT = "right"
    REFUSED = "refused"
    """With an error of topr's."""
    WRONG = "wrong"
    """Other numbers than the plain computation's."""
    RAW = "raw error"
    """An error that is not topr's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Of the trainer, or of the engine, on one model."""

    outcome: Outcome
    detail: str

    @property
    def fine(self) -> bool:
        """Right or refused."""
        return self.outcome in (Outcome.RIGHT, Outcome.REFUSED)


def plain_logprobs(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Any:
    """Return log pi of the completion's tokens, [T] float64: one sequence, nothing else."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0].double()
    table = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return table.gather(1, ids[0, len(prompt) :, None]).squeeze(1)


def made_rows(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Return graded completions of several lengths, with the plain computation's log mu."""
    chance = random.Random(0)
    rows = []
    for number, length in enumerate(PROMPTS):
        prompt = [chance.randrange(30, 270) for _ in range(length)]
        for sample, size in enumerate(COMPLETIONS):
            completion = [chance.randrange(30, 270) for _ in range(size - 1)] + [EOS]
            with torch.no_grad():
                logprobs = plain_logprobs(copy.deepcopy(model), prompt, completion)
            rows.append(
                {
                    "problem_id": f"p{number}",
                    "sample": sample,
                    "prompt": "?",
                    "completion": "!",
                    "prompt_ids": prompt,
                    "completion_ids": completion,
                    "logprobs": logprobs.tolist(),
                    "reward": 1.0 if (number + sample) % 2 else -1.0,
                }
            )
    return rows


class _Gradients(TrainerCallback):
    """Keeps the gradient of the first step."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found = {
            name: parameter.grad.clone()
            for name, parameter in kwargs["model"].named_parameters()
            if parameter.grad is not None
        }


def plain_gradient(model: PreTrainedModel, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return TOPR's gradient of an unchanged model by hand: every weight is 1.

    Without a gradient in evaluation mode (Reformer's layers) it is NaN, and equals nothing.
    """
    total: dict[str, Tensor] = {}
    for row in rows:
        own = copy.deepcopy(model)
        own.requires_grad_(True)
        logprobs = plain_logprobs(own, row["prompt_ids"], row["completion_ids"])
        try:
            (-row["reward"] * logprobs.mean() / len(rows)).backward()
        except AssertionError:
            return {"": torch.tensor(float("nan"))}
        for name, parameter in own.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, 0) + parameter.grad
    return total


@contextmanager
def _judged(verdicts: list[Verdict]) -> Any:
    """Turn an error inside into a verdict."""
    try:
        yield
    except ToprError as error:
        verdicts.append(Verdict(outcome=Outcome.REFUSED, detail=f"{type(error).__name__}: {error}"))
    except Exception as error:  # what must not happen is to be named, not to end the sweep
        verdicts.append(Verdict(outcome=Outcome.RAW, detail=f"{type(error).__name__}: {error}"))


def judge_trainer(model: PreTrainedModel) -> Verdict:
    """Take one step of SGD, and compare log rho and the gradient with the plain computation."""
    verdicts: list[Verdict] = []
    rows = made_rows(model)
    expected = plain_gradient(model, rows)
    with _judged(verdicts), tempfile.TemporaryDirectory() as folder:
        seen = _Gradients()
        trainer = TOPRTrainer(
            model=copy.deepcopy(model),
            args=TOPRConfig(
                output_dir=folder, use_cpu=True, save_strategy="no", optim="sgd", max_steps=1,
                learning_rate=1e-30, max_grad_norm=0.0, per_device_train_batch_size=len(rows),
                disable_tqdm=True,
            ),
            train_dataset=rows,
            processing_class=TOKENIZER,
            callbacks=[seen],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        log = trainer.state.log_history[0]
        ratio = max(abs(log["log_ratio/positive"]), abs(log["log_ratio/negative"]))
        size = max(abs(sum(row["logprobs"])) for row in rows)
        gap = _gap(seen.found, expected)
        right = ratio <= TOLERANCE * max(1.0, size / 10) and gap <= TOLERANCE
        way = _way(trainer.forward)
        if not right:
            way = f"log rho {ratio:.2g} at most, gradient off by {gap:.2g} of its norm ({way})"
        verdicts.append(Verdict(outcome=Outcome.RIGHT if right else Outcome.WRONG, detail=way))
    return verdicts[0]


def _way(forward: Any) -> str:
    """Say how the trainer lays sequences out."""
    return (
        "prompts shared"
        if forward.share
        else "one at a time"
        if getattr(forward, "alone", False)
        else "padded"
    )


def _gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the norm of the difference, as a share of the norm of what is expected."""
    names = found.keys() | expected.keys()
    zero = torch.zeros(())
    squares = [
        (found.get(name, zero) - expected.get(name, zero)).double().square().sum() for name in names
    ]
    norm = sum(values.double().square().sum() for values in expected.values())
    return float((sum(squares) / norm) ** 0.5)


def judge_engine(model: PreTrainedModel) -> Verdict:
    """Draw completions side by side, and compare the recorded log mu with the plain one."""
    verdicts: list[Verdict] = []
    chance = random.Random(1)
    requests = [
        Request(
            problem_id=f"p{number}",
            prompt="?",
            prompt_ids=tuple(chance.randrange(30, 270) for _ in range(length)),
            n=3,
        )
        for number, length in enumerate((*PROMPTS, 1))
    ]
    drawn = copy.deepcopy(model)
    if drawn.generation_config is not None:
        drawn.generation_config.eos_token_id = ENDS
    with _judged(verdicts):
        engine = TransformersEngine(drawn, TOKENIZER, model_name="tiny", batch_size=5)
        rollouts = list(engine.generate(requests, SamplingParams(max_tokens=LIMIT)))
        gap = 0.0
        for rollout in rollouts:
            with torch.no_grad():
                plain = plain_logprobs(
                    copy.deepcopy(model), rollout.prompt_ids, rollout.completion_ids
                )
            off = (torch.tensor(rollout.logprobs, dtype=torch.float64) - plain).abs()
            gap = max(gap, float((off / (plain.abs() / 10).clamp(min=1.0)).max()))
        assert len({len(rollout.completion_ids) for rollout in rollouts}) > 1
        right = gap <= TOLERANCE
        detail = WAYS[engine.batching] if right else f"off by {gap:.2g} nats a token"
        verdicts.append(Verdict(outcome=Outcome.RIGHT if right else Outcome.WRONG, detail=detail))
    return verdicts[0]
