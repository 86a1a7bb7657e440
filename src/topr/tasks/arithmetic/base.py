"""The base model of the arithmetic task: built from a config, warmed up on flawed demonstrations.

It stands in for a pretrained model: a diverse, imperfect policy. It is made once and cached,
under the hash of all that it is made from. Not the training that topr is about: this is plain
next-token prediction, in a loop of a few lines.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from topr.config.tasks import ArithmeticConfig, WarmupConfig
from topr.tasks.arithmetic.demonstrations import demonstration
from topr.tasks.arithmetic.problems import stream
from topr.tasks.arithmetic.tokenizer import build_tokenizer
from topr.tasks.arithmetic.warming import (
    Progress,
    Row,
    cached,
    code_hash,
    threads_set,
)
from topr.tasks.base import Split

CODE = ("problems.py", "demonstrations.py", "tokenizer.py", "warming.py", "base.py")
"""The files that the weights depend on."""


def base_model(
    config: ArithmeticConfig, *, progress: Progress | None = None, threads: int | None = None
) -> Path:
    """Return the directory of the base model, made now unless the cache has it.

    The cache is `$TOPR_CACHE`, or `~/.cache/topr`. A model appears there complete or not at all:
    a build that is killed leaves nothing, and of two builds at once the first to end is kept.

    Args:
        config: the task; the problems' seed and counts do not matter here.
        progress: receives each warm-up step.
        threads: torch threads of the warm-up; defaults to what torch is set to.

    """
    warmup = config.warmup

    def build() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
        tokenizer = build_tokenizer()
        return _build(warmup, tokenizer), tokenizer

    with threads_set(threads):
        return cached(
            _made_from(config),
            build,
            lambda tokenizer: _batches(config, tokenizer),
            steps=warmup.steps,
            learning_rate=warmup.learning_rate,
            progress=progress,
        )


def _made_from(config: ArithmeticConfig) -> dict[str, object]:
    """Return all that the weights depend on; the code of this package is a part of it."""
    return {
        "warmup": config.warmup.model_dump(mode="json"),
        "min_steps": config.min_steps,
        "max_steps": config.max_steps,
        "code": code_hash(CODE),
    }


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
