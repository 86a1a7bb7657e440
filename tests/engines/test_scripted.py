"""The shipped test double."""

import pytest

from scripted_engine import ScriptedEngine
from tiny import EOS, tiny_tokenizer
from topr.engines.base import Request
from topr.errors import EngineError
from topr.records import FinishReason, Rollout, SamplingParams

TOKENIZER = tiny_tokenizer()
PROMPT = Request(problem_id="p", prompt="2 + 2 =", prompt_ids=(9, 8), n=3, gold="4")


def write(engine: ScriptedEngine, asked: Request = PROMPT, **sampling: object) -> list[Rollout]:
    return list(engine.generate([asked], SamplingParams(**sampling), iteration=2))  # type: ignore[arg-type]


def test_texts_are_taken_in_turn_and_end_with_eos() -> None:
    rollouts = write(ScriptedEngine({"p": ["The answer is 4", "no"]}, TOKENIZER))
    assert [r.completion for r in rollouts] == ["The answer is 4", "no", "The answer is 4"]
    assert [r.sample for r in rollouts] == [0, 1, 2]
    for rollout in rollouts:
        text_ids = tuple(TOKENIZER(rollout.completion)["input_ids"])
        assert rollout.completion_ids == (*text_ids, EOS)
        assert rollout.finish_reason is FinishReason.STOP
        assert (rollout.engine, rollout.iteration, rollout.gold) == ("scripted", 2, "4")


def test_a_function_may_write_the_texts() -> None:
    engine = ScriptedEngine(lambda request, sample: f"{request.gold}-{sample}", TOKENIZER)
    assert [r.completion for r in write(engine)] == ["4-0", "4-1", "4-2"]


def test_the_token_limit_cuts_a_text_off() -> None:
    engine = ScriptedEngine({"p": ["abc"]}, TOKENIZER)
    cut, whole = write(engine, max_tokens=3)[0], write(engine, max_tokens=4)[0]
    assert (cut.completion, cut.finish_reason) == ("abc", FinishReason.LENGTH)
    assert EOS not in cut.completion_ids
    assert whole.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("limit", [4, 512])
def test_a_stop_string_ends_a_text(limit: int) -> None:
    """Also where the limit falls on the token that completes it."""
    engine = ScriptedEngine({"p": ["abc\nQ: more"]}, TOKENIZER)
    rollout = write(engine, stop=("\n",), max_tokens=limit)[0]
    assert rollout.completion == "abc\n"
    assert rollout.finish_reason is FinishReason.STOP
    assert EOS not in rollout.completion_ids


def test_made_up_logprobs_are_fixed_by_the_seed() -> None:
    engine = ScriptedEngine({"p": ["abc"]}, TOKENIZER)
    first = write(engine, seed=1)
    assert write(engine, seed=1) == first
    assert write(engine, seed=2)[0].logprobs != first[0].logprobs
    for rollout in first:
        assert rollout.logprobs is not None
        assert len(rollout.logprobs) == 4
        assert all(-1 < value <= 0 for value in rollout.logprobs)


def test_given_logprobs_are_recorded_and_counted() -> None:
    engine = ScriptedEngine(
        {"p": ["abc"]}, TOKENIZER, logprobs=lambda _, sample, ids: [-0.5 * sample] * len(ids)
    )
    assert [r.logprobs for r in write(engine)] == [(0.0,) * 4, (-0.5,) * 4, (-1.0,) * 4]
    short = ScriptedEngine({"p": ["abc"]}, TOKENIZER, logprobs=lambda *_: [-1.0])
    with pytest.raises(EngineError, match="1 log-probabilities for the 4 tokens"):
        write(short)


def test_a_problem_without_a_script_is_an_error() -> None:
    with pytest.raises(EngineError, match="no text for problem 'p'"):
        write(ScriptedEngine({"q": ["x"]}, TOKENIZER))  # type: ignore[arg-type]
