"""An engine that is known before it is opened."""

import pytest

from tiny import save_tiny
from topr.config import GenerateConfig, ModelConfig
from topr.engines import Request, lazy
from topr.engines.lazy import LazyEngine
from topr.errors import ConfigError
from topr.models.files import fingerprint
from topr.records import SamplingParams
from topr.runs.retention import remove_weights

REQUEST = Request(problem_id="p", prompt="1", prompt_ids=(5,), n=2)
SAMPLING = SamplingParams(max_tokens=3, seed=1)


@pytest.fixture
def opened(monkeypatch):
    """How often an engine was opened."""
    models, original = [], lazy.open_engine

    def counted(model, config):
        models.append(model.path)
        return original(model, config)

    monkeypatch.setattr(lazy, "open_engine", counted)
    return models


def test_it_opens_when_completions_are_asked_for_and_again_after_it_was_closed(tmp_path, opened):
    model = save_tiny(tmp_path / "model")
    engine = LazyEngine(ModelConfig(path=str(model), device="cpu"), GenerateConfig(batch_size=2))
    assert (engine.name, engine.model_name) == ("transformers", str(model))
    assert engine.revision == fingerprint(model)
    assert engine.tokenizer("1")["input_ids"]
    assert opened == []
    first = list(engine.generate([REQUEST], SAMPLING))
    assert [each.revision for each in first] == [engine.revision] * 2
    assert list(engine.generate([REQUEST], SAMPLING)) == first
    assert len(opened) == 1
    engine.close()
    assert list(engine.generate([REQUEST], SAMPLING)) == first
    assert len(opened) == 2
    engine.close()


def test_a_model_whose_weights_were_deleted_is_still_known(tmp_path, opened):
    model = save_tiny(tmp_path / "model")
    before = fingerprint(model)
    remove_weights(tmp_path, "loop.keep_models=last")
    engine = LazyEngine(ModelConfig(path=str(model)), GenerateConfig())
    assert engine.revision == before
    engine.close()
    assert opened == []


def test_what_the_check_of_an_open_engine_raises_ends_the_request(tmp_path):
    def refuse(engine):
        raise ConfigError(f"engine {engine.name} records nothing")

    path = str(save_tiny(tmp_path / "model"))
    engine = LazyEngine(ModelConfig(path=path, device="cpu"), GenerateConfig(), check=refuse)
    with pytest.raises(ConfigError, match="engine transformers records nothing"):
        list(engine.generate([REQUEST], SAMPLING))
    engine.close()
