"""What every engine does: prompts and sampling parameters in, rollouts out as they finish."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from topr.errors import EngineError
from topr.records import FinishReason, Rollout, SamplingParams

if TYPE_CHECKING:  # it takes seconds to import, and an engine may live elsewhere
    from transformers import PreTrainedTokenizerBase

    from topr.models.facts import ModelFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Draw `n` completions of one prompt, numbered from `first_sample`."""

    problem_id: str
    prompt: str
    prompt_ids: tuple[int, ...]
    """The prompt tokenised: what the model is given."""
    n: int
    first_sample: int = 0
    gold: str | None = None
    question: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One completion to draw: a request, and which of its numbers."""

    request: Request
    number: int


def samples_of(requests: Iterable[Request]) -> Iterator[Sample]:
    """Yield all that requests ask for, in their order."""
    for request in requests:
        for number in range(request.first_sample, request.first_sample + request.n):
            yield Sample(request=request, number=number)


class Engine(Protocol):
    """Draws completions from one model, which it may hold in memory, in processes or on a server.

    The same requests, sampling parameters and seed give the same rollouts. A sample depends on
    (seed, problem_id, sample number), not on which other requests travel with it, up to the
    rounding of the model's own arithmetic.

    A class that names `Engine` as its base has the defaults below.
    """

    name: str
    model_name: str
    """Path or hub name of the model."""
    revision: str | None
    """Commit of a hub model; fingerprint of a local one."""
    tokenizer: "PreTrainedTokenizerBase"
    """The model's: it renders prompts and turns ids into text."""
    journal: bool = False
    """Whether each sample is written down as it comes: it costs too much for a shard to be sampled
    again."""
    spans_shards: bool = False
    """Whether it is given the requests of many shards at once; it samples them in about the order
    given."""

    @property
    def records_logprobs(self) -> bool:
        """Whether rollouts have log-probabilities: a run must know it before hours of sampling."""
        return True

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, *, iteration: int = 0
    ) -> Iterator[Rollout]:
        """Yield each completion as it finishes, in any order.

        Raises:
            EngineError: a prompt leaves no room for a completion, or the model fails.

        """
        ...

    def close(self) -> None:
        """Let go of the model: memory, processes, servers. Nothing can be sampled after it."""
        ...


def make_rollout(
    engine: Engine,
    sample: Sample,
    sampling: SamplingParams,
    iteration: int,
    *,
    ids: tuple[int, ...],
    logprobs: tuple[float, ...] | None,
    reason: FinishReason,
) -> Rollout:
    """Return the record of one completion; its text is that of its ids, without special tokens.

    Raises:
        EngineError: the model's logits were not numbers.

    """
    request = sample.request
    if any(value != value for value in logprobs or ()):  # NaN alone differs from itself
        raise EngineError(
            f"{engine.model_name} gave logits that are NaN or infinite on problem "
            f"{request.problem_id!r}; its weights may have diverged, or float16 overflowed: try "
            "dtype float32 or bfloat16"
        )
    return Rollout(
        problem_id=request.problem_id,
        sample=sample.number,
        prompt=request.prompt,
        prompt_ids=request.prompt_ids,
        completion=str(engine.tokenizer.decode(list(ids), skip_special_tokens=True)),
        completion_ids=ids,
        logprobs=logprobs,
        finish_reason=reason,
        sampling=sampling,
        model=engine.model_name,
        revision=engine.revision,
        engine=engine.name,
        iteration=iteration,
        gold=request.gold,
        question=request.question,
    )


def validate_requests(
    requests: Iterable[Request], sampling: SamplingParams, facts: "ModelFacts"
) -> None:
    """Refuse prompts that the model cannot complete.

    Args:
        requests: the prompts.
        sampling: its `max_tokens` must fit behind each.
        facts: how many token ids the model knows, and for how many tokens it has positions.

    Raises:
        EngineError: a prompt is empty, holds an unknown id, or leaves no room for `max_tokens`.

    """
    for request in requests:
        where, length = f"problem {request.problem_id!r}", len(request.prompt_ids)
        if not length:
            raise EngineError(
                f"{where} has an empty prompt; a model needs one token at least, such as its "
                "beginning-of-sequence token"
            )
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < facts.vocabulary:
            raise EngineError(
                f"{where} has token id {max(request.prompt_ids)}, but the model knows ids 0 to "
                f"{facts.vocabulary - 1}; tokenise prompts with the model's own tokenizer"
            )
        if facts.positions is not None and length + sampling.max_tokens > facts.positions:
            raise EngineError(
                f"{where} has a prompt of {length} tokens; with max_tokens={sampling.max_tokens} "
                f"that is {length + sampling.max_tokens}, and the model ends at "
                f"{facts.positions}; lower max_tokens, or shorten or drop the problem"
            )
