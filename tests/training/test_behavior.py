"""Log mu of rows that several models wrote: each is scored with its own."""

import logging

import pytest
import torch

from rollouts_for_training import made_rows, plain_logprobs
from tiny import tiny_model, tiny_tokenizer
from topr.config import ModelConfig, TrainConfig
from topr.errors import DataError
from topr.models.loading import LoadedModel
from topr.stages import train
from topr.training import BehaviorPolicies, TOPRConfig, TOPRTrainer
from topr.training.logprobs import Forward


def mixed(*revisions):
    """Rows in turns by models of these seeds; each says which by its revision."""
    rows = made_rows(logprobs=False)
    return [row | {"revision": revisions[i % len(revisions)]} for i, row in enumerate(rows)]


def trainer(tmp_path, rows, writers, **settings):
    return TOPRTrainer(
        model=tiny_model(seed=0),
        args=TOPRConfig(
            output_dir=str(tmp_path), use_cpu=True, behavior_logprobs="recompute",
            per_device_train_batch_size=16, save_strategy="no", **settings,
        ),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        behavior_model=writers,
    )  # fmt: skip


def test_each_row_is_scored_with_the_model_that_wrote_it(tmp_path):
    models = {"a": tiny_model(seed=0), "b": tiny_model(seed=1), "c": tiny_model(seed=2)}
    rows = mixed("a", "b", "c")
    made = trainer(
        tmp_path, rows, BehaviorPolicies(own="a", find=lambda revision: models[revision])
    )
    made.prepare_behavior()
    for row, found in zip(rows, made.rows["behavior_logprobs"], strict=True):
        expected = plain_logprobs(models[row["revision"]], row).detach()
        assert found == pytest.approx(expected.tolist(), abs=1e-4)


def test_another_writer_is_scored_under_autocast(tmp_path):
    """How a model is run is tried in the type of its weights, where rounding hides no fault."""
    models = {"a": tiny_model(seed=0), "b": tiny_model(seed=1)}
    policies = BehaviorPolicies(own="a", find=lambda revision: models[revision])
    rows = mixed("a", "b")
    made = trainer(tmp_path, rows, policies, bf16=True, max_steps=1)
    made.train()
    for row, found in zip(rows, made.rows["behavior_logprobs"], strict=True):
        expected = plain_logprobs(models[row["revision"]], row).detach()
        assert found == pytest.approx(expected.tolist(), abs=0.5)


@pytest.mark.parametrize(
    ("revision", "message"),
    [("b", "written by another model (revision b)"), (None, "do not say which model wrote them")],
)
def test_an_unknown_writer_is_warned_of(tmp_path, caplog, revision, message):
    caplog.set_level(logging.WARNING, logger="topr.training")
    made = trainer(tmp_path, mixed("a", revision), BehaviorPolicies(own="a", find=lambda _: None))
    made.prepare_behavior()
    assert message in caplog.text
    assert "topr train --behavior-model" in caplog.text


def writers(monkeypatch, others, revisions):
    monkeypatch.setattr(train, "identity", lambda config: revisions[config.path])
    loaded = {path: object() for path in revisions}
    monkeypatch.setattr(
        train,
        "load",
        lambda config: LoadedModel(
            model=loaded[config.path], tokenizer=None, name=config.path, revision=None
        ),
    )
    own = LoadedModel(model=object(), tokenizer=None, name="now", revision="sha256:now")
    config = TrainConfig(behavior_logprobs="recompute")
    return loaded, train.behavior_policies(own, [ModelConfig(path=path) for path in others], config)


def test_writers_of_the_hub_are_known_by_their_commit(monkeypatch):
    revisions = {"owner/base": "5f0b02c7", "runs/x/iteration-01/model": "sha256:one"}
    loaded, found = writers(monkeypatch, revisions, revisions)
    assert found.own == "sha256:now"
    assert found.find("5f0b02c7") is loaded["owner/base"]
    assert found.find("sha256:one") is loaded["runs/x/iteration-01/model"]
    assert found.find(None) is None  # of two, rows without a revision are neither's
    with pytest.raises(DataError, match=r"revision sha256:other, which is none of those given"):
        found.find("sha256:other")


def test_rows_without_a_revision_are_the_only_given_writers(monkeypatch):
    loaded, found = writers(monkeypatch, ["owner/base"], {"owner/base": "5f0b02c7"})
    assert found.find(None) is loaded["owner/base"]


def test_where_memory_runs_out_mu_is_recomputed_in_smaller_passes(tmp_path, monkeypatch, caplog):
    rows = mixed("a")
    made = trainer(tmp_path, rows, BehaviorPolicies(own="a", find=lambda revision: None))
    sizes, plain = [], Forward.token_logprobs

    def scarce(self, model, batch):
        sizes.append(batch.input_ids.numel())
        if sizes[-1] > 60:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(self, model, batch)

    monkeypatch.setattr(Forward, "token_logprobs", scarce)
    made.prepare_behavior()
    assert max(sizes) > 120  # it was halved more than once
    assert "memory ran out in a forward pass" in caplog.text
    monkeypatch.setattr(Forward, "token_logprobs", plain)
    for row, found in zip(rows, made.rows["behavior_logprobs"], strict=True):
        expected = plain_logprobs(tiny_model(seed=0), row).detach()
        assert found == pytest.approx(expected.tolist(), abs=1e-4)
