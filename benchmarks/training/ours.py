"""One optimizer step of TOPRTrainer on the same stored completions as its peers, timed.

    python ours.py --workload A --steps 5 --threads 1

prints one line of JSON. With --check it times nothing: it compares the step's gradient with that
of a plain computation (checking.py).
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from importlib.metadata import version
from typing import Any

import torch
from checking import GradientTap, SeenTrainer, compare, plain_step
from measuring import (
    MEGABYTE,
    StepClock,
    build_model,
    build_tokenizer,
    memory_mb,
    serve,
    state_mb,
)
from torch.profiler import ProfilerActivity, profile
from transformers import PrinterCallback
from workloads import Workload, add_arguments, chosen, completion_tokens, rows

from topr.runs.environment import prepare_process
from topr.stages.train_arguments import CHECKPOINTING
from topr.training import TOPRConfig


def stored(workload: Workload) -> list[dict[str, Any]]:
    """The rows, with log-probabilities as if the sampler had been near the model: a weight inside
    the taper for nearly every negative."""
    logprob = -0.999 * math.log(workload.model["vocab_size"])
    return [row | {"logprobs": [logprob] * len(row["completion_ids"])} for row in rows(workload)]


def build_trainer(workload: Workload, options: argparse.Namespace, folder: str) -> SeenTrainer:
    step = stored(workload)
    trainer = SeenTrainer(
        model=build_model(workload),
        args=TOPRConfig(
            output_dir=folder,
            per_device_train_batch_size=len(step),
            max_steps=options.warmup + options.steps,
            optim=options.optim,
            use_liger_kernel=options.liger,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            bf16=options.dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            layout=options.layout,
            objective=options.objective,
            micro_batch_tokens=options.tokens,
            skip_negatives=options.skip,
            **{CHECKPOINTING: options.checkpointing},
        ),
        train_dataset=step,
        processing_class=build_tokenizer(workload.model["vocab_size"]),
    )
    trainer.remove_callback(PrinterCallback)  # standard output is for the one line of JSON
    return trainer


def report(options: argparse.Namespace, workload: Workload, folder: str) -> dict[str, Any]:
    interpreter_mb = memory_mb("VmRSS")
    trainer = build_trainer(workload, options, folder)
    clock = StepClock()
    trainer.add_callback(clock)
    if options.profile:
        where = "cuda" if torch.cuda.is_available() else "cpu"
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            trainer.train()
        print(found.key_averages().table(sort_by=f"self_{where}_time_total", row_limit=30))
    else:
        trainer.train()
    seconds = clock.seconds[options.warmup :]
    tokens = completion_tokens(rows(workload))
    result = {
        "peer": "topr",
        "trainer": "topr",
        "settings": options.settings,
        "optim": options.optim,
        "liger": options.liger,
        "checkpointing": options.checkpointing,
        "micro_batch_tokens": options.tokens,
        "workload": workload.name,
        "prompts": workload.prompts,
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "completion_tokens": tokens,
        "seconds": [round(value, 4) for value in seconds],
        "cpu_seconds": [round(value, 4) for value in clock.cpu_seconds[options.warmup :]],
        "completion_tokens_per_second": tokens / statistics.median(seconds),
        "peak_rss_mb": memory_mb("VmHWM"),
        "baseline_rss_mb": clock.baseline_mb,
        "interpreter_rss_mb": interpreter_mb,
        "state_mb": state_mb(trainer.model, trainer.optimizer.optimizer),
    }
    if torch.cuda.is_available():
        result["peak_cuda_mb"] = torch.cuda.max_memory_allocated() / MEGABYTE
        result["device"] = torch.cuda.get_device_name()
    packages = ("topr", "transformers", "torch", "accelerate", "datasets")
    packages += ("liger-kernel",) if options.liger else ()
    return result | {"versions": {name: version(name) for name in packages}}


def check(options: argparse.Namespace, workload: Workload, folder: str) -> dict[str, Any]:
    """Compare the gradient of one step, as it is timed but not clipped, with the plain one."""
    options.warmup, options.steps = 0, 1
    trainer = build_trainer(workload, options, folder)
    trainer.args.max_grad_norm = 0.0
    tap = GradientTap()
    trainer.add_callback(tap)
    trainer.train()
    step = trainer.seen
    gradient, log_ratio = plain_step(build_model(workload).float(), stored(workload), trainer)
    order = torch.tensor([row["row"] for row in step.rows])
    gap = (step.log_ratio_B.cpu() - log_ratio[order]).abs().max().item()
    return {
        "workload": workload.name,
        "prompts": workload.prompts,
        "dtype": options.dtype,
        "layout": "shared" if trainer.forward.share else "padded",
        "rows": len(order),
        **compare(tap.gradient, gradient),
        "sequence_logprob_difference": gap,
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--settings", default="default", help="name of this row in the table")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1, help="steps before the first timed one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--layout", choices=("auto", "shared", "padded"), default="auto")
    parser.add_argument("--objective", default="topr")
    parser.add_argument("--tokens", type=int, help="of a micro-batch")
    parser.add_argument("--skip", help="skip_negatives: a number, or sample")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--optim", default="adamw_torch_fused")
    parser.add_argument("--liger", action="store_true", help="Liger's kernels; needs a GPU")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--check", action="store_true", help="compare gradients, no timing")
    options = parser.parse_args(arguments)
    if options.skip and options.skip != "sample":
        options.skip = float(options.skip)
    return options


def run(arguments: list[str]) -> dict[str, Any]:
    options = parse(arguments)
    prepare_process()  # as every command of topr does
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        return (check if options.check else report)(options, chosen(options), folder)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve(run)
    else:
        print(json.dumps(run(sys.argv[1:])))
