"""Made-up graded completions with their exact behaviour log-probabilities. No tests here."""

import random
from typing import Any

import torch

from tiny import tiny_model, tiny_tokenizer

WORDS = ["The", " the", " answer", " is", " 1", " 2", "2", " =", " a", " Bob", " has", "\n"]


def made_rows(
    prompts: int = 4,
    per_prompt: int = 4,
    *,
    seed: int = 0,
    logprobs: bool = True,
    model: Any = None,
) -> list[dict[str, Any]]:
    """Rows of several lengths; the even completions are right, the odd ones wrong."""
    chance = random.Random(seed)
    tokenizer = tiny_tokenizer()
    model = model if model is not None else tiny_model()
    rows = []
    for p in range(prompts):
        prompt = "".join(chance.choices(WORDS, k=chance.randint(3, 9)))
        for s in range(per_prompt):
            completion = "".join(chance.choices(WORDS, k=chance.randint(1, 8)))
            row = {
                "problem_id": f"p{p}",
                "sample": s,
                "prompt": prompt,
                "completion": completion,
                "prompt_ids": tokenizer(prompt)["input_ids"],
                "completion_ids": [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id],
                "reward": 1.0 if s % 2 == 0 else -1.0,
            }
            if logprobs:
                row["logprobs"] = plain_logprobs(model, row).tolist()
            rows.append(row)
    return rows


def as_rows(rows: list[dict[str, Any]], temperature: float = 1.0) -> list[dict[str, Any]]:
    """Rows as the trainer has them: numbered, grouped by prompt."""
    groups = {row["problem_id"]: number for number, row in enumerate(rows[::-1])}
    return [
        {**row, "row": number, "temperature": temperature, "group": groups[row["problem_id"]]}
        for number, row in enumerate(rows)
    ]


def plain_logprobs(model: Any, row: dict[str, Any], temperature: float = 1.0) -> torch.Tensor:
    """The plain computation: one unpadded sequence, all logits, float64 log-softmax."""
    ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
    logits = model(input_ids=ids).logits[0].double() / temperature
    start = len(row["prompt_ids"])
    table = logits[start - 1 : -1].log_softmax(-1)
    return table.gather(1, ids[0, start:, None]).squeeze(1)
