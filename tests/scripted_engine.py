"""An engine for tests: it writes what it is told. There is no model."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from topr.engines.base import Engine, Request, make_rollout, samples_of
from topr.engines.rng import uniform_stream
from topr.engines.stops import StopStrings
from topr.errors import EngineError
from topr.records import FinishReason, Rollout, SamplingParams

Script = Mapping[str, Sequence[str]] | Callable[[Request, int], str]
"""Texts by problem id, taken in turn by sample number; or a function of the request and the
sample number."""
LogprobScript = Callable[[Request, int, Sequence[int]], Sequence[float]]
"""One log-probability for each of the completion ids given."""


class ScriptedEngine(Engine):
    """Yields given texts as rollouts, tokenised, with the end-of-sequence token appended.

    Token limits and stop strings act as they do on a model's own writing: a text longer than
    `max_tokens` is truncated, and one that holds a stop string ends there, without an
    end-of-sequence token.

    >>> engine = ScriptedEngine({"p1": ["The answer is 4"]}, tokenizer)  # doctest: +SKIP
    """

    name = "scripted"

    def __init__(
        self,
        script: Script,
        tokenizer: PreTrainedTokenizerBase,
        *,
        logprobs: LogprobScript | None = None,
        model_name: str = "scripted",
        revision: str | None = None,
    ) -> None:
        """Write the script's texts.

        Args:
            script: texts by problem id, or a function.
            tokenizer: must have an end-of-sequence token.
            logprobs: by default made-up numbers in (-1, 0], the same for the same seed, problem
                and sample.
            model_name: what records say sampled them.
            revision: likewise.

        """
        if tokenizer.eos_token_id is None:
            raise EngineError("the tokenizer has no eos_token, which ends a scripted completion")
        self.script = script
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.revision = revision
        self._logprobs = logprobs
        self._eos_id = int(tokenizer.eos_token_id)

    def close(self) -> None:
        """Do nothing: there is no model."""

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, *, iteration: int = 0
    ) -> Iterator[Rollout]:
        """Yield the script's completions in the order of the requests.

        Raises:
            EngineError: the script has nothing for a problem, or the log-probabilities given are
                not one per token.

        """
        stops = StopStrings(self.tokenizer, sampling.stop)
        for sample in samples_of(requests):
            text = self._text(sample.request, sample.number)
            ids, reason = self._tokens(text, sampling.max_tokens, stops)
            logprobs = self._token_logprobs(sample.request, sample.number, ids, sampling.seed)
            yield make_rollout(
                self, sample, sampling, iteration, ids=ids, logprobs=logprobs, reason=reason
            )

    def _text(self, request: Request, sample: int) -> str:
        if not isinstance(self.script, Mapping):
            return self.script(request, sample)
        texts = self.script.get(request.problem_id)
        if not texts:
            raise EngineError(
                f"the script has no text for problem {request.problem_id!r}; it has "
                f"{len(self.script)} problems, such as {sorted(self.script)[:3]}"
            )
        return texts[sample % len(texts)]

    def _tokens(
        self, text: str, max_tokens: int, stops: StopStrings
    ) -> tuple[tuple[int, ...], FinishReason]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [*ids, self._eos_id][:max_tokens]
        for end in range(1, len(ids) + 1) if stops else ():
            if stops.completed([ids[max(0, end - stops.tail) : end]])[0]:
                return tuple(ids[:end]), FinishReason.STOP
        ended = ids[-1] == self._eos_id
        return tuple(ids), FinishReason.STOP if ended else FinishReason.LENGTH

    def _token_logprobs(
        self, request: Request, sample: int, ids: tuple[int, ...], seed: int
    ) -> tuple[float, ...]:
        if self._logprobs is None:
            made_up = uniform_stream(seed, request.problem_id, sample).random(len(ids))
            return tuple(float(-value) for value in made_up.astype("float32"))
        given = tuple(self._logprobs(request, sample, ids))
        if len(given) != len(ids):
            raise EngineError(
                f"the script gives {len(given)} log-probabilities for the {len(ids)} tokens of "
                f"problem {request.problem_id!r}, sample {sample}; expected one per token, the "
                "end-of-sequence token included"
            )
        return given
