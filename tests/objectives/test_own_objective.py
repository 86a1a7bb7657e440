"""`train.objective: module:MyObjective`, from a file in the working directory."""

from pathlib import Path

import pytest
import torch

from objectives.scored import batch_of
from topr.errors import ConfigError
from topr.objectives import make_objective

OWN = """
from dataclasses import dataclass

import torch

from topr.objectives import Uses


@dataclass(frozen=True, kw_only=True)
class Half:
    scale: float = 0.5
    needs_group = None
    uses = Uses(ratio=False)
    normalization = "length"

    def weights(self, batch):
        return torch.where(batch.mask, self.scale * batch.advantage[:, None], 0.0)


@dataclass
class NoDefault:
    scale: float
    needs_group, uses, normalization, weights = None, Uses(), "none", None


@dataclass
class Unfinished:
    needs_group: None = None


@dataclass(frozen=True, kw_only=True)
class OfCompletions(Half):
    def weights(self, batch):
        return batch.advantage


@dataclass(frozen=True, kw_only=True)
class Grouped(Half):
    needs_group = True


@dataclass(frozen=True, kw_only=True)
class Unlimited(Half):
    def weights(self, batch):
        return torch.where(batch.mask, batch.log_rho("sequence").exp(), 0.0)


@dataclass(frozen=True, kw_only=True)
class Double(Half):
    def weights(self, batch):
        return torch.where(batch.mask, batch.advantage[:, None].double(), 0.0)


@dataclass(frozen=True, kw_only=True)
class FourTensors(Half):
    def weights(self, log_ratio, advantage, mask, group):
        return log_ratio


@dataclass(frozen=True, kw_only=True)
class Averaged(Half):
    normalization = "mean"


@dataclass(frozen=True, kw_only=True)
class Unmasked(Half):
    def weights(self, batch):
        return batch.advantage[:, None] * batch.log_ratio.exp()


half = Half()
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "my_objectives.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_it_weighs_and_takes_arguments():
    batch = batch_of(torch.zeros(2, 3), [1.0, -1.0])
    assert make_objective("my_objectives:Half").weights(batch)[1, 0].item() == -0.5
    stronger = make_objective("my_objectives:Half", scale=2.0)
    assert stronger.weights(batch)[0, 0].item() == 2.0
    assert stronger.uses.ratio is False


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("my_objectives:Missing", {}, ["Missing", "does not exist", "my_objectives.py"]),
        ("no_such_module:Half", {}, ["no_such_module", "working directory"]),
        (":Half", {}, ["module:name"]),
        ("my_objectives:half", {}, ["expected a dataclass"]),
        ("my_objectives:Unfinished", {}, ["uses, normalization, weights"]),
        ("my_objectives:OfCompletions", {}, ["(2,)", "(2, 3)"]),
        ("my_objectives:Grouped", {}, ["needs_group=True", "'rewards' or 'ratios'"]),
        ("my_objectives:Unlimited", {}, ["at log-ratios of 100", "limit them"]),
        ("my_objectives:Double", {}, ["float64", "float32"]),
        ("my_objectives:FourTensors", {}, ["weights raised TypeError"]),
        ("my_objectives:Averaged", {}, ["normalization='mean'", "length, none, constant"]),
        ("my_objectives:Unmasked", {}, ["mask is", "nan"]),
        ("my_objectives:NoDefault", {}, ["default", "scale"]),
        ("my_objectives:Half", {"scal": 1.0}, ["has no scal", "scale"]),
        ("my_objectives:Half", {"scale": "big"}, ["scale", "number", "'big'"]),
    ],
)
def test_what_is_wrong_with_it_is_said(name, arguments, words):
    with pytest.raises(ConfigError) as error:
        make_objective(name, **arguments)
    for word in words:
        assert word in str(error.value)


def test_the_example_of_the_documents_fades_positives_too(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    cautious = make_objective("own_objective:Cautious", limit=2.0)
    log_ratio = torch.tensor([[1.0], [4.0], [0.5], [4.0]]).log()
    weight = cautious.weights(batch_of(log_ratio, [1.0, 1.0, -1.0, -1.0]))
    assert weight[:, 0].tolist() == pytest.approx([1.0, 0.5, -0.5, -1.0])
