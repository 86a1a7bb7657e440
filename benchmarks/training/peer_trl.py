"""One optimizer step of TRL's SFTTrainer or GRPOTrainer on stored completions, timed.

    python peer_trl.py --workload A --trainer grpo --settings best --steps 5 --threads 1

runs in an environment of its own (requirements-trl.txt) and prints one line of JSON. The trainers
are TRL's, run by their own `train()`. SFTTrainer gets token ids and a completion mask. GRPOTrainer
gets the stored rows where it would generate and score, with TRL's advantages of their rewards;
its loss, padding and splitting are its own.

`default` is what TRL does when told nothing: bf16, gradient checkpointing, 8 rows a micro-batch.
`best` is the fastest that was found of what can be set, and of equally fast ones the one with the
least memory. The caller sets the environment for it:

    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184

One part of `best` is no argument of TRL. It scores completions only, as TRL does wherever Triton
runs; on a CPU TRL projects prompts and padding too. The tiles of the fused head are TRL's own, 4096
tokens by 32,768 entries of the vocabulary; they are constants of its source, and `--tile 1024 4096`
changes them to tiles that stay in the cache.

Completion tokens a second on one core without bf16 instructions (AVX2), and in brackets peak
memory in MB beyond interpreter, parameters, gradients and optimizer state; the core was shared, so
differences under 15 % mean nothing. GRPO where nothing else is said. `small` are the smaller tiles,
`own` TRL's; on A, with its vocabulary of 100, they are alike, and A was run with TRL's own:

| what                                     | A             | B           | C                |
| best                                     | 2,560 (160)   | 113 (1,590) | 71 (1,310), *    |
| best, small                              | as best       | 129 (529)   | 71 to 108 (640)  |
| best, SFT; B and C small                 | 2,730 (160)   | 146 (565)   | 90 (712)         |
| 2 rows a micro-batch; B and C small      | 2,030 (95)    | 129 (403)   | as best, small   |
| 4 rows; B and C small                    | as best       | as best, small | 95 to 116 (1,050) |
| 8 rows, own                              | 2,410 (256)   | 106 (2,840) | 72 (4,170), *    |
| 16, 32, 64 rows, processor time          | 2,110 to 1,490| no faster   |                  |
| bf16 autocast, 8 rows, own               |               | 20, *       |                  |
| no malloc environment, 8 rows, own       |               | 70 (1,800)  |                  |
| SFT, padding_free, 2 and 8 rows          | 1,870 and 990 |             |                  |
| default, own                             | 159 (220)     | 9 (3,430), *|                  |
| default, own, SFT                        | 203 (210)     | 8 (3,510), *|                  |
| default, own, no malloc environment      | 166 (110)     | 7 (2,380), *|                  |
| default, own, but float32                | 1,070 (230)   | 31 (3,360), *| 14 (8,050), *   |

Two cores with them (AVX-512), bf16 autocast, rows a micro-batch, single runs:

| what             | A                                       | B                              |
| ---------------- | --------------------------------------- | ------------------------------ |
| SFT: 2, 4, 8, 16 | -, 6,000 (370), 7,800 (310), 7,600      | 363, 391 (1,430), 375 (2,570)  |
| GRPO             | -, 5,700, 7,300 (320)                   | 355, 385 (1,250), 423 (2,050)  |
| small, 4 rows    | as 4 rows                               | SFT 391 (550), GRPO 394 (640)  |

and on C, 1, 2, 4 and 8 rows: SFT 223 (1,420), 257 (1,630), 278 (2,430), 259 (3,210); GRPO 250
(1,380), 249 (1,960), 276 (2,350), 271 (3,670). Another day SFT had 275 with 2 rows, 247 with 4.

* with --prompts 1, where the update of the parameters weighs more. padding_free is slower because
without flash attention every token attends, masked, to the whole row. `loss_type="chunked_nll"`
is an alias of the default since TRL computes every loss in tiles; there is no other switch.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

# Before the imports below, which read it: TRL's trainers report their use to the Hub otherwise.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import trl.kernels.chunked_logprob as trl_kernel
import trl.trainer.utils as trl_utils
from datasets import Dataset
from measuring import (
    MEGABYTE,
    StepClock,
    build_model,
    build_tokenizer,
    memory_mb,
    serve,
    state_mb,
)
from transformers import LlamaForCausalLM, PrinterCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from workloads import PAD_ID, Workload, add_arguments, chosen, completion_tokens, rows

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the two named settings, and the options that override them, decide."""

    batch_size: int
    bf16: bool
    checkpointing: bool
    compact: bool
    """Rows sorted so that micro-batches hold little padding; the head on completions only."""
    tile: tuple[int, int] | None = None
    """Tokens and vocabulary entries of a tile of TRL's fused head; None is TRL's own."""


