"""The warm-up that the built-in models share: next-token prediction on demonstrations, and a cache.

Not the training that topr is about. A model is made once and kept under the hash of all that it is
made from.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Progress = Callable[[int, int, float], None]
"""Called after each warm-up step with the steps done, all steps, and the step's loss."""

MARKER = "base.json"
"""File of a model that is whole; it says what the model is made from."""
RAMP_STEPS = 50
FINAL_RATE = 0.05
IGNORED = -100

Row = tuple[list[int], list[int]]
"""Ids of a prompt and of its completion, the end of sequence included."""


def place_of(made_from: Mapping[str, object]) -> Path:
    """Return the directory in the cache: `$TOPR_CACHE`, or `~/.cache/topr`."""
    named = os.environ.get("TOPR_CACHE")
    cache = Path(named) if named else Path.home() / ".cache" / "topr"
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return cache / "bases" / digest[:16]


def is_whole(directory: Path) -> bool:
    """Whether the cache has the model."""
    return (directory / MARKER).is_file()


def code_hash(names: tuple[str, ...]) -> str:
    """Return a hash of files of this package: other code makes other weights."""
    package = resources.files("topr.tasks.arithmetic")
    code = hashlib.sha256()
    for name in names:
        code.update((package / name).read_bytes())
    return code.hexdigest()


@contextmanager
def threads_set(count: int | None) -> Iterator[None]:
    """Set torch's threads for a while; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def warm_up(
    model: LlamaForCausalLM,
    batches: Iterator[list[Row]],
    *,
    steps: int,
    learning_rate: float,
    pad_id: int,
    progress: Progress,
) -> float:
    """Train a model on batches of demonstrations; return the loss at the end.

    AdamW, a linear rise and a linear fall of the rate.

    Args:
        model: trained in place, left in eval mode.
        batches: one a step.
        steps: of the optimizer.
        learning_rate: at its peak.
        pad_id: fills rows up.
        progress: receives each step.

    Returns:
        In nats per completion token, a running mean.

    """
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    recent = 0.0
    for step in range(1, steps + 1):
        loss = backward(model, next(batches), pad_id)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        recent += (loss - recent) / min(step, 50)
        progress(step, steps, recent)
    model.train(mode=False)
    return recent


def rate(step: int, steps: int) -> float:
    """Return the share of the peak rate: a linear rise, then a linear fall to 5 %."""
    ramp = min(RAMP_STEPS, steps)
    if step < ramp:
        return (step + 1) / ramp
    fall = (step - ramp) / max(steps - ramp, 1)
    return 1 - (1 - FINAL_RATE) * fall


def backward(model: LlamaForCausalLM, rows: list[Row], pad_id: int) -> float:
    """Add the gradient of the mean negative log-probability of completion tokens; return it."""
    ids_BT, labels_BT = _pad(rows, pad_id)
    hidden = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    scored = labels_BT != IGNORED
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
    labels = torch.full((len(rows), width), IGNORED)
    for row, (prompt, completion) in enumerate(rows):
        sequence = torch.tensor(prompt + completion)
        ids[row, : len(sequence) - 1] = sequence[:-1]
        labels[row, len(prompt) - 1 : len(sequence) - 1] = sequence[len(prompt) :]
    return ids, labels


def cached(
    made_from: Mapping[str, object],
    build: Callable[[], tuple[LlamaForCausalLM, PreTrainedTokenizerFast]],
    batches: Callable[[PreTrainedTokenizerFast], Iterator[list[Row]]],
    *,
    steps: int,
    learning_rate: float,
    progress: Progress | None = None,
) -> Path:
    """Return the directory of a model, built and warmed up now unless the cache has it.

    Args:
        made_from: all that the weights depend on.
        build: makes the model as it is before the warm-up, and its tokenizer.
        batches: of demonstrations, from the tokenizer.
        steps: of the warm-up.
        learning_rate: at its peak.
        progress: receives each step.

    """
    directory = place_of(made_from)
    if is_whole(directory):
        return directory
    model, tokenizer = build()
    loss = warm_up(
        model,
        batches(tokenizer),
        steps=steps,
        learning_rate=learning_rate,
        pad_id=tokenizer.pad_token_id,
        progress=progress or (lambda done, total, loss: None),
    )
    publish(model, tokenizer, directory, {**made_from, "final_loss": loss})
    return directory


def publish(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
    made_from: Mapping[str, object],
) -> None:
    """Write everything next to the directory's place, sync, then rename into place."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{directory.name}-", dir=directory.parent, ignore_cleanup_errors=True
    ) as scratch:
        made = Path(scratch) / "base"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / MARKER).write_text(json.dumps(dict(made_from), indent=2) + "\n", encoding="utf-8")
        for file in made.iterdir():
            _sync(file)
        _sync(made)
        if directory.exists() and not (directory / MARKER).is_file():
            shutil.rmtree(directory)  # someone took files out of it: it is not a model any more
        try:
            made.rename(directory)
        except OSError:
            # Another process was first, and what it made is the same.
            if not (directory / MARKER).is_file():
                raise
    _sync(directory.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
