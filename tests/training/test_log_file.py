"""The run's own log is on disk while training goes on."""

import json

import pytest
import torch
from transformers import TrainerCallback

from command_line import write_jsonl
from rollouts_for_training import made_rows
from tiny import save_tiny
from topr.config import ModelConfig, TrainConfig
from topr.errors import DivergedError
from topr.progress import Silent
from topr.stages import train as stage
from topr.stages.train import train_model

CONFIG = TrainConfig(batch_size=4, learning_rate=1e-3, optim="sgd", save_steps=2, max_steps=4)


def run(folder, name):
    model = ModelConfig(path=str(folder / "base"), device="cpu")
    return train_model(
        model, [folder / "rows.jsonl"], CONFIG, folder / name, seed=0, progress=Silent()
    )


def log(folder, name):
    text = (folder / name / "training/log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    save_tiny(folder / "base")
    write_jsonl(folder / "rows.jsonl", made_rows())
    run(folder, "straight")
    return folder


class Break(TrainerCallback):
    """After the third step the weights are no numbers, so that the fourth diverges."""

    def on_step_end(self, args, state, control, model=None, **_):
        if state.global_step == 3:
            with torch.no_grad():
                model.get_input_embeddings().weight.fill_(float("nan"))


def test_a_training_that_diverges_keeps_its_log_and_one_that_goes_on_does_not_repeat_it(
    folder, monkeypatch
):
    marks = stage.CompleteCheckpoints
    with monkeypatch.context() as patch:
        patch.setattr(stage, "CompleteCheckpoints", lambda given: [marks(given), Break()])
        patch.setattr(
            stage, "TOPRTrainer",
            lambda callbacks, train=stage.TOPRTrainer, **given: train(
                callbacks=[*callbacks[0], *callbacks[1:]], **given
            ),
        )  # fmt: skip
        with pytest.raises(DivergedError, match="step 3"):
            run(folder, "broken")
    assert [line["step"] for line in log(folder, "broken")] == [1, 2, 3]
    assert "weight_histogram" in log(folder, "broken")[2]
    assert log(folder, "broken")[:2] == [
        line | {"tokens_per_second": there["tokens_per_second"]}
        for line, there in zip(log(folder, "straight"), log(folder, "broken")[:2], strict=False)
    ]
    run(folder, "broken")  # goes on from the checkpoint of its second step
    assert [line["step"] for line in log(folder, "broken")] == [1, 2, 3, 4]
    assert [line["loss"] for line in log(folder, "broken")] == [
        line["loss"] for line in log(folder, "straight")
    ]
