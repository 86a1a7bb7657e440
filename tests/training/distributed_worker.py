"""Trains the cases of `test_distributed` in each of the processes that a launcher starts.

    torchrun ... distributed_worker.py DIRECTORY whole|sharded|resumed|zero

Each process writes what it ended with: `CASE-RANK.safetensors` and `CASE-RANK.json`. No tests here.
"""

import contextlib
import json
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from rollouts_for_training import made_rows, plain_logprobs
from tiny import tiny_model, tiny_tokenizer
from topr.errors import DivergedError, TrainingError
from topr.training import TOPRConfig, TOPRTrainer
from topr.training.logprobs import Forward

CASES = {
    "topr": {},
    "padded": {"layout": "padded", "micro_batch_tokens": 60},
    "by_prompt": {"shuffle_by": "prompt", "layout": "shared"},
    "grpo": {"objective": "grpo"},
    "dpo": {"objective": "dpo"},
    "accumulation": {"global_batch_size": 4, "gradient_accumulation_steps": 2},
    "skip": {"skip_negatives": 0.5},
    "sample": {"skip_negatives": "sample"},
    "tiny_passes": {"micro_batch_tokens": 1},
    "out_of_memory": {"micro_batch_tokens": 200},  # of the second process, once
    "single_rows": {"global_batch_size": 1, "max_steps": 6},  # one process has nothing to do
    "uneven": {"global_batch_size": 7},
    # In three passes, of which the second process makes one.
    "recompute": {"behavior_logprobs": "recompute", "micro_batch_tokens": 100},
    "scarce_recompute": {"behavior_logprobs": "recompute", "micro_batch_tokens": 100},
    "adamw": {"optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 0.1},
    "adafactor": {"optim": "adafactor", "learning_rate": 1e-3, "max_grad_norm": 0.1},
    "lora": {"learning_rate": 0.1},
}
"""Arguments of each training."""
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")


def drifted_rows():
    """Rows of another writer, with ratios where the taper bends; prompts of several sizes."""
    rows = made_rows(prompts=6, model=tiny_model(seed=1))[:-3]
    for row in rows:
        ours = plain_logprobs(tiny_model(), row).detach()
        theirs = torch.tensor(row["logprobs"])
        row["logprobs"] = (ours + 0.05 * (theirs - ours)).clamp(max=0).tolist()
    return rows


def trainer_of(directory, case, **further):
    settings = {
        "output_dir": str(directory / case),
        "global_batch_size": 8,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "optim": "sgd",
        "learning_rate": 0.003,
        "num_train_epochs": 3,
        "max_grad_norm": 0.0,
        "seed": 5,
        "dataloader_pin_memory": False,
    }
    return TOPRTrainer(
        model=MODELS.get(case, tiny_model)(),
        args=TOPRConfig(**(settings | further)),
        train_dataset=drifted_rows(),
        processing_class=tiny_tokenizer(),
        peft_config=LORA if "lora" in case else None,
    )


def trained(directory, case, **arguments):
    """Train a case; return its weights and its log."""
    trainer = trainer_of(directory, case, **arguments)
    if case == "out_of_memory" and trainer.distributed.rank == 1:
        run_out_of_memory(trainer)
    if case == "scarce_recompute" and trainer.distributed.rank == 1:
        recompute_in_scarce_memory(trainer)
    trainer.train()
    return ended(trainer)


def ended(trainer):
    """The weights, whole, and the log."""
    return whole_weights(trainer.model), trainer.state.log_history


def whole_weights(model):
    whole = (
        (n, p.full_tensor() if isinstance(p, DTensor) else p) for n, p in model.named_parameters()
    )
    return {name: p.detach().clone() for name, p in whole}


def run_out_of_memory(trainer):
    """Fail in the second pass, in this process alone, after it left a gradient of its own."""
    backward, calls = trainer.accelerator.backward, []

    def failing(loss):
        calls.append(loss)
        backward(loss)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    trainer.accelerator.backward = failing


def recompute_in_scarce_memory(trainer):
    """Recompute log mu with memory for passes of 40 tokens alone, in this process."""
    refused, plain = [], Forward.token_logprobs

    def scarce(self, model, batch):
        if batch.input_ids.numel() > 40:
            refused.append(batch)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(self, model, batch)

    with patch.object(Forward, "token_logprobs", scarce):
        trainer.prepare_behavior()
    assert len(refused) >= 2  # halved to 48, and to 24


def diverged(directory):
    """What is said where one process alone meets a NaN."""
    trainer = trainer_of(directory, "diverged")
    if trainer.distributed.rank == 1:
        score = trainer._passes.forward.weighted_loss

        class Broken:
            split = staticmethod(trainer.forward.split)
            token_logprobs = staticmethod(trainer.forward.token_logprobs)
            of = staticmethod(trainer.forward.of)
            batch = staticmethod(trainer.forward.batch)

            @staticmethod
            def weighted_loss(*given):
                loss, logprobs = score(*given)
                return loss * float("nan"), logprobs

        trainer._passes.forward = Broken()
    try:
        trainer.train()
    except DivergedError as error:
        return str(error)
    return "nothing"


SHARDED = {
    "topr": {},
    "tied": {},
    "padded": {"layout": "padded", "micro_batch_tokens": 60},
    "plain_head": {},
    "grpo": {"objective": "grpo", "layout": "shared", "shuffle_by": "prompt"},
    "skip": {"skip_negatives": 0.5, "micro_batch_tokens": 60},
    "single_rows": {"global_batch_size": 1, "max_steps": 6},
    "accumulation": {"global_batch_size": 4, "gradient_accumulation_steps": 2},
    "recompute": {"behavior_logprobs": "recompute", "micro_batch_tokens": 100},
    "adamw": {"optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 0.1},
    "lora": {"learning_rate": 0.1, "behavior_logprobs": "recompute"},
}
"""Arguments of each training with sharded weights, by FSDP2 and by DeepSpeed."""
MODELS = {
    "tied": lambda: tiny_model(tie_word_embeddings=True),
    "plain_head": lambda: tiny_model("gemma2"),  # soft-capped logits: the model's own head
}
FSDP = {"fsdp": True, "fsdp_config": {"version": 2}}


def zero_of(stage):
    """DeepSpeed's configuration: what a user writes, in float32."""
    return {
        "zero_optimization": {
            "stage": stage, "stage3_gather_16bit_weights_on_model_save": True,
            "stage3_param_persistence_threshold": 0,  # small weights are in pieces as well
        },
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }  # fmt: skip


RESUMED = {
    "save_strategy": "steps",
    "save_steps": 2,
    "optim": "adamw_torch",
    "learning_rate": 1e-4,
    "lr_scheduler_type": "linear",
}
"""Arguments of a training that is killed after its fifth step."""


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5:
            raise KeyboardInterrupt


def killed(trainer):
    trainer.add_callback(Kill())
    with contextlib.suppress(KeyboardInterrupt):
        trainer.train()


class Begin(TrainerCallback):
    """Keeps the weights from before the first step."""

    def on_train_begin(self, args, state, control, model, **_):
        self.weights = whole_weights(model)


def read_once(directory, case):
    """Train a model that is read from disk; keep how often weights were read, and what they are."""
    arguments = {"output_dir": str(directory / f"{case}-out"), "use_cpu": True, "max_steps": 1}
    begin = Begin()
    opened = patch("transformers.modeling_utils.safe_open", side_effect=safe_open)
    with opened as spy:
        trainer = TOPRTrainer(
            model=str(directory / case),
            args=TOPRConfig(
                **arguments, **FSDP, optim="sgd", save_strategy="no", disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=made_rows(),
            callbacks=[begin],
        )  # fmt: skip
        trainer.train()
    write(directory, case, begin.weights, {"read": spy.call_count})


def write(directory, case, weights, log):
    rank = torch.distributed.get_rank()
    save_file(weights, directory / f"{case}-{rank}.safetensors")
    (directory / f"{case}-{rank}.json").write_text(json.dumps(log))


def whole(directory):
    """Each process has all weights."""
    for case, arguments in CASES.items():
        write(directory, case, *trained(directory, case, **arguments))
    rank = torch.distributed.get_rank()
    (directory / f"diverged-{rank}.txt").write_text(diverged(directory))
    killed(trainer_of(directory, "broken", **RESUMED))


def sharded(directory):
    """Each process has a piece of each weight."""
    for case, arguments in SHARDED.items():
        trainer = trainer_of(directory, case, **arguments, **FSDP)
        trainer.train()
        assert isinstance(trainer.model, FSDPModule)
        assert all(isinstance(p, DTensor) for p in trainer.model.parameters())
        assert all(
            p.to_local().numel() < p.numel() for p in trainer.model.parameters() if len(p) > 1
        )
        write(directory, case, *ended(trainer))
        trainer.save_model(str(directory / f"{case}-saved"))
    for case in ("stored", "stored_tied"):
        read_once(directory, case)
    killed(trainer_of(directory, "broken", **RESUMED, **FSDP))
    try:
        trainer_of(directory, "adafactor", optim="adafactor", **FSDP)
    except TrainingError as error:
        (directory / "refused.txt").write_text(str(error))


def resumed(directory):
    """Sharded training goes on, with any number of processes."""
    trainer = trainer_of(directory, "broken", **RESUMED, **FSDP)
    trainer.train(resume_from_checkpoint=True)
    write(directory, "resumed", *ended(trainer))


def zero(directory):
    """DeepSpeed shards optimizer state, gradients and (stage 3) weights."""
    import deepspeed

    # Its operation in shared memory would be compiled first; gloo adds up as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for stage, case in ((0, "topr"), (2, "topr"), (2, "adamw"), *((3, case) for case in SHARDED)):
        name = f"{case}-{stage}"
        trainer = trainer_of(directory, case, **SHARDED[case], deepspeed=zero_of(stage))
        trainer.train()
        if stage == 3:
            assert all(p.numel() == 0 < p.ds_numel for p in trainer.model.parameters())
        (directory / f"{name}-{trainer.distributed.rank}.json").write_text(
            json.dumps(trainer.state.log_history)
        )
        trainer.save_model(str(directory / f"{name}-saved"))
    killed(trainer_of(directory, "broken", **RESUMED, deepspeed=zero_of(3)))
    trainer = trainer_of(directory, "broken", **RESUMED, deepspeed=zero_of(3))
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model(str(directory / "resumed-saved"))
    unfit = zero_of(3)
    del unfit["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    other = zero_of(2) | {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}
    refused = []
    for arguments in (
        {"optim": "adafactor", "deepspeed": zero_of(2)},
        {"deepspeed": unfit},
        {"deepspeed": other},
    ):
        try:
            trainer_of(directory, "refused", **arguments)
        except TrainingError as error:
            refused.append(str(error))
    (directory / "refused.txt").write_text("\n".join(refused))


if __name__ == "__main__":
    train = {"whole": whole, "sharded": sharded, "resumed": resumed, "zero": zero}[sys.argv[2]]
    train(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
