"""The wire format of OpenAI-compatible `/v1/completions`: a sample to a request, an answer to
tokens. Not here: HTTP (`topr.engines.client`), records (`topr.engines.server`).

Sampling parameters are translated here and nowhere else. What servers give beyond OpenAI's own
fields differs; `ServerCapabilities` says what one of them does, as `topr.engines.probing` has seen
it do.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from topr.engines.client import PassingError
from topr.engines.stops import StopStrings
from topr.errors import DataError, EngineError, ModelError
from topr.records import FinishReason, SamplingParams
from topr.tokenization.ends import Ends, read_finish

LLAMA_CPP = {
    "verbose": True, "return_tokens": True, "response_fields": ["tokens"],
    "post_sampling_probs": True, "samplers": ["temperature", "top_k", "top_p"],
}  # fmt: skip
"""llama.cpp's own fields. Without them it leaves out the tokens that end within a character, its
log-probabilities are those of the plain softmax, not of the distribution that was sampled, and
temperature comes after top-p, which then cuts otherwise than everywhere else.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerCapabilities:
    """What a server takes and gives."""

    takes_extra: bool
    """Fields beyond OpenAI's: top_k, stop_token_ids, return_token_ids and others."""
    takes_ids: bool
    """A prompt as token ids; else it is sent as text."""
    gives_ids: bool = False
    """The token ids of a completion; else its text is tokenised."""
    gives_logprobs: bool = False
    """A log-probability of each of them, always."""
    counts_temperature: bool = False
    """Log-probabilities are those after the temperature, not of the plain softmax."""
    counts_top_p: bool = False
    """They are those after top-p, renormalised."""
    counts_top_k: bool = False
    """They are those after top-k, renormalised."""
    keeps_stops: bool = False
    """A stop string stays in the ids; else none is sent, and completions are cut here."""
    llama_cpp: bool = False
    """It is llama.cpp, which is sent its own fields."""
    draws: bool = True
    """Two seeds at a high temperature gave two texts; else it may not sample at all."""

    def unaccounted_params(self, sampling: SamplingParams) -> list[str]:
        """Return what its log-probabilities would have to count and do not. Greedy ones are 0."""
        if sampling.temperature == 0:
            return []
        asked = (
            (self.counts_temperature or sampling.temperature == 1, "temperature"),
            (self.counts_top_k or sampling.top_k == 0, "top_k"),
            (self.counts_top_p or sampling.top_p == 1, "top_p"),
        )
        return [f"{name}={getattr(sampling, name):g}" for fits, name in asked if not fits]


