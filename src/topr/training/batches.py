"""The layout of sequences in a forward pass, and which sequences of a step travel together. Which
rows make a step is in `topr.training.ordering`.

Axes: B sequences, T completion tokens (padded), N completion tokens of all sequences end to end;
R x S the tokens that the model is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from topr.training.attention import Node, Tree
from topr.training.mapped_rows import column_parts

Row = Mapping[str, Any]
"""One row of `topr.training.data.ROW_SCHEMA`, with `behavior_logprobs` once they are known."""

CPU_TOKENS = 4096
"""Tokens of a forward pass on a CPU where nothing else is asked for. More were not faster."""
GPU_TOKENS = 16_384
"""Tokens of a forward pass without gradient elsewhere: by estimate 3 GB with 8B parameters in
bfloat16."""
SHARED_START = 16
"""Tokens that prompts of one forward pass must have in common at their beginning for it to be
computed once: fewer do not pay for another node of the tree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Sequences of one forward pass. However they are laid out, their completion tokens are
    numbered end to end, in the order of the rows given.
    """

    input_ids: Tensor  # [R, S] int64
    position_ids: Tensor | None  # [R, S] int64; None: counted from 0 in each of the R
    attention_mask: Tensor | None  # [R, S] int64, 0 at padding; None: there is none
    tree: Tree | None  # over the S tokens of the only row; None: each of the R is a sequence
    predicts: Tensor  # [N] int64: the token, of R x S, whose logits predict the completion token
    targets: Tensor  # [N] int64: the completion tokens
    temperature: Tensor  # [N] float32
    lengths: tuple[int, ...]  # [B]: completion tokens of each sequence

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on a device."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        moved: dict[str, Any] = {
            k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)
        }
        return replace(self, **moved)


def padded(rows: Sequence[Row]) -> Batch:
    """Lay each sequence out in its own row, padded on the right.

    Padding is token 0 behind an attention mask of 0; it takes part in nothing.
    """
    sequences = [[*row["prompt_ids"], *row["completion_ids"]] for row in rows]
    input_ids = pad_sequence([torch.as_tensor(ids) for ids in sequences], batch_first=True)
    lengths = torch.tensor([len(ids) for ids in sequences])
    width = input_ids.shape[1]
    starts = [i * width + len(row["prompt_ids"]) for i, row in enumerate(rows)]
    predicts = [
        np.arange(start, start + len(row["completion_ids"])) - 1
        for start, row in zip(starts, rows, strict=True)
    ]
    return Batch(
        input_ids=input_ids,
        position_ids=None,
        attention_mask=(torch.arange(width) < lengths[:, None]).long(),
        tree=None,
        predicts=torch.from_numpy(np.concatenate(predicts)),
        **_completions(rows),
    )


def shared(rows: Sequence[Row]) -> Batch:
    """Lay all sequences end to end in one row, each prompt once, before its completions.

    What prompts begin with together (few-shot examples) is there once too. Nothing is padded.

    Prompts "s s a a", with the completions "x x" and "y", and "s s b", with "z z", where two tokens
    in common are enough:

        number     0 1   2 3   4 5   6   7   8 9
        token      s s   a a   x x   y   b   z z
        position   0 1   2 3   4 5   4   2   3 4
        nodes      (0, 2, 10), (2, 4, 7), (4, 6, 6), (6, 7, 7), (7, 10, 10)
        predicts   3 4, of "x x"; 3, of "y"; 7 8, of "z z"
    """
    members: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        members.setdefault(row["group"], []).append(i)
    prompts = {group: np.asarray(rows[found[0]]["prompt_ids"]) for group, found in members.items()}
    ids, positions, nodes = list[Any](), list[Any](), list[Node]()
    end = 0
    predicts: list[Any] = [None] * len(rows)
    for groups, common in alike_prompts(prompts):
        ids.append(prompts[groups[0]][:common])
        positions.append(np.arange(common))
        begin = end
        end += common
        below = list[Node]()
        for group in groups:
            prompt, indices = prompts[group], members[group]
            start, last = end, end + len(prompt) - common - 1
            end = last + 1
            ids.append(prompt[common:])
            positions.append(np.arange(common, len(prompt)))
            children = list[Node]()
            for i in indices:
                completion = np.asarray(rows[i]["completion_ids"])
                stop = end + len(completion)
                predicts[i] = np.arange(end - 1, stop - 1)
                predicts[i][0] = last  # The first token is predicted where the prompt ends.
                ids.append(completion)
                positions.append(len(prompt) + np.arange(len(completion)))
                children.append((end, stop, stop))
                end = stop
            # A prompt with one completion is a plain sequence.
            several = len(indices) > 1
            below += [(start, last + 1, end), *children] if several else [(start, end, end)]
        nodes += [(begin, begin + common, end), *below] if common else below
    return Batch(
        input_ids=torch.from_numpy(np.concatenate(ids)).long()[None],
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        attention_mask=None,
        tree=Tree(nodes=tuple(nodes)),
        predicts=torch.from_numpy(np.concatenate(predicts)),
        **_completions(rows),
    )


def alike_prompts(prompts: Mapping[int, Any]) -> list[tuple[list[int], int]]:
    """Gather prompts that begin with the same `SHARED_START` tokens.

    Returns the groups that do, those first seen first, and how many tokens they all begin with; 0
    for a prompt that is alone. Each prompt keeps at least one token.

    >>> examples = list(range(16))
    >>> alike_prompts({7: [*examples, 1, 2, 3], 8: [9] * 20, 9: [*examples, 1, 5]})
    [([7, 9], 17), ([8], 0)]
    """
    found: dict[Any, list[int]] = {}
    for group, prompt in prompts.items():
        start = tuple(prompt[:SHARED_START]) if len(prompt) > SHARED_START else group
        found.setdefault(start, []).append(group)
    return [(groups, _common_start([prompts[g] for g in groups])) for groups in found.values()]


def _common_start(prompts: Sequence[Any]) -> int:
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts)) - 1
    columns = np.stack([prompt[:shortest] for prompt in prompts])
    same = (columns == columns[0]).all(axis=0)
    return int(shortest if same.all() else same.argmin())


def _completions(rows: Sequence[Row]) -> dict[str, Any]:
    lengths = tuple(len(row["completion_ids"]) for row in rows)
    temperatures = torch.tensor([row["temperature"] for row in rows], dtype=torch.float32)
    targets = np.concatenate([row["completion_ids"] for row in rows])
    return {
        "targets": torch.from_numpy(targets).long(),
        "temperature": temperatures.repeat_interleave(torch.tensor(lengths)),
        "lengths": lengths,
    }


def flat_tokens(values: Sequence[Any]) -> Tensor:
    """Lay numbers per completion token end to end, [N] float32, as a batch of the rows does."""
    return torch.from_numpy(np.concatenate([np.asarray(v, dtype=np.float32) for v in values]))


def spread(values: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Turn tokens end to end, [N], into [B, T] with zeros at padding, and the mask of [B, T].

    >>> spread(torch.tensor([1.0, 2.0, 3.0]), [1, 2])[0].tolist()
    [[1.0, 0.0], [2.0, 3.0]]
    """
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    mask = mask.to(values.device)
    return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values.float()), mask


