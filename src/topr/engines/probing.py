"""What a completions server takes and gives, seen by a few short requests.

Not here: the wire format (`topr.engines.completions`).
"""

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from topr.engines.client import RefusedError, Session
from topr.engines.completions import (
    KINDS,
    Answer,
    Prompt,
    ServedModel,
    ServerCapabilities,
    body,
    read_answer,
)
from topr.records import FinishReason, SamplingParams

PROMPT = "One day, when the rain had stopped, she went"
"""What a server is asked to continue: no model is sure of how. (After three tokens vLLM 0.32 has
died on a CPU.)"""
GREEDY = SamplingParams(temperature=0.0, max_tokens=4)
HOT = SamplingParams(temperature=2.0, max_tokens=16)
COLD = replace(HOT, temperature=0.5)
TOP_P: dict[str, Any] = {"top_p": 1e-6}
TOP_K: dict[str, Any] = {"top_k": 1}
"""Either leaves the likeliest token alone, whose log-probability is 0 then; or those that tie."""
TIES = 8
"""Tokens that may tie for the first place, in bfloat16 for instance."""
ROUNDING = 1e-3
"""Nats that are nothing."""
CHANGE = 0.2
"""Share of a log-probability by which it differs at another temperature, and not by rounding."""


async def probe(
    session: Session, tokenizer: PreTrainedTokenizerBase, model: ServedModel
) -> ServerCapabilities:
    """Ask a server for a few tokens, to see what it takes and gives.

    Args:
        session: with the server.
        tokenizer: the model's.
        model: what is asked.

    Raises:
        RefusedError: it takes no request that topr knows.
        EngineError: it is not a completions server, or does not answer.

    """
    prompt = Prompt(ids=tuple(tokenizer(PROMPT)["input_ids"]), text=PROMPT)
    probes = _Probes(session, prompt, model)
    for number, kind in enumerate(KINDS, start=1):
        try:
            answer = await probes.ask(kind, GREEDY)
            break
        except RefusedError as error:
            if error.status not in (400, 422) or number == len(KINDS):
                raise
    drawn = {(await probes.ask(kind, HOT, seed=seed)).text for seed in (1, 2)}
    kind = replace(kind, draws=len(drawn) > 1)
    if answer.ids is None and kind.takes_extra:
        own = await probes.ask_if_taken(replace(kind, llama_cpp=True), GREEDY)
        if own is not None and own.llama_cpp:
            kind, answer = replace(kind, llama_cpp=True), own
    if not answer.ids:
        return kind
    kind = replace(kind, gives_ids=True)
    kind = await _with_logprobs(probes, kind, answer)
    if not kind.takes_extra:
        return kind
    first = answer.ids[0]
    if (await probes.ask(kind, GREEDY, ends=[first])).ids == ():
        kind = replace(kind, gives_logprobs=False)  # the end is left out, and so is its number
    texts = [str(tokenizer.decode([token])) for token in answer.ids if token not in model.end_ids]
    text = next((text for text in texts if text and "\ufffd" not in text), "")
    if not text:  # nothing to try a stop string with
        return kind
    stopped = replace(GREEDY, stop=(text,), max_tokens=16)
    kept = await probes.ask(replace(kind, keeps_stops=True), stopped, ends=[])
    ends = kept.reason is FinishReason.STOP and text in str(tokenizer.decode(list(kept.ids or ())))
    numbers = kept.logprobs is not None or not kind.gives_logprobs
    return replace(kind, keeps_stops=ends and numbers)


class _Probes:
    """Requests for a few tokens after one prompt."""

    def __init__(self, session: Session, prompt: Prompt, model: ServedModel) -> None:
        self._session, self._prompt, self._model = session, prompt, model

    async def ask(
        self,
        kind: ServerCapabilities,
        sampling: SamplingParams,
        *,
        seed: int = 0,
        ends: Collection[int] | None = None,
    ) -> Answer:
        """Return the answer; `ends` are tokens that end it, in place of the model's."""
        model = self._model if ends is None else replace(self._model, end_ids=ends)
        fields = body(self._prompt, sampling, seed, kind, model)
        return await self._session.ask("completions", read_answer, fields, longest=1.0)

    async def ask_if_taken(
        self, kind: ServerCapabilities, sampling: SamplingParams
    ) -> Answer | None:
        """Return the answer, or None where the server refuses the request."""
        try:
            return await self.ask(kind, sampling)
        except RefusedError:
            return None


async def _with_logprobs(
    probes: _Probes, kind: ServerCapabilities, answer: Answer
) -> ServerCapabilities:
    """Return the capabilities with which distribution the log-probabilities are of.

    Tokens are sampled from the likeliest alone, of some of which no model is sure. Where a cut
    counts, that is not seen in their numbers. Where top-p does not, the temperature counts if the
    number of the least likely one changes with it.
    """
    if kind.llama_cpp:  # by the fields that it is sent; and some tokens have no number
        return replace(kind, counts_temperature=True, counts_top_p=True, counts_top_k=True)
    if answer.logprobs is None:
        return kind
    hot = await probes.ask_if_taken(kind, replace(HOT, **TOP_P))
    cold = await probes.ask_if_taken(kind, replace(COLD, **TOP_P))
    top_p = _counts_cut(hot)
    top_k = kind.takes_extra and _counts_cut(await probes.ask_if_taken(kind, replace(HOT, **TOP_K)))
    return replace(
        kind,
        gives_logprobs=True,
        counts_temperature=top_p or _differ(hot, cold),
        counts_top_p=top_p,
        counts_top_k=top_k,
    )


def _counts_cut(answer: Answer | None) -> bool:
    """Tell whether each token has 1, or a half where two tie, and so on, for its probability."""
    if answer is None or not answer.logprobs:
        return False
    ties = [math.log(number) for number in range(1, TIES + 1)]
    return all(min(abs(value + tie) for tie in ties) < ROUNDING for value in answer.logprobs)


def _differ(hot: Answer | None, cold: Answer | None) -> bool:
    """Tell whether the least likely of the tokens that both begin with has another number."""
    if hot is None or cold is None:
        return False
    same = []
    both = zip(hot.ids or (), hot.logprobs or (), cold.ids or (), cold.logprobs or (), strict=False)
    for hot_id, hot_logprob, cold_id, cold_logprob in both:
        if hot_id != cold_id:
            break
        same.append((hot_logprob, cold_logprob))
    least = min(same, default=(0.0, 0.0))
    return least[1] - least[0] > CHANGE * abs(least[0])
