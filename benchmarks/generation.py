"""Tokens per second of the transformers engine beside plain `model.generate`, in turn.

The workload is the quickstart's: its base model, 16 completions of each of its problems. The base
is made first where it is not in the cache (about two minutes). Set GOMP_SPINCOUNT=2000 where other
programs run.
"""

import argparse
import statistics
import time

import torch

from topr.config import load_recipe
from topr.engines import Request
from topr.engines.transformers import TransformersEngine
from topr.environment import prepare_process
from topr.models import load
from topr.preparation import starting_model
from topr.progress import Silent
from topr.prompts import render
from topr.records import SamplingParams, Split
from topr.tasks import load_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    prepare_process()
    torch.set_num_threads(options.threads)
    recipe = load_recipe("quickstart")
    loaded = load(starting_model(recipe, Silent()))
    model, tokenizer, config = loaded.model, loaded.tokenizer, recipe.generate
    problems = load_task(recipe.task).problems(Split.TRAIN)[: options.problems]
    prompts = [tuple(render(problem.prompt, tokenizer).ids) for problem in problems]
    tokenizer.padding_side = "left"

    def ours() -> int:
        engine = TransformersEngine(
            model, tokenizer, model_name="base", batch_size=config.batch_size
        )
        requests = [
            Request(problem_id=str(i), prompt="", prompt_ids=ids, n=config.n)
            for i, ids in enumerate(prompts)
        ]
        sampling = SamplingParams(max_tokens=config.max_tokens, seed=0)
        return sum(len(r.completion_ids) for r in engine.generate(requests, sampling))

    def plain() -> int:
        tokens, size = 0, config.batch_size // config.n
        for start in range(0, len(prompts), size):
            batch = tokenizer.pad(
                {"input_ids": [list(ids) for ids in prompts[start : start + size]]},
                return_tensors="pt",
            )
            width = batch["input_ids"].shape[1]
            found = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=True, top_k=0, top_p=1.0, max_new_tokens=config.max_tokens,
                num_return_sequences=config.n,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            )[:, width:]  # fmt: skip
            ended = (found == tokenizer.eos_token_id).long().cumsum(-1)
            tokens += int(((ended == 0) | ((ended == 1) & (found == tokenizer.eos_token_id))).sum())
        return tokens

    speeds: dict[str, list[float]] = {"topr": [], "model.generate": []}
    for _ in range(options.rounds + 1):
        for name, draw in (("topr", ours), ("model.generate", plain)):
            start = time.perf_counter()
            tokens = draw()
            speeds[name].append(tokens / (time.perf_counter() - start))
    medians = {name: statistics.median(values[1:]) for name, values in speeds.items()}
    for name, values in speeds.items():
        shown = ", ".join(f"{value:,.0f}" for value in values[1:])
        print(f"{name:16} {medians[name]:>8,.0f} tokens/s   ({shown})")
    print(f"ratio            {medians['topr'] / medians['model.generate']:>8.2f}")


if __name__ == "__main__":
    main()
