"""Attention to keys and values that several rows share, part by part, joined by log-sum-exp.

Not here: what is held, and for how long (`topr.engines.prompt_cache`). Shapes: B rows, P prompts,
R rows of one prompt, H key-value heads, G query heads of each, T tokens, D width of a head.

    beginning   [H, T, D]     B * G queries of a head attend together
    prompts     [P, H, T, D]  R * G queries of a head attend together, for each prompt
    own         [B, H, T, D]  G queries of a head, for each row

So key-value heads are never expanded, and what is shared is read once a step. The softmax over all
parts is that over each, weighted by the exponential of its log-sum-exp (float32). torch's own
kernel gives both, on a CPU.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from topr.errors import ModelError

NAME = "topr_shared_prompts"
UNKNOWN = ("sliding_window", "softcap", "s_aux")
"""What layers may ask an attention function for, and this one cannot do."""

KeysValues = tuple[Tensor, Tensor]
Layers = Sequence[KeysValues]
"""Of each layer, [H, T, D]; empty: of no token."""
Part = tuple[Tensor, Tensor]
"""Attention to some keys, [..., D], and its log-sum-exp, [...]."""


class Prefill:
    """Prompts that are run end to end in one row."""

    def __init__(self, lengths: Sequence[int], begun: Layers) -> None:
        """Let each token see the beginning, and its own prompt up to itself.

        Args:
            lengths: tokens of each prompt, without the beginning.
            begun: the beginning that all share, which is not in the row.

        """
        self._lengths = list(lengths)
        self._begun = begun

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the attention, as `query`, [1, H * G, T, D]."""
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        prompts = zip(
            *(torch.split(x, self._lengths, dim=2) for x in (query, key, value)), strict=True
        )
        own = [_kernel(*each, scale=scale, is_causal=True) for each in prompts if each[0].numel()]
        out, lse = (torch.cat(found, dim=2) for found in zip(*own, strict=True))
        if not self._begun:
            return out
        together = query.reshape(1, -1, groups * query.shape[2], query.shape[3])  # [1, H, G * T, D]
        begun = _kernel(together, *(x[None] for x in self._begun[layer]), scale=scale)
        shaped = begun[0].reshape(out.shape), begun[1].reshape(lse.shape)
        return _joined([(out, lse), shaped])


