"""Attention over a tree of token runs that lie end to end in one row.

A prompt and its completions are such a tree: every completion sees the prompt and itself, and no
other completion. So a prompt is computed once however many completions continue it. Models call
this through the `AttentionInterface` of transformers and stay as they are.

Not here: which tokens make a tree (`topr.training.batches`), and which models can be trusted with
one (`topr.training.logprobs`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from topr.errors import TrainingError

NAME = "topr_tree"
FEW_QUERIES = 1024
"""On a CPU, torch's backward kernel is slower in bfloat16 than in float32 for fewer: for 100, three
to five times (AVX-512 with bfloat16)."""

QUERIES = 256
"""Of a node that one call of the kernel takes on a CPU, where a mask is needed: what is kept of
that, and what is masked of it, stays small."""

MASK_BLOCK = 128
"""Queries, and keys, of a block of FlexAttention's mask: its own default."""

FLEX = {"FORCE_USE_FLEX_ATTENTION": True}
"""Fewer than 128 queries get another kernel otherwise, which does not compile where they times the
heads that share a key are more than 128 (seen in torch 2.11)."""
COMPILATIONS = 64
"""Of attention in a process, for shapes, types, with and without gradient; torch's limit is 8."""

UNKNOWN = {
    "sliding_window": "a window (sliding_window)",
    "softcap": "soft-capped scores (softcap)",
    "s_aux": "attention sinks (s_aux)",
}
"""What attention functions are asked for, and a tree does not do."""