TRL_DEFAULTS = Settings(batch_size=8, bf16=True, checkpointing=True, compact=False)
BEST = {
    "A": Settings(batch_size=4, bf16=False, checkpointing=False, compact=True),
    "B": Settings(batch_size=4, bf16=False, checkpointing=False, compact=True),
    "C": Settings(batch_size=2, bf16=False, checkpointing=False, compact=True),
    # Not tuned. On a GPU bf16 is the fast type; 141 GB have room for these activations.
    "D": Settings(batch_size=4, bf16=True, checkpointing=False, compact=True),
    "E": Settings(batch_size=2, bf16=False, checkpointing=False, compact=True),
    "F": Settings(batch_size=4, bf16=False, checkpointing=False, compact=True),
}
BFLOAT16_BATCH_SIZE = {
    ("A", "sft"): 8, ("A", "grpo"): 8, ("B", "grpo"): 8, ("C", "sft"): 4, ("C", "grpo"): 4,
    ("E", "sft"): 8,
}  # fmt: skip
"""Of BEST in bfloat16, where the processor has it, if another one is the fastest there."""


class StoredGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that takes stored rows where it would generate and score completions."""

    stored: list[Row]
    compact: bool

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, torch.Tensor]:
        return self._padded(self.stored)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, torch.Tensor]:
        if not self.compact:  # TRL pads all rows of the step alike, shuffles and splits them
            return super()._prepare_inputs(generation_batch)
        index = self._step % self.args.steps_per_generation
        if index == 0:
            size = self.args.per_device_train_batch_size
            batches = [self.stored[i : i + size] for i in range(0, len(self.stored), size)]
            self._buffered_inputs = [self._padded(batch) for batch in batches]
        return self._buffered_inputs[index]

    def _padded(self, batch: list[Row]) -> dict[str, torch.Tensor]:
        """The dictionary that `_compute_loss` expects, padded as TRL pads it."""
        prompts = [torch.tensor(row["prompt_ids"]) for row in batch]
        completions = [torch.tensor(row["completion_ids"]) for row in batch]
        result = {
            "prompt_ids": trl_utils.pad(prompts, padding_value=PAD_ID, padding_side="left"),
            "prompt_mask": trl_utils.pad([torch.ones_like(x) for x in prompts], 0, "left"),
            "completion_ids": trl_utils.pad(completions, padding_value=PAD_ID),
            "completion_mask": trl_utils.pad([torch.ones_like(x) for x in completions]),
            "advantages": torch.tensor([row["advantage"] for row in batch]),
            "num_items_in_batch": torch.tensor(completion_tokens(self.stored)),
        }
        return {key: value.to(self.accelerator.device) for key, value in result.items()}


def apply_settings(settings: Settings) -> None:
    """Change what no argument of TRL changes; its modules read these names at every call."""
    if settings.compact:
        # The head on scored positions only, which TRL does where Triton runs. Only the choice of
        # positions reads this copy of the function: the kernel's own copy stays.
        trl_utils._use_triton = lambda device: True
    if settings.tile is not None:
        trl_kernel.TOKEN_CHUNK_SIZE, trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = settings.tile


def ordered(step: list[Row], trainer: str, settings: Settings) -> list[Row]:
    """The rows in the order of the micro-batches: the one with the least padding, if compact."""
    if not settings.compact:
        return step

    def padded_tokens(candidate: list[Row]) -> int:
        total = 0
        for start in range(0, len(candidate), settings.batch_size):
            batch = candidate[start : start + settings.batch_size]
            lengths = [(len(row["prompt_ids"]), len(row["completion_ids"])) for row in batch]
            # GRPO pads prompts and completions apart, SFT their sum.
            longest = map(max, zip(*lengths, strict=True)) if trainer == "grpo" else [0]
            total += len(batch) * max(sum(longest), max(map(sum, lengths)))
        return total

    keys = (
        lambda row: len(row["prompt_ids"]) + len(row["completion_ids"]),
        lambda row: (len(row["completion_ids"]), len(row["prompt_ids"])),
        lambda row: (len(row["prompt_ids"]), row["group"], len(row["completion_ids"])),
    )
    return min((sorted(step, key=key) for key in keys), key=padded_tokens)


def with_advantages(step: list[Row]) -> list[Row]:
    """GRPO's advantages with TRL's default scaling: within the group, by its deviation."""
    rewards: dict[int, list[float]] = {}
    for row in step:
        rewards.setdefault(row["group"], []).append(row["reward"])
    scale = {group: statistics.stdev(values) + 1e-4 for group, values in rewards.items()}
    mean = {group: statistics.fmean(values) for group, values in rewards.items()}
    return [
        {**row, "advantage": (row["reward"] - mean[row["group"]]) / scale[row["group"]]}
        for row in step
    ]


def shared_arguments(
    settings: Settings, count: int, folder: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Arguments of both trainers: one epoch over the rows is one optimizer step."""
    if count % settings.batch_size:
        raise ValueError(f"{count} rows do not divide into micro-batches of {settings.batch_size}")
    return {
        "output_dir": folder,
        "num_train_epochs": options.warmup + options.steps,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": count // settings.batch_size,
        "gradient_checkpointing": settings.checkpointing,
        "bf16": settings.bf16,
        "optim": options.optim,
        "use_liger_kernel": options.liger,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def build_sft(
    model: LlamaForCausalLM, step: list[Row], settings: Settings, arguments: dict[str, Any]
) -> SFTTrainer:
    columns = [
        {
            "input_ids": row["prompt_ids"] + row["completion_ids"],
            "completion_mask": [0] * len(row["prompt_ids"]) + [1] * len(row["completion_ids"]),
        }
        for row in step
    ]
    return SFTTrainer(
        model=model,
        args=SFTConfig(
            **arguments,
            completion_only_loss=True,
            # Not TRL's 1024, which would cut completions that the other trainers see whole.
            max_length=None,
            train_sampling_strategy="sequential" if settings.compact else "random",
        ),
        train_dataset=Dataset.from_list(columns),
        processing_class=build_tokenizer(),
    )


def build_grpo(
    model: LlamaForCausalLM, step: list[Row], settings: Settings, arguments: dict[str, Any]
) -> StoredGRPOTrainer:
    groups = {row["group"] for row in step}

    def no_reward(completions: list[Any], **kwargs: Any) -> list[float]:
        return [0.0] * len(completions)

    trainer = StoredGRPOTrainer(
        model=model,
        reward_funcs=no_reward,
        args=GRPOConfig(**arguments, num_generations=len(step) // len(groups)),
        train_dataset=Dataset.from_list([{"prompt": "stored"} for _ in groups]),
        processing_class=build_tokenizer(),
    )
    trainer.stored = with_advantages(step)
    trainer.compact = settings.compact
    return trainer


BUILDERS = {"sft": build_sft, "grpo": build_grpo}


def check(trainer: SFTTrainer | StoredGRPOTrainer, step: list[Row]) -> dict[str, float]:
    """Largest difference of TRL's log-probabilities from a plain computation, row by row.

    Also requires that the tokens TRL scores are the completions' and no others. Float32 only.
    """
    scored = grpo_scores(trainer) if isinstance(trainer, GRPOTrainer) else sft_scores(trainer)
    worst = 0.0
    for row in step:
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        with torch.no_grad():
            logits = trainer.model(ids.to(trainer.model.device)).logits[0, :-1].float().cpu()
        start = len(row["prompt_ids"]) - 1
        plain = logits.log_softmax(-1)[start:].gather(1, ids[0, start + 1 :, None])[:, 0]
        logps = scored.pop(tuple(row["completion_ids"]))
        worst = max(worst, (logps.cpu() - plain).abs().max().item())
    if scored:
        raise ValueError(f"TRL scored {len(scored)} sequences that are no row's completion")
    return {"largest_difference": worst}


def sft_scores(trainer: SFTTrainer) -> dict[tuple[int, ...], torch.Tensor]:
    """Completion as SFTTrainer's collated labels have it, to its log-probabilities."""
    result = {}
    for batch in trainer.get_train_dataloader():
        with torch.no_grad():
            output = trainer.model(**batch, fused_lm_head=True)
        for labels, logps in zip(batch["labels"][:, 1:], output.log_probs, strict=True):
            result[tuple(labels[labels != -100].tolist())] = logps[labels != -100]
    return result


def grpo_scores(trainer: StoredGRPOTrainer) -> dict[tuple[int, ...], torch.Tensor]:
    """Completion as GRPOTrainer's loss masks it, to its log-probabilities."""
    result = {}
    for index in range(trainer.args.steps_per_generation):
        trainer._step = index  # which micro-batch comes next
        batch = trainer._prepare_inputs([])
        ids, mask = batch["completion_ids"], batch["completion_mask"].bool()
        with torch.no_grad():
            logps, _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model,
                torch.cat([batch["prompt_ids"], ids], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                ids.size(1),
            )
        for row, kept, values in zip(ids, mask, logps, strict=True):
            result[tuple(row[kept].tolist())] = values[kept]
    return result


def report(
    options: argparse.Namespace, settings: Settings, workload: Workload, folder: str
) -> dict[str, Any]:
    """Build the model and the trainer, train, and describe the steps after the warm-up."""
    interpreter_mb = memory_mb("VmRSS")
    step = ordered(rows(workload), options.trainer, settings)
    model = build_model(workload)
    arguments = shared_arguments(settings, len(step), folder, options)
    trainer = BUILDERS[options.trainer](model, step, settings, arguments)
    trainer.remove_callback(PrinterCallback)  # standard output is for the one line of JSON
    clock = StepClock()
    trainer.add_callback(clock)
    result = {
        "peer": "trl",
        "trainer": options.trainer,
        "settings": options.settings,
        "optim": options.optim,
        "liger": options.liger,
        "checkpointing": settings.checkpointing,
        "workload": workload.name,
        "prompts": workload.prompts,
        "dtype": "bfloat16" if settings.bf16 else "float32",
        "threads": torch.get_num_threads(),
        "batch_size": settings.batch_size,
        "tile": settings.tile,
        "completion_tokens": completion_tokens(step),
    }
    if options.check:
        return result | check(trainer, step)
    trainer.train()
    seconds = clock.seconds[options.warmup :]
    result |= {
        "seconds": [round(value, 4) for value in seconds],
        "cpu_seconds": [round(value, 4) for value in clock.cpu_seconds[options.warmup :]],
        "completion_tokens_per_second": completion_tokens(step) / statistics.median(seconds),
        "peak_rss_mb": memory_mb("VmHWM"),
        "baseline_rss_mb": clock.baseline_mb,
        "interpreter_rss_mb": interpreter_mb,
        "state_mb": state_mb(model, trainer.optimizer.optimizer),
    }
    if torch.cuda.is_available():
        result["peak_cuda_mb"] = torch.cuda.max_memory_allocated() / MEGABYTE
        result["device"] = torch.cuda.get_device_name()
    packages = ("trl", "transformers", "torch", "accelerate", "datasets")
    packages += ("liger-kernel",) if options.liger else ()
    return result | {"versions": {name: version(name) for name in packages}}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--trainer", choices=sorted(BUILDERS), required=True)
    parser.add_argument("--settings", choices=("default", "best"), required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1, help="steps before the first timed one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="instead of the settings'")
    parser.add_argument("--batch-size", type=int, help="instead of the settings'")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction)
    parser.add_argument("--optim", default="adamw_torch_fused")
    parser.add_argument("--liger", action="store_true", help="Liger's kernels; needs a GPU")
    parser.add_argument("--tile", type=int, nargs=2, help="tokens and vocabulary of a head tile")
    parser.add_argument("--check", action="store_true", help="compare log-probabilities, no timing")
    return parser.parse_args(arguments)


def run(arguments: list[str]) -> dict[str, Any]:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    workload = chosen(options)
    settings = TRL_DEFAULTS if options.settings == "default" else BEST[workload.name]
    if options.dtype:
        settings = replace(settings, bf16=options.dtype == "bfloat16")
        if settings.bf16 and options.settings == "best":
            size = BFLOAT16_BATCH_SIZE.get((workload.name, options.trainer), settings.batch_size)
            settings = replace(settings, batch_size=size)
    if options.batch_size:
        settings = replace(settings, batch_size=options.batch_size)
    if options.checkpointing is not None:
        settings = replace(settings, checkpointing=options.checkpointing)
    if options.tile:
        settings = replace(settings, tile=tuple(options.tile))
    apply_settings(settings)
    with tempfile.TemporaryDirectory() as folder:
        return report(options, settings, workload, folder)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve(run)
    else:
        print(json.dumps(run(sys.argv[1:])))
