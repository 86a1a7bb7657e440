"""What every engine does: prompts and sampling parameters in, rollouts out as they finish."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from topr.records import Rollout, SamplingParams

if TYPE_CHECKING:  # it takes seconds to import, and an engine may live elsewhere
    from transformers import PreTrainedTokenizerBase


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


class Engine(Protocol):
    """Draws completions from one model, which it may hold in memory, in processes or on a server.

    The same requests, sampling parameters and seed give the same rollouts. A sample depends on
    (seed, problem_id, sample number), not on which other requests travel with it, up to the
    rounding of the model's own arithmetic.
    """

    name: str
    model_name: str
    """Path or hub name of the model."""
    revision: str | None
    """Commit of a hub model; fingerprint of a local one."""
    tokenizer: "PreTrainedTokenizerBase"
    """The model's: it renders prompts and turns ids into text."""

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, *, iteration: int = 0
    ) -> Iterator[Rollout]:
        """Yield each completion as it finishes, in any order.

        Raises:
            EngineError: a prompt leaves no room for a completion, or the model fails.

        """
        ...

    def close(self) -> None:
        """Let go of the model: memory, processes, servers. Nothing can be drawn after it."""
        ...
