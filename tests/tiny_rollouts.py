"""A rollout for tests of what is done with rollouts: each says what it looks at. No tests here."""

from typing import Any

from topr.records import FinishReason, Grade, Outcome, Rollout, SamplingParams


def tiny_rollout(**values: Any) -> Rollout:
    """Return an ungraded rollout of two tokens without log-probabilities, with changes."""
    plain = {
        "problem_id": "p", "sample": 0, "prompt": "?", "prompt_ids": (5,), "completion": "!",
        "completion_ids": (7, 2), "logprobs": None, "finish_reason": FinishReason.STOP,
        "sampling": SamplingParams(), "model": "m", "revision": None, "engine": "scripted",
        "iteration": 1,
    }  # fmt: skip
    return Rollout(**plain | values)


def tiny_grade(reward: float | None, answer: str | None = None) -> Grade:
    """Return a grade: correct where the reward is above 0, else wrong."""
    outcome = Outcome.CORRECT if (reward or 0) > 0 else Outcome.WRONG
    return Grade(outcome=outcome, reward=reward, answer=answer)