class Step:
    """A new token of each row."""

    def __init__(
        self, rows: Sequence[Hashable], prompts: Mapping[Any, Layers], begun: Layers
    ) -> None:
        """Let each token see the beginning, its row's prompt, and what the row has written.

        Args:
            rows: the name of each row's prompt.
            prompts: what is held of each name, without the beginning.
            begun: the beginning that all share.

        """
        self._begun = begun
        members: dict[Hashable, list[int]] = {}
        for row, name in enumerate(rows):
            members.setdefault(name, []).append(row)
        self._most = max(map(len, members.values()))
        # A prompt with fewer rows than others has its first one again, in places that none reads.
        grid = [its + its[:1] * (self._most - len(its)) for its in members.values()]
        self._row_PR = torch.tensor(grid).flatten()
        place = {row: place for place, row in reversed(list(enumerate(self._row_PR.tolist())))}
        self._place_B = torch.tensor([place[row] for row in range(len(rows))])
        self._prompts, self._lengths_P = _stacked([prompts[name] for name in members])

    def see(self, own_B: Tensor, width: int) -> None:
        """Note how many of the last `width` columns are a row's own."""
        prompt_T = torch.arange(int(self._lengths_P.max()))
        own_BT = torch.arange(width) < (width - own_B)[:, None]
        self._hidden = own_BT, prompt_T >= self._lengths_P[:, None]
        self._masks: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def _masks_of(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the masks of own columns and of prompts for scores of this type."""
        if dtype not in self._masks:  # the first layer of a forward pass
            own, prompt = self._hidden
            self._masks[dtype] = _mask(own, dtype), _mask(prompt, dtype)
        return self._masks[dtype]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the attention, as `query`, [B, H * G, 1, D]."""
        rows, kept = key.shape[:2]
        queries = query.reshape(rows, kept, -1, query.shape[-1])  # [B, H, G, D]
        own_mask, mask = self._masks_of(query.dtype)
        parts = [_kernel(queries, key, value, scale=scale, attn_mask=own_mask)]
        if self._prompts:
            by_prompt = queries[self._row_PR].view(-1, self._most, *queries.shape[1:])
            together = by_prompt.transpose(1, 2).flatten(2, 3)  # [P, H, R * G, D]
            found = _kernel(together, *self._prompts[layer], scale=scale, attn_mask=mask)
            out, lse = (_rows_first(x, self._most).flatten(0, 1)[self._place_B] for x in found)
            parts.append((out, lse))
        if self._begun:
            together = queries.transpose(0, 1).flatten(1, 2)[None]  # [1, H, B * G, D]
            found = _kernel(together, *(x[None] for x in self._begun[layer]), scale=scale)
            out, lse = (_rows_first(x, rows)[0] for x in found)
            parts.append((out, lse))
        return _joined(parts).reshape(query.shape)


def _rows_first(found: Tensor, rows: int) -> Tensor:
    """Return [P, H, R * G, ...] as [P, R, H, G, ...]."""
    prompts, kept, queries = found.shape[:3]
    return found.reshape(prompts, kept, rows, queries // rows, *found.shape[3:]).transpose(1, 2)


def _stacked(prompts: Sequence[Layers]) -> tuple[list[KeysValues], Tensor]:
    """Return each layer's keys and values of all prompts, [P, H, T, D], zeros behind the shorter;
    and the lengths, [P] int64.

    Nothing where no prompt has a token: torch's kernel ends the process over no key.
    """
    lengths = [each[0][0].shape[1] if each else 0 for each in prompts]
    longest = max(lengths)
    if not longest:
        return [], torch.tensor(lengths)
    like = next(each for each in prompts if each)

    def stack(layer: int, which: int) -> Tensor:
        held = [
            (each or like)[layer][which][:, :n] for each, n in zip(prompts, lengths, strict=True)
        ]
        return torch.stack([functional.pad(x, (0, 0, 0, longest - x.shape[1])) for x in held])

    return [(stack(layer, 0), stack(layer, 1)) for layer in range(len(like))], torch.tensor(lengths)


def _mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to scores, [*, 1, 1, T]: the smallest number where a key is hidden.

    Not -inf: of a row without a prompt nothing but NaN would be left.
    """
    zeros = torch.zeros(hidden.shape, dtype=dtype)
    return zeros.masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None]


def computed_in(value: Tensor) -> torch.dtype:
    """Return the type that attention is computed in: autocast's where it is on, as torch's own is.

    Queries and keys come in float32 then, from their rotation.
    """
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype


def _kernel(query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Part:
    """Return the attention of queries to some keys. There must be a key: without, it is a crash."""
    found: Part = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, **how
    )
    return found


def _joined(parts: Sequence[Part]) -> Tensor:
    """Return the attention to all parts together."""
    if len(parts) == 1:
        return parts[0][0]
    joint = torch.stack([lse for _, lse in parts]).logsumexp(0)
    shares = [(lse - joint).exp()[..., None] * out.float() for out, lse in parts]
    return torch.stack(shares).sum(0).to(parts[0][0].dtype)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared: Step | Prefill,
    scaling: float | None = None,
    dropout: float = 0.0,
    **further: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention functions do, to what `shared` says.

    Raises:
        ModelError: the layer asks for what this does not know.

    """
    asked = [name for name in UNKNOWN if further.get(name) is not None]
    if asked or dropout or query.shape[-1] != value.shape[-1]:
        what = ", ".join(asked) or "dropout, or with values of another width than keys"
        raise ModelError(f"{type(module).__name__} attends with {what}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer: Any = module.layer_idx
    dtype = computed_in(value)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return shared.attend(int(layer), query, key, value, scale).transpose(1, 2), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
