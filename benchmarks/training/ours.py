"""One optimizer step of TOPRTrainer on the same stored completions as its peers, timed."""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from measuring import MEGABYTE, StepClock, build_model, build_tokenizer, memory_mb
from torch.profiler import ProfilerActivity, profile
from transformers import PrinterCallback
from workloads import WORKLOADS, Workload, completion_tokens, rows

from topr.environment import prepare_process
from topr.training import TOPRConfig, TOPRTrainer


def build_trainer(workload: Workload, options: argparse.Namespace, folder: str) -> TOPRTrainer:
    step = rows(workload)
    size = workload.model["vocab_size"]
    for row in step:
        # As if the sampler had been near the model: a weight inside the taper for every negative.
        row["logprobs"] = [-0.999 * torch.tensor(size).log().item()] * len(row["completion_ids"])
    return TOPRTrainer(
        model=build_model(workload),
        args=TOPRConfig(
            output_dir=folder,
            per_device_train_batch_size=len(step),
            max_steps=options.warmup + options.steps,
            optim="adamw_torch",
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
            micro_batch_tokens=options.tokens,
            skip_negatives=options.skip,
            gradient_checkpointing=options.checkpointing,
        ),
        train_dataset=step,
        processing_class=build_tokenizer(size),
    )


def report(options: argparse.Namespace, workload: Workload, folder: str) -> dict[str, Any]:
    interpreter_mb = memory_mb("VmRSS")
    trainer = build_trainer(workload, options, folder)
    trainer.remove_callback(PrinterCallback)
    clock = StepClock()
    trainer.add_callback(clock)
    if options.profile:
        with profile(activities=[ProfilerActivity.CPU]) as found:
            trainer.train()
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))
    else:
        trainer.train()
    seconds = clock.seconds[options.warmup :]
    tokens = completion_tokens(rows(workload))
    parameters = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    result = {
        "peer": "topr",
        "trainer": "topr",
        "settings": options.settings,
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
        "state_mb": 4 * parameters / MEGABYTE,
    }
    if torch.cuda.is_available():
        result["peak_cuda_mb"] = torch.cuda.max_memory_allocated() / MEGABYTE
        result["device"] = torch.cuda.get_device_name()
    packages = ("topr", "transformers", "torch", "accelerate", "datasets")
    return result | {"versions": {name: version(name) for name in packages}}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), required=True)
    parser.add_argument("--settings", default="default", help="name of this row in the table")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1, help="steps before the first timed one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, help="instead of the workload's number")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--layout", choices=("auto", "shared", "padded"), default="auto")
    parser.add_argument("--tokens", type=int, help="of a micro-batch")
    parser.add_argument("--skip", help="skip_negatives: a number, or sample")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if options.skip and options.skip != "sample":
        options.skip = float(options.skip)
    return options


def main() -> None:
    options = parse()
    prepare_process()  # as every command of topr does
    torch.set_num_threads(options.threads)
    workload = WORKLOADS[options.workload]
    if options.prompts:
        workload = replace(workload, prompts=options.prompts)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(report(options, workload, folder)))


if __name__ == "__main__":
    main()
