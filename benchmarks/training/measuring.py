"""What both sides of the training benchmark share: the model, the clock of a step, memory."""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from workloads import EOS_ID, PAD_ID, Workload

MODEL_SEED = 0
MEGABYTE = 1 << 20


def build_model(workload: Workload) -> LlamaForCausalLM:
    torch.manual_seed(MODEL_SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        dtype = getattr(torch, workload.parameters)
        return LlamaForCausalLM._from_config(LlamaConfig(**workload.model), dtype=dtype)


def build_tokenizer(size: int = 2) -> PreTrainedTokenizerFast:
    """Only its special tokens and its size are ever read: the rows are token ids already."""
    words = {"<pad>": PAD_ID, "<eos>": EOS_ID} | {f"w{i}": i for i in range(2, size)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")),  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        eos_token="<eos>",  # noqa: S106
    )


class StepClock(TrainerCallback):
    """Seconds from the end of one optimizer step to the end of the next, and memory.

    So a step holds its collation, forward, backward, clipping, update and zero_grad. Processor
    seconds, of all threads, tell how far another job on the machine disturbed the others.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.baseline_mb = 0.0
        self._last = self._last_cpu = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        materialise_state(kwargs["model"], kwargs["optimizer"].optimizer)
        self.baseline_mb = memory_mb("VmRSS")
        kwargs["model"].zero_grad()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._last, self._last_cpu = now(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        end, end_cpu = now(), time.process_time()
        self.seconds.append(end - self._last)
        self.cpu_seconds.append(end_cpu - self._last_cpu)
        self._last, self._last_cpu = end, end_cpu


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def memory_mb(field: str) -> float:
    """`VmRSS` (resident now) or `VmHWM` (its peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {field}")


def state_mb(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Parameters, their gradients, and what the optimizer keeps."""
    kept = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [*model.parameters(), *(x for x in kept if torch.is_tensor(x))]
    trained = [p for p in model.parameters() if p.requires_grad]
    return sum(x.numel() * x.element_size() for x in (*tensors, *trained)) / MEGABYTE


def materialise_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make gradients and optimizer state exist; an update by gradients of zero changes nothing."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.0)
    optimizer.step()


def serve(run: Callable[[list[str]], dict[str, Any]]) -> None:
    """Run each line of arguments on standard input in a fork of this process, and print its JSON.

    The imports, most of a short run's seconds, are done once, and a run's memory is still its own:
    the peak of a forked process begins with what is resident at the fork. Pages of libraries that
    it comes to use count with it, some 20 MB. Nothing may be computed before, since threads do not
    survive a fork.
    """
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            print(json.dumps(run(shlex.split(line))), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"the run failed: {line}")