KINDS = (
    ServerCapabilities(takes_extra=True, takes_ids=True),
    ServerCapabilities(takes_extra=False, takes_ids=True),
    ServerCapabilities(takes_extra=False, takes_ids=False),
)
"""Tried in turn until a server takes a request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What a model is to continue, both ways."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One completion as a server gave it."""

    text: str
    reason: FinishReason
    ids: tuple[int, ...] | None
    logprobs: tuple[float, ...] | None
    llama_cpp: bool = False
    """They are where llama.cpp alone puts them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """What all requests to a server have in common."""

    name: str
    """What the server calls the model."""
    end_ids: Collection[int]
    """Tokens that end a text."""
    extra: Mapping[str, Any]
    """Further fields, laid over the others."""


def body(
    prompt: Prompt,
    sampling: SamplingParams,
    seed: int,
    capabilities: ServerCapabilities,
    model: ServedModel,
) -> dict[str, Any]:
    """Return the request for one sample.

    Args:
        prompt: what the model continues.
        sampling: how; its own seed does not count here.
        seed: of this sample.
        capabilities: what the server takes.
        model: what is asked.

    Raises:
        EngineError: the server has no top-k.

    """
    fields: dict[str, Any] = {
        "model": model.name,
        "prompt": list(prompt.ids) if capabilities.takes_ids else prompt.text,
        "n": 1,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
        "logprobs": 1,  # llama.cpp gives none for 0; all give the token's own for 1
    }
    if sampling.stop and capabilities.keeps_stops:
        fields |= {"stop": list(sampling.stop), "include_stop_str_in_output": True}
    if capabilities.llama_cpp:
        fields |= LLAMA_CPP
    if capabilities.takes_extra:
        # A server's defaults, or those that the model brings along, must not cut the distribution.
        fields |= {
            "top_k": sampling.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": sorted(model.end_ids),
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
    elif sampling.top_k:
        raise EngineError(
            f"the server takes OpenAI's own fields alone, and generate.top_k={sampling.top_k} is "
            "none of them: set it to 0, or use a server that knows it"
        )
    return fields | dict(model.extra)


def read_answer(answer: Any) -> Answer:
    """Read one completion.

    Raises:
        PassingError: the server broke the completion off.
        EngineError: this is not what a completions endpoint answers.

    """
    try:
        choice = answer["choices"][0]
        text, reason = choice.get("text") or "", choice["finish_reason"]
        llama_cpp = "__verbose" in answer
        ids, logprobs = _tokens_of_llama_cpp(answer, choice) if llama_cpp else _tokens(choice)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise EngineError(
            f"the server answered {str(answer)[:500]}, which is not a completion (expected "
            "choices[0] with text and finish_reason): generate.server.url must be that of an "
            "OpenAI-compatible server, up to /v1"
        ) from error
    try:
        finish = read_finish(reason)
    except DataError:
        finish = None
    if finish is None:
        raise PassingError(f"a completion broken off, with finish_reason {reason!r}")
    return Answer(
        text=str(text), reason=finish.reason, ids=ids, logprobs=logprobs, llama_cpp=llama_cpp
    )


_Tokens = tuple[tuple[int, ...] | None, tuple[float, ...] | None]
"""Token ids, and a log-probability of each; None where there are none."""


def _tokens_of_llama_cpp(answer: Any, choice: Any) -> _Tokens:
    """Return the tokens of an answer of llama.cpp's.

    All ids are in what it adds when it is verbose. Log-probabilities are those of the tokens in
    `content`, where those that end within a character are missing.
    """
    content = (choice.get("logprobs") or {}).get("content") or []
    logprobs = []
    for token in content:
        # Of a token from speculation it has no probability, says 1, and lists no others.
        known = token.get("prob") and token.get("top_probs")
        logprobs.append(math.log(token["prob"]) if known else None)
    return _checked(answer["__verbose"]["tokens"], logprobs)


def _tokens(choice: Any) -> _Tokens:
    """Return a choice's token ids and log-probabilities, where all others put them."""
    given = choice.get("logprobs") or {}
    return _checked(choice.get("token_ids"), given.get("token_logprobs"))


def _checked(ids: Any, logprobs: Any) -> _Tokens:
    """Return both as tuples, and no log-probabilities where some are missing."""
    if ids is None or None in ids:
        return None, None
    found = tuple(int(token) for token in ids)
    if logprobs is None or len(logprobs) != len(found) or None in logprobs:
        return found, None
    values = tuple(float(value) for value in logprobs)
    return found, None if any(map(math.isnan, values)) else values


def finalize_completion(
    answer: Answer,
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    stops: StopStrings,
    ends: Ends,
    *,
    greedy: bool,
) -> Answer:
    """Return an answer with the token ids that the model must have written, its end included.

    Text alone is tokenised, once. What was written after a stop string is left out. An end that the
    server left out is added: the token that ends an answer to this prompt, of unknown
    log-probability, so there are none then.

    Args:
        answer: as the server gave it.
        prompt: what it answers: a text, or a chat that was rendered.
        tokenizer: the model's.
        stops: the stop strings.
        ends: the ends of the model's completions.
        greedy: sampled at temperature 0, where a token's log-probability is 0.

    Raises:
        EngineError: the tokenizer has no end that could be added.

    """
    ids, logprobs, reason = answer.ids, answer.logprobs, answer.reason
    if ids is None:
        ids = tuple(tokenizer(answer.text, add_special_tokens=False)["input_ids"])
    elif greedy:
        logprobs = (0.0,) * len(ids)
    end = stops.end(ids)
    if end is not None:
        ids, logprobs, reason = ids[:end], logprobs and logprobs[:end], FinishReason.STOP
    elif reason is FinishReason.STOP and ends.ids.isdisjoint(ids[-1:]):
        ids, logprobs = (*ids, _own_end(ends, prompt)), None
    return Answer(text=answer.text, reason=reason, ids=ids, logprobs=logprobs)


def _own_end(ends: Ends, prompt: str) -> int:
    try:
        return ends.of_answer(prompt)
    except ModelError as error:
        raise EngineError(
            "the server does not say which token ended a completion, and the tokenizer has no "
            "eos_token: use a server that gives token ids"
        ) from error
