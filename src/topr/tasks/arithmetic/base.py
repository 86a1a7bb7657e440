"""The base model of the arithmetic task: built from a config, warmed up on flawed demonstrations.

It stands in for a pretrained model: a diverse, imperfect policy. It is made once and cached,
under the hash of all that it is made from. Not the training that topr is about: this is plain
next-token prediction, in a loop of a few lines.
"""

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from topr.config.tasks import ArithmeticConfig, WarmupConfig
from topr.tasks.arithmetic.demonstrations import demonstration
from topr.tasks.arithmetic.problems import stream
from topr.tasks.arithmetic.tokenizer import build_tokenizer
from topr.tasks.base import Split

Progress = Callable[[int, int, float], None]
"""Called after each warm-up step with the steps done, all steps, and the step's loss."""

CODE = ("problems.py", "demonstrations.py", "tokenizer.py", "base.py")
"""The files that the weights depend on."""

_MARKER = "base.json"
_RAMP_STEPS = 50
_FINAL_RATE = 0.05
_IGNORED = -100


def base_model(
    config: ArithmeticConfig, *, progress: Progress | None = None, threads: int | None = None
) -> Path:
    """Return the directory of the base model, made now unless the cache has it.

    The cache is `$TOPR_CACHE`, or `~/.cache/topr`. A model appears there complete or not at all:
    a build that is killed leaves nothing, and of two builds at once the first to end is kept.

    Args:
        config: the task; the problems' seed and counts do not matter here.
        progress: told of each warm-up step.
        threads: torch threads of the warm-up; none given: as torch is set.

    """
    made_from, directory = _made_from(config), _directory(config)
    if is_made(config):
        return directory
    tokenizer = build_tokenizer()
    with _threads(threads):
        model, loss = _warm_up(config, tokenizer, progress or (lambda done, total, loss: None))
    _publish(model, tokenizer, directory, made_from | {"final_loss": loss})
    return directory


def is_made(config: ArithmeticConfig) -> bool:
    """Whether the cache has the base model."""
    return (_directory(config) / _MARKER).is_file()


def _directory(config: ArithmeticConfig) -> Path:
    made_from = json.dumps(_made_from(config), sort_keys=True)
    return _cache() / "bases" / hashlib.sha256(made_from.encode()).hexdigest()[:16]


def _cache() -> Path:
    named = os.environ.get("TOPR_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "topr"


def _made_from(config: ArithmeticConfig) -> dict[str, object]:
    """Return all that the weights depend on; the code of this package is a part of it."""
    package = resources.files("topr.tasks.arithmetic")
    code = hashlib.sha256()
    for name in CODE:
        code.update((package / name).read_bytes())
    return {
        "warmup": config.warmup.model_dump(mode="json"),
        "min_steps": config.min_steps,
        "max_steps": config.max_steps,
        "code": code.hexdigest(),
    }


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _build(config: WarmupConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        # Rotary positions cost nothing; room for the longest question and a completion of 512.
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(llama)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def _warm_up(
    config: ArithmeticConfig, tokenizer: PreTrainedTokenizerFast, progress: Progress
) -> tuple[LlamaForCausalLM, float]:
    """Return the trained model and its loss, in nats per completion token, at the end."""
    warmup = config.warmup
    model = _build(warmup, tokenizer).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=warmup.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, warmup.steps))
    recent = 0.0
    batches = _batches(config, tokenizer)
    for step in range(1, warmup.steps + 1):
        loss = _backward(model, next(batches), tokenizer.pad_token_id)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        recent += (loss - recent) / min(step, 50)
        progress(step, warmup.steps, recent)
    return model.eval(), recent


def _rate(step: int, steps: int) -> float:
    """Return the share of the peak rate: a linear rise, then a linear fall to 5 %."""
    ramp = min(_RAMP_STEPS, steps)
    if step < ramp:
        return (step + 1) / ramp
    fall = (step - ramp) / max(steps - ramp, 1)
    return 1 - (1 - _FINAL_RATE) * fall


Row = tuple[list[int], list[int]]
"""Ids of a prompt and of its completion, the end of sequence included."""


def _backward(model: LlamaForCausalLM, rows: list[Row], pad_id: int) -> float:
    """Add the gradient of the mean negative log-probability of completion tokens; return it."""
    ids_BT, labels_BT = _pad(rows, pad_id)
    hidden = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    scored = labels_BT != _IGNORED
    loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[scored]), labels_BT[scored])
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def _pad(rows: list[Row], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels, [batch, time] long; a label is the completion token that follows.

    Rows are padded on the right, where causal attention never looks back from, so no attention
    mask is needed.
    """
    width = max(len(prompt) + len(completion) for prompt, completion in rows) - 1
    ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), _IGNORED)
    for row, (prompt, completion) in enumerate(rows):
        sequence = torch.tensor(prompt + completion)
        ids[row, : len(sequence) - 1] = sequence[:-1]
        labels[row, len(prompt) - 1 : len(sequence) - 1] = sequence[len(prompt) :]
    return ids, labels


def _batches(config: ArithmeticConfig, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[Row]]:
    """Yield batches of fresh demonstrations for ever."""
    warmup = config.warmup
    rng = random.Random(f"topr arithmetic demonstrations {warmup.seed}")  # noqa: S311
    # Demonstrations are of training problems only: validation and test stay unseen.
    problems = stream(
        Split.TRAIN,
        seed=f"warm-up {warmup.seed}",
        min_steps=config.min_steps,
        max_steps=config.max_steps,
    )
    while True:
        drawn = [next(problems) for _ in range(warmup.batch_size)]
        prompts = tokenizer([problem.text for problem in drawn])["input_ids"]
        texts = [f"{demonstration(problem, rng)} {tokenizer.eos_token}" for problem in drawn]
        yield list(zip(prompts, tokenizer(texts)["input_ids"], strict=True))


def _publish(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
    made_from: dict[str, object],
) -> None:
    """Write everything beside the directory's place, sync, then rename into place."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{directory.name}-", dir=directory.parent, ignore_cleanup_errors=True
    ) as scratch:
        made = Path(scratch) / "base"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / _MARKER).write_text(json.dumps(made_from, indent=2) + "\n", encoding="utf-8")
        for file in made.iterdir():
            _sync(file)
        _sync(made)
        if directory.exists() and not (directory / _MARKER).is_file():
            shutil.rmtree(directory)  # someone took files out of it: it is no model any more
        try:
            made.rename(directory)
        except OSError:
            # Another process was first, and what it made is the same.
            if not (directory / _MARKER).is_file():
                raise
    _sync(directory.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
