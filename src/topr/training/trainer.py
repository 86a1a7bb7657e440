"""`TOPRTrainer`: a `transformers.Trainer` that turns the weights of an objective into a gradient.

It does not sample, grade or choose: rows come graded, with the behaviour's log-probabilities or
with `recompute` asked for.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from topr.config import ModelConfig
from topr.errors import ConfigError
from topr.models.adapters import keeps_base, put_adapter
from topr.models.facts import eos_ids
from topr.models.loading import load_model, load_tokenizer
from topr.objectives import Objective
from topr.store import write_json_atomic
from topr.training.arguments import TOPRConfig, load_models_whole
from topr.training.batches import Row
from topr.training.behavior import COLUMN, Behavior, BehaviorPolicies, LogprobMismatch
from topr.training.checks import (
    baseline_of,
    check_arguments,
    check_gradient,
    skipping_of,
    validate_model,
    warn_idle_baseline,
)
from topr.training.compiling import compile_layers, leave_compiling_to_us
from topr.training.data import prepare_rows
from topr.training.diagnostics import NoEffectWarnings, StepStatistics, diverged, warn_of_rewards
from topr.training.distributed import distributed_context
from topr.training.fitting import fitting_forward
from topr.training.last_good import LastGood
from topr.training.loader import loader_of
from topr.training.mapped_rows import numbers_of, with_column
from topr.training.memory import TrimMemory
from topr.training.ordering import ShuffledBatches, assign_to_ranks, validate_order, write_order
from topr.training.passes import Passes
from topr.training.sharding import (
    broadcast_weights,
    checkpoint_in_pieces,
    keep_unwrapped,
    reads_weights,
    shard_on_cpu,
    validate_sharding,
)
from topr.training.step import Step
from topr.training.watch import WATCH_FILE, Watch, advice


class TOPRTrainer(Trainer):
    """Trains a causal language model on graded completions.

    The loss on the N completions of an optimizer step is

        loss = -1/N sum_i s_i sum_t w_it log pi(y_it | x_i, y_i<t),

    with w the objective's weights (no gradient flows through them) and s_i the loss normalisation
    (1/|y_i| by default). For TOPR, w_it = A_i [rho_i]: arXiv 2503.14286.

    One batch of the loader is one step's completions. Processes that train together see the same
    batches; each computes its share, and the gradient is the sum. A share is split into
    micro-batches. Neither changes the gradient, but memory and time.

    Args:
        model: a causal language model, or the path or hub name of one.
        args: a `TOPRConfig`.
        train_dataset: rows of `prompt`, `completion`, `reward`, and where there are, ids, logprobs
            and sampling parameters: see `topr.training.data.prepare_rows`.
        processing_class: the tokenizer; defaults to the model's own.
        callbacks: of transformers.
        peft_config: of peft, to train an adapter; without it the model is what wrote the rows where
            `behavior_model` names none.
        behavior_model: who wrote the completions, for `behavior_logprobs=recompute`: one model, or
            `BehaviorPolicies` of several; defaults to `model` as it is before the first step.
        optimizers: optimizer and schedule, instead of those that `args` names.

    Raises:
        ToprError: data, configuration or model do not fit, before any step is taken.

    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: TOPRConfig | None = None,
        train_dataset: Iterable[Mapping[str, Any]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        behavior_model: nn.Module | BehaviorPolicies | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = args if args is not None else TOPRConfig(output_dir="topr-output")
        if train_dataset is None:
            raise ConfigError("TOPRTrainer needs a train_dataset of prompt, completion and reward")
        self.settings = args
        self.objective: Objective = check_arguments(args)
        self.normalization = args.loss_normalization or self.objective.normalization
        self.directory = Path(args.output_dir or "topr-output")
        self.distributed = distributed_context(args)
        path = model if isinstance(model, str) else model.config.name_or_path
        self.tokenizer: PreTrainedTokenizerBase = (
            processing_class or load_tokenizer(ModelConfig(path=path))
        )  # fmt: skip
        loaded: Any = model
        if isinstance(model, str):
            loaded = load_model(ModelConfig(path=model), read=reads_weights(args))
        if peft_config is not None:
            set_seed(args.seed)  # An adapter begins with random numbers.
            loaded = put_adapter(loaded, peft_config)
        validate_model(args, loaded)
        self._prepare_rows(train_dataset, loaded)
        super().__init__(
            model=loaded,
            args=args,
            train_dataset=self.rows,
            processing_class=self.tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.loss_is_scaled_for_ga = True  # The loss is divided by the whole step's completions.
        self.behavior_gap: LogprobMismatch | None = None
        self._behavior_model = behavior_model
        self._base_is_as_given = keeps_base(peft_config)
        self.sharded: bool = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self._prepare_passes(loaded)
        self._prepare_statistics()

    def _prepare_rows(self, dataset: Iterable[Mapping[str, Any]], model: Any) -> None:
        """Read and check the rows, and what objective and baseline make of them."""
        args = self.settings
        self.rows, self.composition = prepare_rows(
            dataset,
            self.tokenizer,
            vocabulary=int(model.get_input_embeddings().weight.shape[0]),
            max_length=args.max_length,
            mask_truncated=args.mask_truncated,
            keep_greedy=not self.objective.uses.ratio,
            eos_ids=eos_ids(model, self.tokenizer),
            folder=self.directory,
            distributed=self.distributed,
        )
        self.baseline, self.effective_positive_share = baseline_of(
            args, self.composition, self.objective
        )
        rewards, groups = numbers_of(self.rows, "reward"), numbers_of(self.rows, "group")
        warn_of_rewards(self.objective, rewards, self.baseline)
        check_gradient(args.objective, self.objective, rewards, groups, self.baseline)
        warn_idle_baseline(args, self.objective, rewards)
        # Wrong groups must be refused now, not after the behaviour was recomputed.
        self._batches = ShuffledBatches(
            groups,
            args.batch_size(self.distributed.world_size),
            seed=args.seed,
            whole_groups=bool(self.objective.needs_group) or args.shuffle_by == "prompt",
        )

    def _prepare_passes(self, model: nn.Module) -> None:
        """Find out how the model is run."""
        if not self.sharded:
            keep_unwrapped(model, self.accelerator, self.distributed)
        self._read_weights: dict[str, Tensor] | None = None
        if self.is_fsdp_enabled:
            self._read_weights = model.state_dict() if self.distributed.is_rank0 else {}
        self.forward = self.distributed.run_on_rank0(
            lambda: fitting_forward(model, self.rows, self.settings.layout)
        )
        if self.settings.torch_compile:
            compile_layers(model, self.settings)
        self._passes = Passes(
            self.forward,
            self.accelerator,
            self.distributed,
            tokens=self.settings.micro_batch_tokens,
            sharded=self.sharded,
        )
        self._parameter_count: int = sum(p.numel() for p in model.parameters())

    def _prepare_statistics(self) -> None:
        """Start what steps are counted and judged by."""
        args = self.settings
        self._skipping = skipping_of(args, self.objective)
        size = 1 + int(numbers_of(self.rows, "row").max())
        self._last_taper = np.full(size, np.nan, dtype=np.float32)
        self._statistics = StepStatistics()
        self._no_effect = NoEffectWarnings(self.objective)
        self.watch = Watch(
            args.watch,
            keep=LastGood(self.directory, self.distributed) if args.watch == "stop" else None,
            every=args.watch_steps,
            advice=advice(args, self.effective_positive_share),
        )
        self.add_callback(self._no_effect)
        self.add_callback(self.watch)
        if args.device.type == "cpu":
            self.add_callback(TrimMemory())

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train; see `transformers.Trainer.train`. Measures the behaviour gap before it starts.

        Where `watch=stop` ended it, the model has the last good weights.

        Raises:
            TrainingError: the checkpoint's batches are not this training's.
            DivergedError: a loss or gradient is NaN or infinite. The rows of the batch are in
                `diverged.json` in the output directory; the last checkpoint stays.

        """
        last = resume_from_checkpoint
        if last is True:
            last = get_last_checkpoint(str(self.directory))  # type: ignore[no-untyped-call]
        if last:
            validate_order(self._batches, Path(last))
            self.watch.load(Path(last) / WATCH_FILE)
        if not self.sharded:
            self.prepare_behavior()
        self._statistics = StepStatistics()  # its clock starts here
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self.watch.restore(self.model)
        return output

    def leave_out(self, seconds: float) -> None:
        """Leave time out of `tokens_per_second` that was not spent on training."""
        self._statistics.since += seconds

    def create_accelerator_and_postprocess(self) -> None:
        """See `transformers.Trainer`. Shards on CPUs too."""
        checkpoint_in_pieces(self.settings)
        super().create_accelerator_and_postprocess()
        load_models_whole()
        leave_compiling_to_us(self.accelerator)
        shard_on_cpu(self.accelerator, self.settings)
        validate_sharding(self.accelerator, self.settings)
        self.is_fsdp_enabled = self.accelerator.is_fsdp2

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """See `transformers.Trainer`. Weights are sharded by now, and no checkpoint is loaded."""
        # Given an optimizer, a copy of this trainer is asked while DeepSpeed is being set up.
        if self.sharded and optimizer is None:
            if self._read_weights is not None:
                broadcast_weights(self.model, self._read_weights)
                self._read_weights = None
            self.prepare_behavior()
        return super().create_scheduler(num_training_steps, optimizer)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = self.directory / f"checkpoint-{self.state.global_step}"
        if self.distributed.is_rank0 and folder.is_dir():
            write_order(self._batches, folder)
            write_json_atomic(folder / WATCH_FILE, self.watch.state())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the whole model as safetensors, however it is sharded. All processes call this."""
        if self.is_fsdp_enabled and not _internal_call:
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
        else:
            super().save_model(output_dir, _internal_call)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of one step's rows at a time, shuffled by (seed, epoch)."""
        return loader_of(lambda n: self.rows.__getitems__(n), self._batches, self.settings)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Run forward and backward over this process's share of one loader batch, then sum up."""
        rows: Sequence[Row] = inputs["rows"]
        items = int(num_items_in_batch or len(rows))
        loss, step = self._passes.run_batch(model, self.state.global_step, rows, items, self._step)
        loss = step.gather(loss, self.distributed.sum)
        if self.accelerator.sync_gradients and not self.sharded:
            self.distributed.sum_gradients(model.parameters())
        if not torch.isfinite(loss) or not torch.isfinite(step.log_ratio_B).all():
            self._stop_diverged(f"the loss is {loss.item()}", rows)
        self._last_rows = rows
        self._last_taper[[row["row"] for row in rows]] = step.taper_B.cpu().numpy()
        self._statistics.add_step(step)
        self._no_effect.add_step(step, self.state.global_step)
        self.watch.add_step(step)
        return loss

    def _step(self, rows: Sequence[Row], items: int) -> Step:
        own = assign_to_ranks(
            rows, self.distributed.world_size, whole_groups=bool(self.objective.needs_group)
        )
        return Step(
            rows,
            objective=self.objective,
            baseline=self.baseline,
            normalization=self.normalization,
            constant=self.settings.normalization_constant,
            items=items,
            device=self.args.device,
            skipping=self._skipping,
            number=self.state.global_step,
            last_taper=self._last_taper[[row["row"] for row in rows]],
            own=own[self.distributed.rank],
        )

    def prepare_behavior(self, progress: Callable[[int], None] | None = None) -> None:
        """Fix log mu for the whole run, and measure the gap between its two sources.

        `train` does this where it was not done. `progress` receives the number of completions
        recomputed.
        """
        if COLUMN in self.rows.column_names:
            return
        behavior = Behavior(
            model=self.accelerator.unwrap_model(self.model),
            forward=self.forward,
            given=self._behavior_model,
            layout=self.settings.layout,
            directory=self.directory,
            tokens=self._passes.tokens,
            distributed=self.distributed,
            sharded=self.sharded,
            numerics=self.accelerator.mixed_precision,
        )
        source = self.settings.behavior_logprobs
        # In the numerics of the training steps, by the model as it was given.
        with self.accelerator.autocast(), self._as_given():
            logprobs, self.behavior_gap = behavior.logprobs(self.rows, source, progress)
        self.rows = self.train_dataset = with_column(self.rows, COLUMN, logprobs)

    def _as_given(self) -> AbstractContextManager[None]:
        """Switch a new adapter off, for a while: what is left is the model that it was put on."""
        if not self._base_is_as_given:
            return nullcontext()
        model: Any = self.accelerator.unwrap_model(self.model)
        off: AbstractContextManager[None] = model.disable_adapter()
        return off

    def _get_num_items_in_batch(
        self, batch_samples: list[Any], device: torch.device
    ) -> Tensor | int | None:
        """Count the completions of the whole optimizer step, over all its batches."""
        return sum(len(batch["rows"]) for batch in batch_samples)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient's norm, or stop: clipping by NaN would destroy the weights."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        if norm is None:  # DeepSpeed need not tell it.
            return norm
        if not self.args.fp16 and not torch.isfinite(torch.as_tensor(float(norm))):
            self._stop_diverged(f"the gradient's norm is {float(norm)}", self._last_rows)
        return norm

    def _stop_diverged(self, what: str, rows: Sequence[Row]) -> None:
        if not self.is_deepspeed_enabled:  # That takes its step within the backward pass.
            what += "; the weights were not changed by this step"
        path, write = self.directory / "diverged.json", self.distributed.is_rank0
        raise diverged(self.state.global_step, what, rows, path, write=write)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step's numbers, and keep the histogram of taper weights in the history."""
        if "loss" not in logs:
            super().log(logs, start_time)
            return
        statistics, self._statistics = self._statistics, StepStatistics()
        logs |= statistics.summary()
        if self.effective_positive_share is not None:
            logs["effective_positive_share"] = self.effective_positive_share
        logs["tokens_per_second"] = statistics.tokens_per_second
        if self.behavior_gap is not None and self.state.global_step <= self.args.logging_steps:
            logs |= self.behavior_gap.as_log()
        super().log(logs, start_time)
        entry: dict[str, Any] = self.state.log_history[-1]
        entry["weight_histogram"] = statistics.histogram()
        if alarms := self.watch.new_alarms():
            entry["alarms"] = alarms

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 6 x tokens x parameters, the usual estimate of a step's work, of this process."""
        rows = inputs["rows"]
        tokens: int = sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
        return 6 * tokens * self._parameter_count // self.distributed.world_size
