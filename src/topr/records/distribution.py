"""Which distribution a completion was sampled from, by its sampling parameters. The one definition.

Training scores a completion under softmax(logits / temperature) over the whole vocabulary. Recorded
log-probabilities are log mu only where that is what was sampled. No tables, no models here.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from topr.errors import DataError

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "top_a": (0,),
    "tfs_z": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "no_repeat_ngram_size": (0,),
    "min_tokens": (0,),
    "min_new_tokens": (0,),
    "min_length": (0,),
    "num_beams": (1,),
    "best_of": (1,),
    "mirostat": (0,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "diversity_penalty": (0,),
    "num_beam_groups": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "do_sample": (True,),
}
"""Parameters that change what is sampled, and the values at which they change nothing. Null, false
and what is empty change nothing either, `do_sample` aside."""

ELSEWHERE = frozenset(
    {
        "max_tokens", "max_new_tokens", "max_completion_tokens", "max_length", "stop",
        "stop_token_ids", "stop_strings", "seed", "n", "num_return_sequences", "logprobs",
        "top_logprobs", "prompt_logprobs", "return_token_ids", "echo", "stream", "stream_options",
        "user", "model", "include_stop_str_in_output", "skip_special_tokens",
        "spaces_between_special_tokens", "detokenize", "output_kind", "ignore_eos", "use_cache",
        "pad_token_id", "bos_token_id", "eos_token_id", "timeout", "logprobs_mode", "mirostat_tau",
        "mirostat_eta", "xtc_threshold", "dry_base", "dry_allowed_length", "early_stopping",
        "length_penalty", "priority", "renormalize_logits", "messages", "prompt", "metadata",
        "store", "service_tier", "tools", "tool_choice", "parallel_tool_calls", "modalities",
        "reasoning_effort", "verbosity", "transformers_version", "_from_model_config",
    }
)  # fmt: skip
"""Parameters that say what the prompt is, when a completion ends and what is reported of it, or
that do nothing by themselves."""


def _number(low: float, high: float) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        return isinstance(value, int | float) and type(value) is not bool and low <= value <= high

    return fits


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    number = _number(low, high)
    return lambda value: number(value) and value == int(value)


def _texts(value: Any) -> bool:
    values = [value] if isinstance(value, str) else value
    return isinstance(values, list | tuple) and all(isinstance(one, str) for one in values)


_MAX_INT32, _MAX_INT64 = 2**31 - 1, 2**63 - 1
_EXPECTED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (_number(0, sys.float_info.max), "a number of 0 or more"),
    "top_p": (_number(0, 1), "a number from 0 to 1 (1: off)"),
    "top_k": (_whole(-1, _MAX_INT32), "a whole number of -1 or more (0 or -1: off)"),
    "max_tokens": (_whole(-1, _MAX_INT32), "a whole number"),
    "seed": (_whole(-_MAX_INT64, _MAX_INT64), "a whole number"),
    "stop": (_texts, "text, or a list of texts"),
}
"""What the parameters that a rollout records may be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """What was sampled.

    >>> distribution({"temperature": 0.7, "top_k": 50, "min_p": 0.0})
    Distribution(temperature=0.7, changes=('top_k=50',), unrecorded=False)
    """

    temperature: float
    """0: greedy."""
    changes: tuple[str, ...]
    """Parameters that made it another one than softmax(logits / temperature)."""
    unrecorded: bool = False
    """One of them is a parameter that a rollout cannot say: nothing would tell that its
    log-probabilities are not log mu."""

    @property
    def greedy(self) -> bool:
        """Whether nothing was sampled: the likeliest token was taken each time, and there is no
        log mu that training could compare with."""
        return self.temperature == 0.0

    @property
    def scored(self) -> bool:
        """Whether it is the one that training scores, so that recorded numbers are log mu."""
        return not self.greedy and not self.changes


def distribution(sampling: Mapping[str, Any] | None) -> Distribution:
    """Return what sampling parameters say was sampled; what they do not name is as by default.

    A parameter that is not known here counts as one that changes it.

    Raises:
        DataError: a parameter that a rollout records is of the wrong kind, or out of its range.

    """
    given = {name: value for name, value in (sampling or {}).items() if value is not None}
    for name, (fits, expected) in _EXPECTED.items():
        if name in given and not fits(given[name]):
            raise DataError(f"{name} {given[name]!r:.80}: expected {expected}")
    temperature = given.pop("temperature", 1.0)
    if given.get("do_sample") is False:
        return Distribution(temperature=0.0, changes=())
    changes = {name: value for name, value in given.items() if not _changes_nothing(name, value)}
    return Distribution(
        temperature=float(temperature),
        changes=tuple(f"{name}={value}" for name, value in changes.items()),
        unrecorded=not changes.keys() <= _EXPECTED.keys(),
    )


def _changes_nothing(name: str, value: Any) -> bool:
    if name in ELSEWHERE or value is False:
        return True
    if isinstance(value, str | list | tuple | dict | set):
        return len(value) == 0
    return value in NEUTRAL.get(name, ())
