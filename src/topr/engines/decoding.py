"""Decodes one batch of completions side by side with a key-value cache.

Not here: which rows make a batch, and records (`topr.engines.transformers`); the choice of a
token (`topr.engines.sampling`). Shapes: _B rows still in the batch, _P distinct prompts, _N rows
of the whole batch, _T positions.

Prompts are left-padded to one width, and prefilled once each however many rows continue them.
Position ids and the attention mask are explicit, so padding changes no result. Rows that have
ended leave the batch together once they are an eighth of it: leaving copies the whole cache.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from topr.engines.sampling import draw, widest_float
from topr.engines.stops import StopStrings
from topr.records import SamplingParams

_UNIFORMS = 64  # random numbers drawn per row at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """One completion."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool
    """By an end-of-sequence token or a stop string, not by the token limit."""


class Decoder:
    """What stays the same from batch to batch: the model, and how its completions end."""

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: SamplingParams,
        eos_ids: Sequence[int],
        stops: StopStrings,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.stops = stops
        self._eos_E = torch.tensor(list(eos_ids), dtype=torch.long, device=model.device)
        parameters = inspect.signature(model.forward).parameters
        # Spares the head all prompt positions but the last; models that take no such argument
        # compute them.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    @torch.inference_mode()
    def decode(
        self, prompts: Sequence[tuple[int, ...]], streams: Sequence[np.random.Generator]
    ) -> list[Decoded]:
        """Complete each prompt, in the order given; equal prompts share their prefill.

        Args:
            prompts: token ids of N prompts, none empty.
            streams: the random numbers of each.

        """
        batch = _Batch(self.model, prompts, streams, self.sampling.max_tokens)
        logits_BV = batch.prefill(self._last_only)
        for step in range(self.sampling.max_tokens):
            tokens_B, logprobs_B = draw(logits_BV, batch.uniforms(step), self.sampling)
            batch.record(step, tokens_B, logprobs_B, self._ends(batch, step, tokens_B))
            ended = int(batch.ended_B.sum())
            if ended == len(tokens_B) or step + 1 == self.sampling.max_tokens:
                break
            if ended * 8 >= len(tokens_B):
                tokens_B = tokens_B[batch.drop_ended()]
            logits_BV = batch.forward(step, tokens_B)
        return batch.decoded()

    def _ends(self, batch: "_Batch", step: int, tokens_B: Tensor) -> Tensor:
        ends_B = (tokens_B[:, None] == self._eos_E).any(-1)
        if not self.stops:
            return ends_B
        tails_B = batch.tails(step, tokens_B, self.stops.tail).tolist()
        return ends_B | torch.tensor(self.stops.completed(tails_B), device=ends_B.device)


class _Batch:
    """The rows of one batch: what they have written, and the cache of those still in it."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[tuple[int, ...]],
        streams: Sequence[np.random.Generator],
        max_tokens: int,
    ) -> None:
        self._model = model
        self._device = model.device
        self._streams = list(streams)
        self._cache = DynamicCache(config=model.config)
        distinct = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        self._prompts = list(distinct)
        self._width = max(map(len, prompts))
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        self._prompt_of_B = torch.tensor([distinct[prompt] for prompt in prompts]).to(self._device)
        self._lengths_B = lengths.to(self._device)
        self._mask_BT = self._mask(self._lengths_B, self._width + max_tokens)
        self._row_B = torch.arange(len(prompts), device=self._device)
        self.ended_B = torch.zeros(len(prompts), dtype=torch.bool, device=self._device)
        self._uniforms_BU = torch.empty(0)
        shape = (len(prompts), max_tokens)
        self._ids_NT = torch.zeros(shape, dtype=torch.long, device=self._device)
        self._logprobs_NT = torch.zeros(shape, dtype=torch.float32, device=self._device)
        self._written_N = torch.zeros(len(prompts), dtype=torch.long, device=self._device)

    def _mask(self, lengths_B: Tensor, columns: int) -> Tensor:
        """True where a column holds a token: everywhere but in the padding left of a prompt."""
        columns_T = torch.arange(columns, device=self._device)
        return columns_T >= (self._width - lengths_B)[:, None]

    def prefill(self, last_only: dict[str, int]) -> Tensor:
        """Run the distinct prompts; return the logits after each row's prompt, [B, V]."""
        lengths_P = torch.tensor([len(prompt) for prompt in self._prompts])
        ids_PT = torch.tensor([(0,) * (self._width - len(p)) + p for p in self._prompts])
        mask_PT = self._mask(lengths_P.to(self._device), self._width)
        output = self._model(
            input_ids=ids_PT.to(self._device),
            attention_mask=mask_PT,
            position_ids=(mask_PT.long().cumsum(-1) - 1).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            **last_only,
        )
        self._cache.batch_select_indices(self._prompt_of_B)
        logits_BV: Tensor = output.logits[:, -1][self._prompt_of_B]
        return logits_BV

    def forward(self, step: int, tokens_B: Tensor) -> Tensor:
        """Append each row's newest token; return the logits after it, [B, V]."""
        output = self._model(
            input_ids=tokens_B[:, None],
            attention_mask=self._mask_BT[:, : self._width + step + 1],
            position_ids=self._lengths_B[:, None] + step,
            past_key_values=self._cache,
            use_cache=True,
        )
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV

    def uniforms(self, step: int) -> Tensor:
        """Return each row's random number for token number `step`, [B]."""
        column = step % _UNIFORMS
        if column == 0:
            block_BU = np.stack([stream.random(_UNIFORMS) for stream in self._streams])
            self._uniforms_BU = torch.from_numpy(block_BU).to(
                self._device, dtype=widest_float(self._device)
            )
        return self._uniforms_BU[:, column]

    def record(self, step: int, tokens_B: Tensor, logprobs_B: Tensor, ends_B: Tensor) -> None:
        """Write the newest token of each row. Rows that ended earlier write what none reads."""
        self._ids_NT[self._row_B, step] = tokens_B
        self._logprobs_NT[self._row_B, step] = logprobs_B
        self._written_N[self._row_B] += ~self.ended_B
        self.ended_B = self.ended_B | ends_B

    def tails(self, step: int, tokens_B: Tensor, size: int) -> Tensor:
        """Return the last `size` tokens of each row, the newest included."""
        written_BT = self._ids_NT[self._row_B, max(0, step + 1 - size) : step]
        return torch.cat((written_BT, tokens_B[:, None]), dim=1)

    def drop_ended(self) -> Tensor:
        """Take the ended rows out of the cache; return which rows stay."""
        stay_B = (~self.ended_B).nonzero()[:, 0]
        self._cache.batch_select_indices(stay_B)
        self._row_B = self._row_B[stay_B]
        self._lengths_B = self._lengths_B[stay_B]
        self._mask_BT = self._mask_BT[stay_B]
        self._uniforms_BU = self._uniforms_BU[stay_B]
        self._streams = [self._streams[index] for index in stay_B.tolist()]
        self.ended_B = self.ended_B[stay_B]
        return stay_B

    def decoded(self) -> list[Decoded]:
        """Return every row of the batch, in the order given."""
        cut_off = set(self._row_B[~self.ended_B].tolist())
        rows = zip(
            self._ids_NT.tolist(),
            self._logprobs_NT.tolist(),
            self._written_N.tolist(),
            strict=True,
        )
        return [
            Decoded(
                ids=tuple(ids[:written]),
                logprobs=tuple(logprobs[:written]),
                ended=number not in cut_off,
            )
            for number, (ids, logprobs, written) in enumerate(rows)
        ]
