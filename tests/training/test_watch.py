"""What a training looks like that ruins its model, and what happens then."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from test_trainer import _Kill, make_trainer
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from rollouts_for_training import made_rows
from topr.config import TrainConfig
from topr.config.mistakes import validate
from topr.errors import ConfigError, TrainingError
from topr.training import TOPRConfig
from topr.training.alarms import AlarmKind, Probed, chance_of_drop
from topr.training.checks import check_arguments
from topr.training.distributed import SINGLE_PROCESS
from topr.training.last_good import LAST_GOOD, LastGood
from topr.training.watch import Watch

# Mean log rho of positives and negatives, step by step: Qwen2.5-Coder-0.5B on GSM8K, AdamW at 1e-5
# without warm-up, 8 % positives in batches of 32 by prompt. The third has no positive.
TRIAL = [(-0.1, -0.1), (-1.9, -1.6), (None, -15.4), (-17.2, -25.7), (-11.5, -14.0), (-12.0, -14.0)]
HEALTHY = [(0.02 * step, -0.06 * step) for step in range(60)]
"""As the built-in task at its best rate."""


def steps_of(means, positives=2, negatives=30):
    """Steps whose completions lie close to the means."""
    positives_each = positives
    for positive, negative in means:
        positives = 0 if positive is None else positives_each
        ratios = [positive] * positives + [negative + 0.1 * (i % 3 - 1) for i in range(negatives)]
        signs = [1.0] * positives + [-1.0] * negatives
        yield SimpleNamespace(log_ratio_B=torch.tensor(ratios), advantage_B=torch.tensor(signs))


def play(watch, steps, first=0):
    """Give a watch the steps of a training; return the step at which it stops, if it does."""
    control = SimpleNamespace(should_training_stop=False)
    for number, step in enumerate(steps, first):
        watch.add_step(step)
        state = SimpleNamespace(global_step=number)
        watch.on_pre_optimizer_step(None, state, control, model=None)
        if control.should_training_stop:
            return number
    return None


def watching(mode="warn", keep=None):
    return Watch(mode, keep=keep, every=None, advice="Lower learning_rate")


def kinds(watch):
    return [(alarm.kind, alarm.step) for alarm in watch.alarms]


def test_a_healthy_training_gives_no_alarm():
    watch = watching()
    play(watch, steps_of(HEALTHY))
    assert watch.alarms == []


def test_the_trial_is_caught_in_its_first_steps(caplog):
    """By its negatives at once; three steps of two lost positives make it sure."""
    watch = watching()
    play(watch, steps_of(TRIAL))
    assert kinds(watch) == [(AlarmKind.NEGATIVES_LOST, 2), (AlarmKind.POSITIVES_LOST, 5)]
    first, second = (record.getMessage() for record in caplog.records)
    assert "step 2" in first
    assert "100%" in first
    assert "-15.4" in first
    assert "learning_rate" in first
    assert "75%" in second
    assert "positives" in second


def test_with_many_positives_the_fall_of_both_is_seen_at_once():
    watch = watching()
    play(watch, steps_of([(0, 0), (0, -1), (-3, -3), (-8, -9)], positives=16, negatives=16))
    assert (AlarmKind.POSITIVES_LOST, 3) in kinds(watch)


@pytest.mark.parametrize(
    "means",
    [
        pytest.param([(0, 0), (-1, -2), (-3.5, -4), (-2, -4), (-1, -3), (0.2, -3)] * 3, id="dips"),
        pytest.param(
            [(0.02 * step, -0.2 * step) for step in range(21)] + [(0.5, -20.0)] * 40,
            id="negatives leave later, positives stay",
        ),
        pytest.param([(0.0, 0.0)] * 30 + [(-9.0, -1.0)] * 9, id="negatives stay: another fault"),
    ],
)
def test_what_other_objectives_and_rough_trainings_do_is_no_alarm(means):
    watch = watching()
    play(watch, steps_of(means, positives=16, negatives=48))
    assert watch.alarms == []


def test_one_completion_says_nothing():
    """A single positive a step, one in four of them lost, among lost negatives."""
    means = [(-0.2, -0.5)] * 21 + [(-30.0 if step % 4 == 0 else 0.0, -9.0) for step in range(40)]
    watch = watching()
    play(watch, steps_of(means, positives=1))
    assert watch.alarms == []


def test_positives_alone_can_be_lost():
    watch = watching()
    play(watch, steps_of([(0, 0), (-2, 0), (-9, 0)], positives=8, negatives=0))
    assert kinds(watch) == [(AlarmKind.POSITIVES_LOST, 2)]


def test_rows_of_another_model_say_nothing_of_training(caplog):
    watch = watching()
    play(watch, steps_of([(-40.0, -60.0)] * 8, positives=16, negatives=16))
    assert watch.alarms == []
    assert [record.getMessage().count("another model wrote") for record in caplog.records] == [1]


def test_off_is_off(caplog):
    watch = watching("off")
    play(watch, steps_of(TRIAL))
    assert watch.alarms == []
    assert not caplog.records


def test_a_stop_ends_training_at_the_first_alarm():
    watch = watching("stop")
    assert play(watch, steps_of(TRIAL)) == 2
    assert watch.stopped


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_resumed_watch_gives_the_alarms_of_a_straight_one(tmp_path, cut):
    straight, before, after = watching(), watching(), watching()
    play(straight, steps_of(TRIAL))
    play(before, steps_of(TRIAL[:cut]))
    (tmp_path / "watch.json").write_text(json.dumps(before.state()))
    after.load(tmp_path / "watch.json")
    play(after, steps_of(TRIAL[cut:]), first=cut)
    assert after.alarms == straight.alarms
    assert after.state() == straight.state()


def test_the_chance_of_a_drop_is_the_hypergeometric_tail():
    """All 4 hits before and none after: 1 of C(8, 4) = 70 ways to share them out."""
    assert chance_of_drop(4, 4, 0, 4) == pytest.approx(1 / 70)
    # At most one of the 4 after: 1 + C(4, 1) C(4, 3) = 17 of C(8, 4) = 70.
    assert chance_of_drop(3, 4, 1, 4) == pytest.approx(17 / 70)
    assert chance_of_drop(0, 32, 5, 32) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("ended", "correct", "kind"),
    [
        ((32, 23), (8, 8), None),
        ((32, 22), (8, 8), AlarmKind.ENDED_DROPS),
        ((32, 32), (16, 4), None),
        ((32, 32), (16, 3), AlarmKind.ACCURACY_DROPS),
        # So few right answers that losing all of them may be chance.
        ((32, 32), (8, 0), None),
        ((32, 32), (8, 20), None),
    ],
)
def test_a_probe_is_an_alarm_where_chance_is_no_explanation(ended, correct, kind):
    watch, control = watching(), SimpleNamespace(should_training_stop=False)
    for step, (e, c) in enumerate(zip(ended, correct, strict=True)):
        found = Probed(step=10 * step, completions=32, ended=e, correct=c, seconds=1.0)
        watch.probed(found, control)
    assert [alarm.kind for alarm in watch.alarms] == ([kind] if kind else [])


# A rate that rises until it ruins the model: well at first.
RUINOUS = {
    "per_device_train_batch_size": 16,
    "optim": "adamw_torch",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 60,
    "max_steps": 30,
    "watch_steps": 2,
}


class States(TrainerCallback):
    def __init__(self):
        self.after = {}

    def on_train_begin(self, args, state, control, model=None, **_):
        self.after[0] = weights(model)

    def on_step_end(self, args, state, control, model=None, **_):
        self.after[state.global_step] = weights(model)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def ruin(tmp_path, name, **arguments):
    trainer = make_trainer(
        tmp_path, made_rows(prompts=8, per_prompt=4), name=name, **(RUINOUS | arguments)
    )
    states = States()
    trainer.add_callback(states)
    return trainer, states


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_ruined_training_is_warned_of_and_goes_on(tmp_path, caplog):
    trainer, _ = ruin(tmp_path, "warn")
    trainer.train()
    assert trainer.state.global_step == 30
    alarm = trainer.watch.alarms[0]
    assert any(alarm.message in record.getMessage() for record in caplog.records)
    lines = [line for line in trainer.state.log_history if "alarms" in line]
    assert lines[0]["alarms"] == [alarm.kind]
    assert lines[0]["step"] == alarm.step + 1
    assert not (tmp_path / "warn" / LAST_GOOD).exists()


def test_a_stopped_training_leaves_the_weights_that_were_good(tmp_path):
    straight, states = ruin(tmp_path, "off", watch="off", watch_steps=None)
    straight.train()
    trainer, _ = ruin(tmp_path, "stop", watch="stop")
    trainer.train()
    kept, alarm = trainer.watch.result()["kept_step"], trainer.watch.alarms[0]
    assert 0 < kept <= alarm.step < 30
    assert kept % 2 == 0
    assert_equal(weights(trainer.model), states.after[kept])
    assert trainer.state.global_step == alarm.step + 1


@pytest.mark.parametrize("killed", [3, 5, 8])
def test_a_stop_is_the_same_after_an_interruption(tmp_path, killed):
    saving = {"save_strategy": "steps", "save_steps": 2, "watch": "stop"}
    straight, _ = ruin(tmp_path, "straight", **saving)
    straight.train()
    assert straight.watch.alarms[0].step > 8
    broken, _ = ruin(tmp_path, "broken", **saving)
    broken.add_callback(_Kill(killed))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed, _ = ruin(tmp_path, "broken", **saving)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.watch.result() == straight.watch.result()
    last = get_last_checkpoint(str(tmp_path / "broken"))
    assert int(last.rpartition("-")[2]) <= straight.watch.alarms[0].step  # none of ruined weights
    assert_equal(weights(resumed.model), weights(straight.model))


def test_good_weights_of_another_model_are_not_put_back(tmp_path):
    keep = LastGood(tmp_path, SINGLE_PROCESS)
    assert keep.step is None
    with pytest.raises(TrainingError, match="0"):
        keep.restore(torch.nn.Linear(2, 2))
    keep.keep(torch.nn.Linear(2, 2), 7)
    assert keep.step == 7
    with pytest.raises(TrainingError):
        keep.restore(torch.nn.Sequential(torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(
    "values",
    [
        {"watch": "off", "probe_problems": 16},
        {"probe_problems": 0, "watch_steps": 5},
        {"probe_problems": -1},
    ],
)
def test_a_section_whose_watch_would_do_nothing_is_refused(values):
    with pytest.raises(ConfigError, match="|".join(values)):
        validate(TrainConfig, values, where="train")


def test_sharded_weights_cannot_be_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(TrainingError, match="watch=warn"):
        check_arguments(TOPRConfig(output_dir=str(tmp_path), use_cpu=True, watch="stop"))


def test_a_watch_that_only_warns_can_be_changed_in_a_run_that_is_under_way():
    plain = TrainConfig().fixed()
    assert TrainConfig(watch="off").fixed() == plain
    assert TrainConfig(watch="stop").fixed() != plain
    assert TrainConfig(probe_problems=0).fixed() == TrainConfig(watch_steps=50).fixed() == plain


def test_no_checkpoint_is_kept_of_weights_that_were_given_up(tmp_path):
    trainer, _ = ruin(tmp_path, "epochs", watch="stop", save_strategy="epoch")
    trainer.train()
    assert trainer.watch.stopped
    alarm = trainer.watch.alarms[0].step
    kept = [int(path.name.split("-")[1]) for path in (tmp_path / "epochs").glob("checkpoint-*")]
    assert all(step <= alarm for step in kept)


def test_healthy_weights_are_kept_every_so_often_only(tmp_path, caplog):
    trainer, _ = ruin(tmp_path, "well", watch="stop", learning_rate=1e-4, max_steps=7)
    with caplog.at_level(logging.WARNING, logger="topr"):
        trainer.train()
    assert trainer.watch.alarms == []
    assert LastGood(tmp_path / "well", SINGLE_PROCESS).step == 6
