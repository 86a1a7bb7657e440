"""Tokens per second of the engines beside plain `model.generate`, in turn, on the same prompts.

    python benchmarks/generation.py                                   # the quickstart's base model
    python benchmarks/generation.py gsm8k model.path=DIR ... --vllm PYTHON --llama-cpp SERVER GGUF

A recipe and changes to it say the model, prompts, and how completions are drawn. Each round takes
problems of its own, so that no server finds its prompts in a cache. The quickstart's base model is
made first where it is not in the cache (about two minutes).

Seconds on the clock are those of a machine that may do other things; processor seconds are of all
threads and of servers too.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import psutil
import torch

from topr.config import GenerateConfig, ModelConfig, Recipe, load_recipe
from topr.engines import Engine, Request, open_engine
from topr.engines.transformers import TransformersEngine
from topr.models.loading import LoadedModel, load
from topr.progress import Silent
from topr.records import SamplingParams, Split
from topr.runs.environment import prepare_process
from topr.runs.preparation import starting_model
from topr.tasks import load_task
from topr.tokenization.prompts import render

Draw = Callable[[Sequence[Request], int], int]
"""Draws completions of so many tokens at most; returns how many they have."""
VLLM = (
    "-m", "vllm.entrypoints.openai.api_server", "--model", "{model}", "--dtype", "{dtype}",
    "--host", "{host}", "--port", "{port}", "--logprobs-mode", "processed_logprobs",
    "--generation-config", "vllm", "--max-model-len", "2048", "--gpu-memory-utilization", "0.2",
    # On a CPU vLLM 0.32 ends over a request with a seed whose prompt it runs in parts.
    "--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096",
)  # fmt: skip
SLOTS, SLOT_TOKENS = 16, 2048
"""Completions that llama.cpp's server writes side by side, and room for each with its prompt."""


def main() -> None:
    options = parsed()
    prepare_process()
    torch.set_num_threads(options.threads)
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    recipe = load_recipe(options.recipe, options.changes)
    model = starting_model(recipe, Silent())
    loaded = load(model)
    asked = requests(recipe, loaded, options.problems * (1 + options.rounds))
    mean = sum(len(request.prompt_ids) for request in asked) / len(asked)
    print(
        f"prompts of {mean:.0f} tokens, {recipe.generate.n} completions each, {loaded.model.dtype}"
    )
    with ExitStack() as stack:
        draws = contenders(options, recipe, model, loaded, stack)
        speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in draws}
        counts = dict.fromkeys(draws, options.problems)
        if options.generate_problems:
            counts["model.generate"] = options.generate_problems
        for name, draw in draws.items():
            draw(asked[: counts[name]], 2)  # what is tried, compiled or cached at first
        for number in range(1, 1 + options.rounds):
            start = number * options.problems
            for name, draw in draws.items():
                chosen = asked[start : start + counts[name]]
                speeds[name].append(timed(draw, chosen, recipe.generate.max_tokens))
                clock, processor = speeds[name][-1]
                print(f"  {name:16} {clock:8,.0f} {processor:8,.0f}", flush=True)
    print(f"{'tokens a second':16} {'clock':>8} {'processor':>10}   load {os.getloadavg()[0]:.1f}")
    for name, values in speeds.items():
        clock, processor = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name:16} {clock:8,.0f} {processor:10,.0f}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("changes", nargs="*", help="such as model.path=DIR generate.n=8")
    parser.add_argument("--problems", type=int, default=100, help="of each round")
    parser.add_argument("--generate-problems", type=int, help="the same, for model.generate alone")
    parser.add_argument("--generate-rows", type=int, help="side by side in model.generate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--leave-out", nargs="*", default=(), help="topr, model.generate")
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment that has vLLM")
    parser.add_argument("--llama-cpp", nargs=2, metavar=("SERVER", "GGUF"))
    return parser.parse_intermixed_args()


def requests(recipe: Recipe, loaded: LoadedModel, count: int) -> list[Request]:
    """Return the first problems of the recipe's task."""
    problems = load_task(recipe.task).problems(Split.TRAIN)[:count]
    prompts = [render(problem.prompt, loaded.tokenizer) for problem in problems]
    return [
        Request(problem_id=str(i), prompt=prompt.text, prompt_ids=prompt.ids, n=recipe.generate.n)
        for i, prompt in enumerate(prompts)
    ]


def contenders(
    options: argparse.Namespace,
    recipe: Recipe,
    model: ModelConfig,
    loaded: LoadedModel,
    stack: ExitStack,
) -> dict[str, Draw]:
    """Open what is to be compared."""
    config = recipe.generate
    found: dict[str, Draw] = {
        "topr": drawn_by(
            TransformersEngine(
                loaded.model, loaded.tokenizer, model_name="base", batch_size=config.batch_size
            )
        ),
        "model.generate": plain(loaded, config, options.generate_rows),
    }
    found = {name: draw for name, draw in found.items() if name not in options.leave_out}
    commands = {}
    if options.vllm:
        commands["vLLM"] = (256, (options.vllm, *VLLM))
    if options.llama_cpp:
        server, file = options.llama_cpp
        commands["llama.cpp"] = (SLOTS, (
            server, "--model", file, "--host", "{host}", "--port", "{port}", "--threads",
            str(options.threads), "--parallel", str(SLOTS), "--ctx-size", str(SLOTS * SLOT_TOKENS),
        ))  # fmt: skip
    for name, (concurrency, command) in commands.items():
        server = {"command": command, "concurrency": concurrency}
        served = GenerateConfig(engine="server", server=server)  # type: ignore[arg-type]
        engine = stack.enter_context(closing(open_engine(model, served)))
        found[name] = drawn_by(engine)
    return found


def drawn_by(engine: Engine) -> Draw:
    """Draw with one of topr's engines."""

    def draw(asked: Sequence[Request], max_tokens: int) -> int:
        sampling = SamplingParams(max_tokens=max_tokens, seed=0)
        return sum(len(r.completion_ids) for r in engine.generate(asked, sampling))

    return draw


def plain(loaded: LoadedModel, config: GenerateConfig, rows: int | None) -> Draw:
    """Draw with transformers alone, batch by batch."""
    model, tokenizer = loaded.model, loaded.tokenizer
    tokenizer.padding_side = "left"
    ends = torch.tensor(tokenizer.eos_token_id)
    side_by_side = rows or (64 if config.batch_size == "auto" else config.batch_size)
    size = max(1, side_by_side // config.n)

    def draw(asked: Sequence[Request], max_tokens: int) -> int:
        tokens = 0
        for start in range(0, len(asked), size):
            ids = [list(request.prompt_ids) for request in asked[start : start + size]]
            batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
            found = model.generate(
                **batch, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=max_tokens,
                num_return_sequences=config.n,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=int(ends),
            )[:, batch["input_ids"].shape[1] :]  # fmt: skip
            before = (found == ends).long().cumsum(-1) - (found == ends).long()
            tokens += int((before == 0).sum())
        return tokens

    return draw


def timed(draw: Draw, asked: Sequence[Request], max_tokens: int) -> tuple[float, float]:
    """Return tokens per second on the clock, and per second of all processors."""
    clock, processor = time.perf_counter(), spent()
    tokens = draw(asked, max_tokens)
    return tokens / (time.perf_counter() - clock), tokens / (spent() - processor)


def spent() -> float:
    """Return the processor seconds of this process and of all that it has started."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
