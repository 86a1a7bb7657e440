"""The built-in verifier's starting model: a generator, taught to write checks, badly.

Not the training that topr is about: see `topr.tasks.arithmetic.base`, of which this is the sequel.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from topr.config.tasks import CheckWarmupConfig
from topr.errors import ModelError
from topr.models.files import fingerprint
from topr.tasks.arithmetic import base
from topr.tasks.arithmetic.checks import TEMPLATE, WORDS, check, to_check
from topr.tasks.arithmetic.problems import stream
from topr.tasks.arithmetic.tokenizer import build_tokenizer
from topr.tasks.arithmetic.warming import Progress, Row, cached, code_hash
from topr.tasks.base import Split

CODE = ("checks.py", "checker.py", *base.CODE)
"""The files that the weights depend on."""


def checker_base(config: CheckWarmupConfig, *, progress: Progress | None = None) -> Path:
    """Return the directory of the verifier's starting model, made now unless the cache has it.

    Args:
        config: the section `task.warmup` of a verifier.
        progress: receives each warm-up step.

    Raises:
        ModelError: the generator is not a model.

    """
    generator = _generator(config)
    made_from = {
        "generator": fingerprint(generator),
        "warmup": config.model_dump(mode="json", exclude={"generator", "arithmetic"}),
        "min_steps": config.arithmetic.min_steps,
        "max_steps": config.arithmetic.max_steps,
        "code": code_hash(CODE),
    }

    def build() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
        tokenizer = build_tokenizer(WORDS)
        return _with_words(generator, tokenizer, config.seed), tokenizer

    return cached(
        made_from,
        build,
        lambda tokenizer: _batches(config, tokenizer),
        steps=config.steps,
        learning_rate=config.learning_rate,
        progress=progress,
    )


def _generator(config: CheckWarmupConfig) -> Path:
    if config.generator is not None:
        return Path(config.generator)
    return base.base_model(config.arithmetic)


def _with_words(generator: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return the generator with embeddings for more words; its own stay as they are."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(
        generator, use_safetensors=True, dtype=torch.float32
    )
    own = len(build_tokenizer())
    if model.config.vocab_size != own:
        raise ModelError(
            f"{generator} knows {model.config.vocab_size} tokens, expected the {own} of the "
            "arithmetic task: the built-in verifier starts from a generator of that task; set "
            "model.path to the model that is to be trained"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model


def _batches(config: CheckWarmupConfig, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[Row]]:
    """Yield batches of fresh demonstrations for ever, of training problems only."""
    rng = random.Random(f"topr arithmetic checks {config.seed}")  # noqa: S311
    problems = stream(
        Split.TRAIN,
        seed=f"checks {config.seed}",
        min_steps=config.arithmetic.min_steps,
        max_steps=config.arithmetic.max_steps,
    )
    while True:
        prompts, checks = [], []
        for _ in range(config.batch_size):
            problem = next(problems)
            solution = to_check(problem, rng)
            asked = TEMPLATE.replace("{question}", problem.text).replace("{solution}", solution)
            prompts.append(asked)
            checks.append(f"{check(problem, solution, rng)} {tokenizer.eos_token}")
        ids = zip(tokenizer(prompts)["input_ids"], tokenizer(checks)["input_ids"], strict=True)
        yield list(ids)
