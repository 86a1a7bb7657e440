"""Completions drawn from every causal language model that transformers lists: the recorded log mu
is that of a plain pass over single sequences, or the model is refused.
"""

import pytest
import table
import zoo
from fitness import Outcome, judge_engine

from topr.engines import transformers
from topr.engines.kv_cache import Batching

DOCUMENTED = table.documented()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of models, about themselves
@pytest.mark.parametrize("name", zoo.TRIED)
def test_the_engine_is_right_or_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = judge_engine(zoo.build(name))
    assert verdict.fine, verdict
    assert table.agrees(verdict, DOCUMENTED[name][1]), "make models-table writes the page anew"
    monkeypatch.setattr(transformers, "SHARED_BYTES", 0)
    sharing = judge_engine(zoo.build(name))
    assert sharing.outcome is verdict.outcome, sharing


@pytest.mark.parametrize("name", ["bart", "llama, longrope", "deepseek_v32"])
def test_the_judge_sees_what_the_trial_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "find_batching", lambda *_, **__: Batching.PADDED)
    assert judge_engine(zoo.build(name)).outcome is Outcome.WRONG
