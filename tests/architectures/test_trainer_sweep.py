"""One step of training on every causal language model that transformers lists: the gradient and
log rho of a plain pass over single sequences, or refused.
"""

from typing import Any

import pytest
import table
import zoo
from fitness import Outcome, judge_trainer

from tiny import tiny_model
from topr.training.step import Step

DOCUMENTED = table.documented()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of models, about themselves
@pytest.mark.parametrize("name", zoo.TRIED)
def test_the_trainer_is_right_or_refuses(name: str) -> None:
    verdict = judge_trainer(zoo.build(name))
    assert verdict.fine, verdict
    assert table.agrees(verdict, DOCUMENTED[name][0]), "make models-table writes the page anew"


def test_every_architecture_is_tried_but_for_those_that_cannot_be_built() -> None:
    assert set(zoo.TRIED) == (set(zoo.ARCHITECTURES) - set(zoo.NOT_BUILT)) | set(zoo.VARIANTS)
    assert set(zoo.NOT_BUILT) <= set(zoo.ARCHITECTURES)
    assert len(zoo.NOT_BUILT) <= 9
    assert set(DOCUMENTED) == set(zoo.TRIED) | set(zoo.NOT_BUILT)


def test_the_judge_sees_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Step._weights

    def twice(step: Step, *args: Any) -> Any:
        return right(step, *args) * 1.001

    assert judge_trainer(tiny_model()).outcome is Outcome.RIGHT
    monkeypatch.setattr(Step, "_weights", twice)
    assert judge_trainer(tiny_model()).outcome is Outcome.WRONG
