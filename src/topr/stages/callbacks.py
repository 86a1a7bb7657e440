"""Callbacks of the train stage: complete checkpoints, the log, snapshots, the progress bar."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from topr.progress import Advance
from topr.store import write_text_atomic
from topr.training.distributed import DistributedContext

COMPLETE = "complete"
"""Marks a checkpoint that was written to its end."""


class CompleteCheckpoints(TrainerCallback):
    """Marks each checkpoint once it is whole, so that a killed one is never resumed from."""

    def __init__(self, distributed: DistributedContext) -> None:
        """Mark what these processes have all written their part of."""
        self._distributed = distributed

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write no checkpoint at the last step."""
        # Resumed from a checkpoint of its last step, the Trainer would take one step more.
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint that was just written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._distributed.barrier()
        if self._distributed.is_rank0 and folder.is_dir():
            write_text_atomic(folder / COMPLETE, "")


class LogFile(TrainerCallback):
    """Writes the run's own log while training runs: one that is killed or diverges has it too."""

    def __init__(self, path: Path) -> None:
        """Write `path`, in the process that writes files."""
        self._path = path
        self._written = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the file with what a resumed training has logged."""
        if state.is_world_process_zero:
            write_text_atomic(self._path, log_lines(state.log_history))
        self._written = len(state.log_history)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Append what was logged of earlier steps: an entry is whole when its step is over."""
        lines, self._written = log_lines(state.log_history[self._written :]), len(state.log_history)
        if lines and state.is_world_process_zero:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(lines)


def log_lines(history: Sequence[Mapping[str, Any]], key: str = "loss") -> str:
    """Return the Trainer's entries that have a key, a JSON object a line; of steps by default.

    Numbers have the nine digits that tell float32 numbers apart.
    """
    entries = [entry for entry in history if key in entry]
    return "".join(json.dumps({k: _short(v) for k, v in e.items()}) + "\n" for e in entries)


def _short(value: Any) -> Any:
    return float(f"{value:.9g}") if isinstance(value, float) else value


class Bar(TrainerCallback):
    """Moves the progress bar."""

    advance: Advance

    def __init__(self, start: Callable[[], Advance]) -> None:
        """Move what `start` returns; it is called when training begins."""
        self._start = start

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin, where a resumed training starts."""
        self.advance = self._start()
        self.advance(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the mean log rho of negatives."""
        if logs and "loss" in logs:
            ratio = logs.get("log_ratio/negative")
            note = "" if ratio is None else f"log rho of negatives {ratio:+.2f}"
            self.advance(0, note=note)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move by a step."""
        self.advance(1)


class Snapshots(TrainerCallback):
    """Keeps the model as it is after some optimizer steps."""

    def __init__(self, steps: Sequence[int], folder: Path, save: Callable[[Path], None]) -> None:
        """Write `folder/step-N` with `save` after each of the steps.

        A resumed training that comes to a step again writes the same weights again.
        """
        self._steps = frozenset(steps)
        self._folder = folder
        self._save = save

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save, if this is one of the steps."""
        if state.global_step in self._steps:
            self._save(snapshot(self._folder, state.global_step))


def snapshot(folder: Path, step: int) -> Path:
    """Return where the model after a step lies."""
    return folder / f"step-{step:06d}"
