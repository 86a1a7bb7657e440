"""The probe: what it says of a model on its way, and that it takes nothing from the training."""

import pytest
import torch
from safetensors.torch import load_file
from test_log_file import CONFIG

from command_line import read_jsonl, write_jsonl
from rollouts_for_training import made_rows
from tiny import save_tiny
from topr.config import GradeConfig, ModelConfig, load_recipe
from topr.engines import transformers as transformers_engine
from topr.errors import ConfigError, EngineError, ModelError
from topr.progress import Silent
from topr.records import Problem, SamplingParams
from topr.stages import probe as stage
from topr.stages.probe import PROBES_FILE, ProbeSource, asked_source
from topr.stages.train import train_model

SOURCE = ProbeSource(
    problems=[
        Problem(id=f"v{i}", prompt=f"What is {i} + 2? The answer is", answer=str(i + 2))
        for i in range(6)
    ],
    grader="numeric",
    sampling=SamplingParams(max_tokens=6, seed=3),
    grade=GradeConfig(workers=1),
    batch_size=4,
)
SETTINGS = CONFIG.model_copy(
    update={"optim": "adamw_torch", "watch_steps": 2, "probe_problems": 4, "max_steps": 5}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    save_tiny(folder / "base")
    write_jsonl(folder / "rows.jsonl", made_rows())
    train(folder, "probed", probe=SOURCE)
    return folder


def train(folder, name, *, config=SETTINGS, probe=None):
    model = ModelConfig(path=str(folder / "base"), device="cpu")
    return train_model(
        model, [folder / "rows.jsonl"], config, folder / name, seed=0,
        progress=Silent(), probe=probe,
    )  # fmt: skip


def probes(folder, name):
    return read_jsonl(folder / name / "training" / PROBES_FILE)


def timeless(lines):
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def test_it_is_taken_before_the_first_step_now_and_then_and_after_the_last(folder):
    found = probes(folder, "probed")
    assert [line["step"] for line in found] == [0, 2, 4, 5]
    for line in found:
        assert line["probe/seconds"] > 0
        assert line["probe/accuracy"] * 4 in range(5)
        assert line["probe/ended"] * 4 in range(5)


def test_weights_and_log_are_those_of_a_training_without_one(folder):
    train(folder, "alone")
    a, b = (load_file(folder / name / "model/model.safetensors") for name in ("probed", "alone"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [read_jsonl(folder / name / "training/log.jsonl") for name in ("probed", "alone")]
    assert timeless(logs[0]) == timeless(logs[1])


def test_random_numbers_and_modes_are_left_as_they_were(folder, tmp_path, monkeypatch):
    """Also where the engine would use torch's own."""
    seen = []
    original = stage.Probe._probe

    def looked_at(self, step, control):
        model = self._trainer.model
        before = torch.random.get_rng_state(), [m.training for m in model.modules()]
        original(self, step, control)
        after = torch.random.get_rng_state(), [m.training for m in model.modules()]
        seen.append(torch.equal(before[0], after[0]) and before[1] == after[1])

    def noisy(*given, **also):
        torch.rand(3)
        return draw(*given, **also)

    draw = stage.draw
    monkeypatch.setattr(stage.Probe, "_probe", looked_at)
    monkeypatch.setattr(stage, "draw", noisy)
    train(folder, "looked", probe=SOURCE)
    assert seen == [True] * 4


def test_a_resumed_training_takes_the_same_probes(folder, monkeypatch):
    """Killed after the third step; the checkpoint is of the second, whose probe is not repeated."""
    on_step_end = stage.Probe.on_step_end

    def killed(self, args, state, control, **given):
        on_step_end(self, args, state, control, **given)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage.Probe, "on_step_end", killed)
        with pytest.raises(KeyboardInterrupt):
            train(folder, "resumed", probe=SOURCE)
    asked = []
    ask = stage.Probe._ask
    monkeypatch.setattr(
        stage.Probe, "_ask", lambda self, step: asked.append(step) or ask(self, step)
    )
    train(folder, "resumed", probe=SOURCE)
    assert asked == [4, 5]
    assert timeless(probes(folder, "resumed")) == timeless(probes(folder, "probed"))


def test_under_autocast_the_model_is_tried_in_its_own_numerics(folder, monkeypatch):
    """Where single tokens of bfloat16 would look like faults of a float32 model."""
    seen = []
    find = transformers_engine.find_batching

    def looked_at(model, *given, **also):
        seen.append((torch.is_autocast_enabled("cpu"), "forward" in model.__dict__))
        return find(model, *given, **also)

    monkeypatch.setattr(transformers_engine, "find_batching", looked_at)
    monkeypatch.setattr(transformers_engine, "SHARED_BYTES", 0)  # as of a real model's prompts
    train(folder, "autocast", config=SETTINGS.model_copy(update={"bf16": True}), probe=SOURCE)
    assert set(seen) == {(False, False)}
    assert [line["step"] for line in probes(folder, "autocast")] == [0, 2, 4, 5]


@pytest.mark.parametrize("error", [EngineError, ModelError, torch.OutOfMemoryError])
def test_an_engine_that_fails_ends_the_probe_and_not_the_training(
    folder, monkeypatch, caplog, error
):
    def out_of_memory(*_, **__):
        raise error("the device ran out of memory")

    monkeypatch.setattr(stage, "draw", out_of_memory)
    manifest = train(folder, f"failing-{error.__name__}", probe=SOURCE)
    assert manifest.details["steps"] == 5
    said = [r.getMessage() for r in caplog.records if "probe is off" in r.getMessage()]
    assert len(said) == 1
    assert "out of memory" in said[0]


def test_an_error_of_the_code_ends_the_training(folder, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(stage, "draw", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        train(folder, "broken", probe=SOURCE)


def test_where_nothing_is_watched_nothing_is_asked(folder):
    off = SETTINGS.model_copy(update={"watch": "off", "watch_steps": None})
    train(folder, "off", config=off, probe=SOURCE)
    assert not (folder / "off/training" / PROBES_FILE).exists()
    with pytest.raises(ConfigError, match="off"):
        asked_source(load_recipe("quickstart"), off, ModelConfig(path="unused"), Silent())


def test_a_probe_that_drops_stops_and_the_first_weights_are_the_model(folder, monkeypatch):
    """As if no completion ended any more: 32 of 32, then 0."""
    ask = stage.Probe._ask

    def worse(self, step):
        found = ask(self, step)
        changed = {name: getattr(found, name) for name in found.__slots__}
        return type(found)(**changed | {"completions": 32, "ended": 32 if step == 0 else 0})

    monkeypatch.setattr(stage.Probe, "_ask", worse)
    stop = SETTINGS.model_copy(update={"watch": "stop"})
    details = train(folder, "dropping", config=stop, probe=SOURCE).details
    assert [(a["kind"], a["step"]) for a in details["watch"]["alarms"]] == [("ended_drops", 2)]
    assert details["steps"] == details["watch"]["kept_step"] == 0
    base, model = (
        load_file(path / "model.safetensors")
        for path in (folder / "base", folder / "dropping/model")
    )
    assert all(torch.equal(base[name], model[name]) for name in model)
    left = {path.name for path in (folder / "dropping/training").iterdir()}
    assert left == {"log.jsonl", "examples.parquet", "manifest.json", ".lock", PROBES_FILE}