def split_by_tokens(rows: Sequence[Row], budget: int | None, *, share: bool) -> list[list[int]]:
    """Split the rows of one step into micro-batches of at most `budget` tokens.

    Args:
        rows: with `prompt_ids`, `completion_ids` and `group`.
        budget: tokens that one forward pass is given, padding included. A single sequence that is
            longer has a micro-batch to itself. None: all rows in one.
        share: the rows will be laid out by `shared`: a prompt counts once, as does what prompts
            begin with together, and these and a prompt's completions stay together where the budget
            allows. Otherwise by `padded`: rows alike in length travel together.

    Returns:
        The rows' positions. Which rows travel together changes memory and time, never the gradient.

    """
    sizes = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows]
    if not share:
        return _split_padded(sizes, budget)
    groups = [row["group"] for row in rows]
    alike = alike_prompts({row["group"]: row["prompt_ids"] for row in rows})
    kin = {group: number for number, (found, _) in enumerate(alike) for group in found}
    longest: dict[int, int] = {}
    for group, size in zip(groups, sizes, strict=True):
        longest[group] = max(size, longest.get(group, 0))
    largest = [max(longest[group] for group in found) for found, _ in alike]

    def place(i: int) -> tuple[int, ...]:
        group = groups[i]
        return -largest[kin[group]], kin[group], -longest[group], group, -sizes[i], i

    parts: list[list[int]] = []
    tokens, before = 0, -1
    for i in sorted(range(len(rows)), key=place):
        added = sizes[i]
        if parts and groups[i] == groups[before]:
            added = len(rows[i]["completion_ids"])
        elif parts and kin[groups[i]] == kin[groups[before]]:
            added -= alike[kin[groups[i]]][1]
        tokens += added
        if not parts or (budget is not None and tokens > budget):
            parts.append([])
            tokens = sizes[i]
        parts[-1].append(i)
        before = i
    return parts


def _split_padded(sizes: Sequence[int], budget: int | None) -> list[list[int]]:
    parts: list[list[int]] = []
    width = 0
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if not parts or (budget is not None and width * (len(parts[-1]) + 1) > budget):
            parts.append([])
            width = sizes[i]
        parts[-1].append(i)
    return parts


def longest_row(rows: Dataset) -> Row:
    """Return the row with the most tokens, the first of several."""
    lengths = (
        np.concatenate([part.value_lengths() for part in column_parts(rows, name)])
        for name in ("prompt_ids", "completion_ids")
    )
    row: Row = rows[int(np.argmax(sum(lengths)))]
    return row
