"""On CUDA too, attention, log-probabilities and gradients are those of the plain computation."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from torch.nn.utils.rnn import pad_sequence

from topr.training.attention import Tree, tree_attention
from topr.training.fitting import forward_of
from topr.training.logprobs import Forward

SHARED = Forward(share=True, chunk=True)
CHUNKED = Forward(share=False, chunk=True)
SHARING = ["llama", "qwen2", "qwen3", "gemma", "gpt_neox"]


def tree_of(prompts, completions, length):
    """Prompts of `length` tokens and more, each with completions of other lengths."""
    nodes, start = [], 0
    for p in range(prompts):
        own = length + 3 * p
        stop = start + own + sum(length // 2 + i for i in range(completions))
        nodes.append((start, start + own, stop))
        at = start + own
        for i in range(completions):
            nodes.append((at, at + length // 2 + i, at + length // 2 + i))
            at = nodes[-1][1]
        start = stop
    return Tree(nodes=tuple(nodes)), start


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["all", "grouped"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=["f32", "bf16"]
)
def test_attention_over_trees_of_any_size_is_compiled_a_few_times(cuda, heads, dtype, tolerance):
    torch.manual_seed(0)
    torch.compiler.reset()
    counters.clear()
    for prompts, completions, length in (
        (1, 2, 10), (2, 3, 40), (3, 4, 64), (1, 8, 200), (5, 2, 90), (2, 2, 400), (4, 4, 33),
        (1, 3, 128), (3, 3, 77), (2, 6, 150), (6, 2, 55), (1, 1, 500), (2, 5, 99), (3, 2, 256),
    ):  # fmt: skip
        tree, size = tree_of(prompts, completions, length)
        q = torch.randn(1, heads[0], size, 16, device=cuda).to(dtype).requires_grad_()
        k, v = (
            torch.randn(1, heads[1], size, 16, device=cuda).to(dtype).requires_grad_()
            for _ in range(2)
        )
        ours, _ = tree_attention(torch.nn.Module(), q, k, v, None, tree=tree, scaling=0.3)
        dense = torch.nn.functional.scaled_dot_product_attention(
            q.double(), k.double(), v.double(), tree.visible().to(cuda), scale=0.3, enable_gqa=True
        ).transpose(1, 2)
        upstream = torch.randn_like(ours)
        found = torch.autograd.grad(ours, (q, k, v), upstream)
        expected = torch.autograd.grad(dense, (q, k, v), upstream.double())
        for a, b in zip((ours, *found), (dense, *expected), strict=True):
            assert (a.double() - b.double()).norm() / b.double().norm() < tolerance
    assert 1 <= counters["stats"]["unique_graphs"] <= 3


def rows(prompts=3, per_prompt=4):
    generator = torch.Generator().manual_seed(0)

    def ids(count):
        return torch.randint(5, 277, (count,), generator=generator).tolist()

    found = []
    for p in range(prompts):
        prompt = [*range(30, 70), *ids(20 + 7 * p)]
        for s in range(per_prompt if p else 1):
            found.append(
                {
                    "row": len(found),
                    "group": p,
                    "prompt_ids": prompt,
                    "completion_ids": [*ids(5 + 9 * s), 2],
                    "temperature": 0.9,
                    "reward": 1.0 if s % 2 == 0 else -1.0,
                }
            )
    return found


def weigh_by_position(rows, device):
    factors = torch.tensor([row["reward"] * (1 + i) for i, row in enumerate(rows)], device=device)

    def weigh(logprobs, sequences):
        lengths = [len(row["completion_ids"]) for row in rows[sequences]]
        return factors[sequences].repeat_interleave(torch.tensor(lengths, device=device)) / 100

    return weigh


def plain(model, rows):
    """Log-probabilities end to end and gradients: padded on the right, all logits, by autograd."""
    model.zero_grad()
    device = next(model.parameters()).device
    sequences = [torch.tensor(row["prompt_ids"] + row["completion_ids"]) for row in rows]
    ids = pad_sequence(sequences, batch_first=True).to(device)
    mask = pad_sequence([torch.ones_like(s) for s in sequences], batch_first=True).to(device)
    logits = model(input_ids=ids, attention_mask=mask).logits.double() / 0.9
    parts = []
    for row, table, tokens in zip(rows, logits, ids, strict=True):
        start, stop = len(row["prompt_ids"]), len(row["prompt_ids"] + row["completion_ids"])
        logprobs = table[start - 1 : stop - 1].log_softmax(-1)
        parts.append(logprobs.gather(1, tokens[start:stop, None]).squeeze(1))
    logprobs = torch.cat(parts)
    weights = weigh_by_position(rows, device)(logprobs.detach(), slice(0, len(rows)))
    (-(weights * logprobs).sum()).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return logprobs.detach(), found


def ours(model, way, rows):
    model.zero_grad()
    device = next(model.parameters()).device
    batch = way.batch(rows).to(device)
    with way.of(model):
        loss, logprobs = way.weighted_loss(model, batch, weigh_by_position(rows, device))
        loss.backward()
    return logprobs, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def cosine(found, expected):
    a, b = (torch.cat([g.flatten().float() for g in grads.values()]) for grads in (found, expected))
    return torch.nn.functional.cosine_similarity(a, b, dim=0)


@pytest.mark.parametrize("way", [SHARED, CHUNKED], ids=["shared", "chunked"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", SHARING)
def test_logprobs_and_gradients_are_the_plain_ones(model_on, architecture, lora, way):
    model = model_on(architecture)
    if lora:
        torch.manual_seed(0)
        model = get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False
            ),
        )
    expected, of_plain = plain(model, rows())
    found, gradients = ours(model, way, rows())
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
    assert gradients.keys() == of_plain.keys()
    for name, gradient in of_plain.items():
        gap = (gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-3)
        assert gap < 1e-3, (name, gap.item())


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", SHARING)
def test_in_bfloat16_gradients_point_the_same_way(model_on, architecture, stored):
    model = model_on(architecture, initializer_range=0.1)
    expected, of_plain = plain(model, rows())
    model.to(getattr(torch, stored))
    with torch.autocast("cuda", torch.bfloat16):
        found, gradients = ours(model, SHARED, rows())
    assert found.dtype == torch.float32
    assert cosine(gradients, of_plain) > 0.999
    assert (found - expected).abs().max() < 0.1


@pytest.mark.parametrize("architecture", SHARING)
def test_prompts_are_shared(model_on, architecture, caplog):
    assert forward_of(model_on(architecture), Dataset.from_list(rows())) == SHARED, caplog.text
