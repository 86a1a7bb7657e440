"""The workloads of the training benchmark: model shapes and random stored completions.

Six are named; options change the numbers of one, for the scaling benchmark.

Pure Python and numpy, so that every peer's virtual environment can import it. It knows neither a
trainer nor torch: `model` holds the keyword arguments of `transformers.LlamaConfig`.
"""

import argparse
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

PAD_ID = 0
EOS_ID = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A model and the sequences of one optimizer step."""

    name: str
    model: dict[str, Any]
    """Keyword arguments of LlamaConfig."""
    prompts: int
    completions: int
    """Completions per prompt."""
    prompt_lengths: tuple[int, int]
    """Uniform between the two, both included."""
    common_start: int = 0
    """Tokens that all prompts begin with."""
    completion_median: int
    """Median of the lognormal lengths, EOS included."""
    completion_lengths: tuple[int, int]
    """Where the lognormal lengths are clipped."""
    completion_sigma: float = 0.4
    """Standard deviation of the logarithm of the lengths."""
    parameters: str = "float32"
    """Data type of the stored parameters; autocast is the trainer's business."""


SMALL = {
    "vocab_size": 100,
    "hidden_size": 128,
    "intermediate_size": 336,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
}

WIDE_VOCABULARY = {
    "vocab_size": 128_256,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
}

SMOLLM2_135M = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
}

LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
}

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            name="A",
            model=SMALL,
            prompts=8,
            completions=8,
            prompt_lengths=(60, 120),
            completion_median=90,
            completion_lengths=(40, 200),
        ),
        Workload(
            name="B",
            model=WIDE_VOCABULARY,
            prompts=4,
            completions=8,
            prompt_lengths=(60, 120),
            completion_median=90,
            completion_lengths=(40, 200),
        ),
        # Few-shot prompts: the prompt is most of every sequence.
        Workload(
            name="C",
            model=WIDE_VOCABULARY,
            prompts=2,
            completions=16,
            prompt_lengths=(900, 900),
            completion_median=150,
            completion_lengths=(80, 300),
        ),
        # For one GPU only: the parameters alone are 16 GB.
        Workload(
            name="D",
            model=LLAMA_8B,
            prompts=4,
            completions=16,
            prompt_lengths=(900, 900),
            completion_median=150,
            completion_lengths=(80, 300),
            parameters="bfloat16",
        ),
        # As C, but 32 prompts with one completion each, as default shuffling makes them, that all
        # begin with the same few-shot examples.
        Workload(
            name="E",
            model=WIDE_VOCABULARY,
            prompts=32,
            completions=1,
            prompt_lengths=(870, 930),
            common_start=800,
            completion_median=150,
            completion_lengths=(80, 300),
        ),
        # A real model's shape: GSM8K with four examples, 16 completions a question.
        Workload(
            name="F",
            model=SMOLLM2_135M,
            prompts=2,
            completions=16,
            prompt_lengths=(600, 680),
            common_start=530,
            completion_median=110,
            completion_lengths=(40, 256),
        ),
    )
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which workload, and what of it is changed: see `varied`."""
    parser.add_argument("--workload", choices=sorted(WORKLOADS), required=True)
    parser.add_argument("--prompts", type=int, help="instead of the workload's number")
    parser.add_argument("--completions", type=int, help="of a prompt, likewise")
    parser.add_argument("--prompt-length", type=int, help="of every prompt")
    parser.add_argument("--completion-length", type=int, help="median; half to twice as long")
    parser.add_argument("--vocabulary", type=int, help="entries, instead of the workload's")
    parser.add_argument("--layers", type=int, help="of the model, instead of the workload's")


def chosen(options: argparse.Namespace) -> Workload:
    """The workload that the options of `add_arguments` name."""
    return varied(
        WORKLOADS[options.workload],
        prompts=options.prompts,
        completions=options.completions,
        prompt_length=options.prompt_length,
        completion_length=options.completion_length,
        vocabulary=options.vocabulary,
        layers=options.layers,
    )


def varied(
    workload: Workload,
    *,
    prompts: int | None = None,
    completions: int | None = None,
    prompt_length: int | None = None,
    completion_length: int | None = None,
    vocabulary: int | None = None,
    layers: int | None = None,
) -> Workload:
    """A workload with some of its numbers changed; None keeps the workload's own."""
    changes: dict[str, Any] = {"prompts": prompts, "completions": completions}
    if prompt_length:
        if prompt_length < workload.common_start:
            raise ValueError(
                f"{prompt_length=}, but all prompts begin with the same "
                f"{workload.common_start} tokens"
            )
        changes["prompt_lengths"] = (prompt_length, prompt_length)
    if completion_length:
        changes["completion_median"] = completion_length
        changes["completion_lengths"] = (completion_length // 2, 2 * completion_length)
    result = replace(workload, **{name: value for name, value in changes.items() if value})
    model = dict(workload.model)
    model["vocab_size"] = vocabulary or model["vocab_size"]
    model["num_hidden_layers"] = layers or model["num_hidden_layers"]
    longest = result.prompt_lengths[1] + result.completion_lengths[1]
    model["max_position_embeddings"] = max(model["max_position_embeddings"], longest)
    return replace(result, model=model)


def rows(workload: Workload, seed: int = 0) -> list[dict[str, Any]]:
    """The sequences of one optimizer step, in order of their prompts.

    Fewer prompts give a prefix of the same rows. For example
    `{"prompt_ids": [57, 12, ...], "completion_ids": [8, 91, ..., 1], "reward": -1.0, "group": 0}`.
    """
    rng = np.random.default_rng(seed)
    result = []
    start = _tokens(rng, workload, workload.common_start)
    for group in range(workload.prompts):
        low, high = workload.prompt_lengths
        length = int(rng.integers(low, high + 1))
        prompt = start + _tokens(rng, workload, length - workload.common_start)
        for index in range(workload.completions):
            drawn = rng.lognormal(math.log(workload.completion_median), workload.completion_sigma)
            length = int(np.clip(round(drawn), *workload.completion_lengths))
            result.append(
                {
                    "prompt_ids": prompt,
                    "completion_ids": [*_tokens(rng, workload, length - 1), EOS_ID],
                    "reward": 1.0 if (group + index) % 2 == 0 else -1.0,
                    "group": group,
                }
            )
    return result


def completion_tokens(step: list[dict[str, Any]]) -> int:
    """Tokens that the loss is taken over, EOS included."""
    return sum(len(row["completion_ids"]) for row in step)


def _tokens(rng: np.random.Generator, workload: Workload, count: int) -> list[int]:
    """Random ids that are neither padding nor the end of a sequence."""
    return rng.integers(EOS_ID + 1, workload.model["vocab_size"], size=count).tolist()