Node = tuple[int, int, int]
"""(start, end, stop): the node's own tokens are [start, end), its descendants' [end, stop)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """Which tokens of a row see which: a token sees those of its ancestors, and of its own node
    those up to itself.

    >>> Tree(nodes=((0, 3, 7), (3, 5, 5), (5, 7, 7)))  # a prompt of 3 tokens, 2 completions of 2
    Tree(nodes=((0, 3, 7), (3, 5, 5), (5, 7, 7)))
    """

    nodes: tuple[Node, ...]
    """In preorder: a node's descendants come right behind it."""
    _masks: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def visible(self) -> Tensor:
        """Return which key each query sees, [S, S] bool: what every path below computes with.

        >>> Tree(nodes=((0, 1, 4), (1, 3, 3), (3, 4, 4))).visible().int()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 1, 0],
                [1, 0, 0, 1]], dtype=torch.int32)
        """
        stop_S = self._stops()
        index = torch.arange(len(stop_S))
        return (index <= index[:, None]) & (index[:, None] < stop_S)

    def _stops(self) -> Tensor:
        """Return where the subtree of each token's node ends, [S] int64."""
        lengths = torch.tensor([end - start for start, end, _ in self.nodes])
        return torch.tensor([stop for *_, stop in self.nodes]).repeat_interleave(lengths)

    def chains(self) -> Iterator[tuple[list[Node], int, int]]:
        """Yield runs of nodes, each the first child of the one before it. They lie end to end as in
        a single sequence. Of each run: the nodes above it, its first token, the one past its last.

        >>> list(Tree(nodes=((0, 3, 7), (3, 5, 5), (5, 7, 7))).chains())
        [([], 0, 5), ([(0, 3, 7)], 5, 7)]
        """
        path: list[Node] = []
        above: list[Node] = []
        first = 0
        for start, end, stop in self.nodes:
            while path and path[-1][2] <= start:
                path.pop()
            if not path or path[-1][1] != start:
                above, first = list(path), start
            path.append((start, end, stop))
            if end == stop:  # no children
                yield above, first, end

    def last_queries(self, queries: int, keys: int) -> Tensor:
        """Return the causal mask of the last queries, at most `QUERIES`, on a path of keys.

        A part of one mask for all nodes and layers, [queries, keys] float32, 0 or -inf.
        """
        if "causal" not in self._masks:
            longest = max(
                end - first + sum(b - a for a, b, _ in above) for above, first, end in self.chains()
            )
            whole = torch.full((QUERIES, longest + QUERIES), -torch.inf)
            self._masks["causal"] = whole.triu_(longest + 1)
        mask: Tensor = self._masks["causal"]
        stop = mask.shape[1] - QUERIES + queries
        return mask[None, None, :queries, stop - keys : stop]

    def block_mask(self, device: torch.device) -> Any:
        """Return the same rule as FlexAttention's block mask, made once for all layers.

        Which blocks are seen follows from the largest and smallest stop of each block of keys, so
        that no mask of [S, S] is ever there.
        """
        if device not in self._masks:
            from torch.nn.attention.flex_attention import BlockMask

            stop_S = self._stops().to(device)
            size = len(stop_S)

            def rule(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return (key <= query) & (query < stop_S[key])

            blocks = -(-size // MASK_BLOCK)
            stops = functional.pad(stop_S, (0, blocks * MASK_BLOCK - size)).view(blocks, MASK_BLOCK)
            begin = torch.arange(blocks, device=device) * MASK_BLOCK
            last = (begin + MASK_BLOCK)[:, None] - 1  # queries down, keys across
            seen = (begin <= last) & (begin[:, None] < stops.amax(dim=1))
            full = (begin + MASK_BLOCK <= begin[:, None]) & (last < stops.amin(dim=1))
            parts = [_listed(each) for each in (seen & ~full, full)]
            self._masks[device] = BlockMask.from_kv_blocks(
                *parts[0], *parts[1], MASK_BLOCK, mask_mod=rule, seq_lengths=(size, size)
            )
        return self._masks[device]


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks of keys each block of queries has, and which come first.

    From [blocks, blocks] bool to [1, 1, blocks] and [1, 1, blocks, blocks] int32.
    """
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1, dtype=torch.int32)[None, None], order.int()[None, None]


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: Tree,
    scaling: float | None = None,
    dropout: float = 0.0,
    **further: Any,
) -> tuple[Tensor, None]:
    """Attend as the tree says; the signature is that of transformers' attention functions.

    Args:
        module: the attention layer that calls.
        query: [1, query heads, S, D].
        key: [1, key-value heads, S, D].
        value: [1, key-value heads, S, D].
        attention_mask: not read.
        tree: over the S tokens.
        scaling: of the scores; defaults to 1/sqrt(D).
        dropout: must be 0.
        **further: what other attention functions take; windows, soft caps and sinks are refused.

    Returns:
        [1, S, query heads, D], and no weights.

    Raises:
        TrainingError: the layer asks for what a tree does not know.

    """
    asked = {name: value for name, value in further.items() if name in UNKNOWN}
    # Sinks are a tensor, which `if` cannot judge.
    unknown = [UNKNOWN[name] for name, x in asked.items() if isinstance(x, Tensor) or x]
    if query.dtype == torch.float64:
        unknown.append("float64")
    if dropout or unknown or query.shape[-1] != value.shape[-1]:
        raise TrainingError(
            f"{type(module).__name__} attends with {', '.join(unknown) or 'dropout or odd shapes'},"
            " which a tree of prompts and completions does not know: set layout=padded"
        )
    # Under autocast rotary positions have made float32 of queries and keys, but not of values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if query.device.type == "cpu":
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        output: Tensor = _TreeAttention.apply(query, key, value, tree, scale)  # type: ignore[no-untyped-call]
    else:
        output = _flex_attention(query, key, value, tree, scaling)
    return output.transpose(1, 2), None


class _TreeAttention(torch.autograd.Function):
    """Attention on a CPU: torch's flash kernel for each chain of the tree, on all keys it sees.

    A prompt and its first completion are a chain, and each further completion is one. Its keys are
    gathered end to end, as they lie in a single sequence: so the kernel rounds as it does there,
    and in bfloat16 a completion's numbers do not depend on the others. (One call for a node and all
    its descendants, joined by their log-sum-exp, would be as exact, but its last bits are others,
    and layer by layer they grow.)

    Backward, the kernel needs the output and log-sum-exp over all keys only, and gives the exact
    share of any part of them: there the queries of a node and of all its descendants attend to the
    node's own keys. With its causal mask aligned to the first query, descendants see all of them
    and the node's own tokens the earlier ones.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: Tree, scale: float
    ) -> Tensor:
        output = torch.empty_like(query)
        lse = query.new_empty(query.shape[:-1], dtype=torch.float32)
        for above, start, end in tree.chains():
            runs = [*((first, last) for first, last, _ in above), (start, end)]
            keys, values = (
                torch.cat([x[:, :, first:last] for first, last in runs], dim=2)
                for x in (key, value)
            )
            for first in range(start, end, QUERIES if above else end - start):
                last = min(first + QUERIES, end) if above else end
                seen = keys.shape[2] - end + last
                found, found_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    query[:, :, first:last],
                    keys[:, :, :seen],
                    values[:, :, :seen],
                    is_causal=not above,
                    attn_mask=tree.last_queries(last - first, seen) if above else None,
                    scale=scale,
                )
                output[:, :, first:last] = found
                lse[:, :, first:last] = found_lse
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.nodes, ctx.scale = tree.nodes, scale
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        of_query = torch.zeros_like(query, dtype=torch.float32)
        of_key, of_value = (torch.empty_like(x, dtype=torch.float32) for x in (key, value))
        for start, end, stop in ctx.nodes:
            all_, own = (start, stop - start), (start, end - start)
            parts = [gradient.narrow(2, *all_), query.narrow(2, *all_), key.narrow(2, *own),
                     value.narrow(2, *own), output.narrow(2, *all_)]  # fmt: skip
            if stop - start < FEW_QUERIES:
                parts = [part.float() for part in parts]
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *parts, lse.narrow(2, *all_), 0.0, True, scale=ctx.scale
            )
            of_query.narrow(2, *all_).add_(found[0])
            of_key.narrow(2, *own).copy_(found[1])
            of_value.narrow(2, *own).copy_(found[2])
        dtype = query.dtype
        return of_query.to(dtype), of_key.to(dtype), of_value.to(dtype), None, None


def _flex_attention(
    query: Tensor, key: Tensor, value: Tensor, tree: Tree, scaling: float | None
) -> Tensor:
    """Attention on a GPU. Uncompiled, as torch continues beyond its limit, it holds all scores."""
    limits = {"recompile_limit": COMPILATIONS, "fail_on_recompile_limit_hit": True}
    try:
        with torch._dynamo.config.patch(limits):
            output: Tensor = _compiled_flex()(
                query, key, value,
                block_mask=tree.block_mask(query.device),
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
                kernel_options=FLEX,
            )  # fmt: skip
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        raise TrainingError(
            f"attention over prompts and completions was compiled {COMPILATIONS} times in this "
            "process, for other shapes and types each time: set layout=padded, or continue in a "
            "new process"
        ) from error
    return output


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
