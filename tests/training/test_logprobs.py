"""Every way of running a model gives the plain computation's numbers and gradients."""

import random

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn.attention.flex_attention import flex_attention

from rollouts_for_training import as_rows, made_rows, plain_logprobs
from tiny import ARCHITECTURES, checkpoint_activations, tiny_model
from topr.errors import TrainingError
from topr.training import attention, head
from topr.training.attention import Tree, tree_attention
from topr.training.fitting import forward_of
from topr.training.logprobs import Forward

SHARED = Forward(share=True, chunk=True)
CHUNKED = Forward(share=False, chunk=True)
PLAIN = Forward(share=False, chunk=False)
SHARING = ["llama", "qwen2", "qwen3", "gemma", "gpt_neox"]


def rows_with_a_common_start(temperature=1.0):
    rows = made_rows(prompts=3, per_prompt=4, logprobs=False)[:9]  # one of the third prompt
    for row in rows:
        row["prompt_ids"] = [*range(30, 50), *row["prompt_ids"]]
    return as_rows(rows, temperature)


def weigh_by_position(rows):
    """A weight for each token that tells it from all others."""
    factors = torch.tensor([row["reward"] * (1 + i) for i, row in enumerate(rows)])

    def weigh(logprobs, sequences):
        lengths = torch.tensor([len(row["completion_ids"]) for row in rows[sequences]])
        return factors[sequences].repeat_interleave(lengths) * (1 + logprobs.abs()) / 100

    return weigh


def gradients(model, way, rows):
    model.zero_grad()
    batch = way.batch(rows)
    with way.of(model):
        loss, logprobs = way.weighted_loss(model, batch, weigh_by_position(rows))
        loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found, loss.item(), logprobs


def plain_gradients(model, rows):
    """Sequence by sequence, unpadded, by autograd."""
    model.zero_grad()
    total = 0.0
    for i, row in enumerate(rows):
        logprobs = plain_logprobs(model, row, row["temperature"])
        weights = weigh_by_position(rows)(logprobs.detach().float(), slice(i, i + 1))
        loss = -(weights * logprobs).sum()
        loss.backward()
        total += loss.item()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found, total


def assert_same(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        gap = (ours[name] - expected).norm() / expected.norm().clamp(min=1e-3)
        assert gap < tolerance, (name, gap.item())


@pytest.mark.parametrize("way", [SHARED, CHUNKED, PLAIN], ids=["shared", "chunked", "plain"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", SHARING)
def test_logprobs_are_those_of_single_sequences(architecture, temperature, way):
    model = tiny_model(architecture)
    rows = rows_with_a_common_start(temperature)
    with torch.no_grad():
        ours = way.token_logprobs(model, way.batch(rows))
        plain = torch.cat([plain_logprobs(model, row, temperature) for row in rows])
    torch.testing.assert_close(ours.double(), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", [SHARED, CHUNKED, PLAIN], ids=["shared", "chunked", "plain"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", SHARING)
def test_gradients_are_those_of_single_sequences(architecture, lora, way):
    model = tiny_model(architecture)
    if lora:
        torch.manual_seed(0)
        config = LoraConfig(
            task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False
        )
        model = get_peft_model(model, config)
    rows = rows_with_a_common_start(0.9)
    expected, loss = plain_gradients(model, rows)
    ours, our_loss, _ = gradients(model, way, rows)
    assert_same(ours, expected, 1e-3)
    assert our_loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("architecture", SHARING)
def test_under_bfloat16_gradients_point_the_same_way(architecture):
    model = tiny_model(architecture, initializer_range=0.1)
    rows = rows_with_a_common_start()
    expected, _ = plain_gradients(model, rows)
    with torch.autocast("cpu", torch.bfloat16):
        ours, _, logprobs = gradients(model, SHARED, rows)
    assert logprobs.dtype == torch.float32
    a, b = (torch.cat([g.flatten() for g in grads.values()]) for grads in (ours, expected))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.999


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "bfloat16"])
def test_in_bfloat16_a_shared_prompt_moves_a_completion_no_more_than_padding(weights):
    model = tiny_model(hidden_size=128, num_hidden_layers=4, initializer_range=0.05).to(weights)
    chance = random.Random(0)
    rows = [
        {
            "group": i // 6,
            "prompt_ids": [7 + i // 6, *range(20, 90)],
            "completion_ids": [chance.randrange(5, 277) for _ in range(chance.randint(30, 90))],
            "temperature": 1.0,
        }
        for i in range(12)
    ]
    lengths = [len(row["completion_ids"]) for row in rows]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        alone = [CHUNKED.token_logprobs(model, CHUNKED.batch([row])) for row in rows]
        moved = {}
        for way in (SHARED, CHUNKED):
            found = way.token_logprobs(model, way.batch(rows)).split(lengths)
            sums = [(a - b).sum().abs() for a, b in zip(found, alone, strict=True)]
            moved[way] = torch.stack(sums).mean()
    assert moved[SHARED] <= moved[CHUNKED] + 1e-3


@pytest.mark.parametrize("block", [50, 1000])
@pytest.mark.parametrize("tokens", [1, 4, 9, 10_000])
def test_chunks_of_the_head_change_nothing(monkeypatch, tokens, block):
    # Of 1 and 4 tokens: sequences longer than a chunk, whose logits are computed twice.
    monkeypatch.setattr(head, "CPU_BLOCK", block)
    model = tiny_model()
    rows = rows_with_a_common_start()
    expected, _ = plain_gradients(model, rows)
    monkeypatch.setattr(head, "CHUNK_LOGITS", tokens * model.config.vocab_size)
    assert_same(gradients(model, SHARED, rows)[0], expected, 1e-4)
    with torch.no_grad():
        found = SHARED.token_logprobs(model, SHARED.batch(rows))
        plain = torch.cat([plain_logprobs(model, row) for row in rows])
    torch.testing.assert_close(found.double(), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("logit", [8.0, 48.0, -200.0], ids=["likely", "certain", "hopeless"])
def test_the_head_keeps_the_gradient_of_tokens_near_0_and_1(monkeypatch, dtype, autocast, logit):
    # All numbers are exact in bfloat16. The targets share a row, in another block than the rest.
    monkeypatch.setattr(head, "CPU_BLOCK", 8)
    weight = torch.zeros(24, 4)
    weight[3, 0] = logit
    weight[10, 1], weight[20, 2] = 1.0, -1.0
    hidden = torch.tensor([[1.0, 1.0, 0.5, 2.0], [1.0, -1.0, 2.0, 0.25]])
    targets, weights = torch.tensor([3, 3]), torch.tensor([1.0, -0.5])
    weight, hidden = weight.to(dtype).requires_grad_(), hidden.to(dtype).requires_grad_()
    bias = torch.full((24,), 0.5).to(dtype).requires_grad_()
    of = (hidden, weight, bias)

    layer = head.Head(matrix=weight, bias=bias)
    temperature = torch.full((2,), 2.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, logprobs = head.weighted_loss(
            layer, hidden, targets, temperature, [1, 1], lambda logprobs, which: weights[which]
        )
    found = torch.autograd.grad(loss, of)

    logits = (hidden.double() @ weight.double().t() + bias.double()) / 2
    plain = logits.log_softmax(dim=1)[:, 3]
    torch.testing.assert_close(logprobs.double(), plain, atol=0, rtol=1e-5)
    expected = torch.autograd.grad(-(weights * plain).sum(), of)

    def gap(ours, theirs):
        return (ours.double() - theirs.double()).norm() / theirs.double().norm()

    in_float32 = dtype == torch.float32 and not autocast
    for ours, theirs in zip(found, expected, strict=True):
        assert gap(ours, theirs) < (1e-5 if in_float32 else 1e-2)
    # The target's own entry is taken in float32 whatever the products' type.
    assert gap(found[1][3], expected[1][3]) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_a_second_backward_of_one_loss_is_refused():
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(10, 8)
    layer, targets = head.Head(matrix=weight, bias=None), torch.tensor([1, 2, 3, 4])
    loss, _ = head.weighted_loss(layer, hidden, targets, torch.ones(4), [4], lambda p, _: p)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="another backward needs a new forward"):
        loss.backward()


def test_a_loss_that_is_scaled_has_its_gradient_scaled():
    model = tiny_model()
    rows = rows_with_a_common_start()
    expected, _ = plain_gradients(model, rows)
    model.zero_grad()
    with SHARED.of(model):
        loss, _ = SHARED.weighted_loss(model, SHARED.batch(rows), weigh_by_position(rows))
        (loss * 3).backward()
    assert_same({n: p.grad / 3 for n, p in model.named_parameters()}, expected, 1e-4)


def test_gradient_checkpointing_changes_nothing():
    model = tiny_model()
    rows = rows_with_a_common_start()
    expected, _ = plain_gradients(model, rows)
    checkpoint_activations(model)
    model.train()
    assert_same(gradients(model, SHARED, rows)[0], expected, 1e-4)


def test_a_token_of_weight_0_has_no_gradient_and_costs_no_other_any():
    model = tiny_model()
    rows = rows_with_a_common_start()[:2]

    def only_first(logprobs, sequences):
        lengths = torch.tensor([len(row["completion_ids"]) for row in rows[sequences]])
        return torch.tensor([1.0, 0.0])[sequences].repeat_interleave(lengths)

    model.zero_grad()
    with SHARED.of(model):
        SHARED.weighted_loss(model, SHARED.batch(rows), only_first)[0].backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    (-plain_logprobs(model, rows[0]).sum()).backward()
    assert_same(ours, {n: p.grad for n, p in model.named_parameters()}, 1e-4)


def way_of(model, layout="auto"):
    return forward_of(model, Dataset.from_list(rows_with_a_common_start()), layout)


def test_prompts_are_not_shared_in_float64():
    # torch's kernel has no backward pass for all of it.
    assert not way_of(tiny_model().double()).share


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_the_way_is_found_by_trying(architecture, caplog):
    way = way_of(tiny_model(architecture))
    expected = {
        **dict.fromkeys(SHARING, SHARED),
        "gemma2": PLAIN,  # soft-capped logits, and sliding layers
        "gemma3": CHUNKED,  # sliding layers
    }
    assert way == expected[architecture]
    assert ("prompts are not shared" in caplog.text) == (way != SHARED)


def test_a_window_that_slides_is_refused(caplog):
    model = tiny_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0)
    assert way_of(model) == CHUNKED
    assert "sliding" in caplog.text
    with pytest.raises(TrainingError, match="layout=shared does not fit Qwen2ForCausalLM"):
        way_of(model, "shared")


def test_padded_is_kept_to_where_it_is_asked_for():
    assert way_of(tiny_model(), "padded") == CHUNKED


def test_the_models_own_attention_comes_back():
    model = tiny_model()
    before = model.config._attn_implementation
    way_of(model)
    assert model.config._attn_implementation == before


NODES = (
    (0, 5, 40),
    (5, 9, 25),
    (9, 15, 15),
    (15, 25, 25),
    (25, 30, 40),
    (30, 40, 40),
    (40, 50, 50),
)


def test_the_tree_says_who_sees_whom():
    visible = Tree(nodes=((0, 2, 6), (2, 4, 4), (4, 6, 6), (6, 7, 7))).visible()
    assert visible.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_attention_by_nodes_is_attention_under_the_trees_mask(heads):
    torch.manual_seed(0)
    tree = Tree(nodes=NODES)
    q = torch.randn(1, heads[0], 50, 16, requires_grad=True)
    k, v = (torch.randn(1, heads[1], 50, 16, requires_grad=True) for _ in range(2))
    ours, _ = tree_attention(torch.nn.Module(), q, k, v, None, tree=tree, scaling=0.3)
    dense = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), tree.visible(), scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(ours.double(), dense, atol=1e-5, rtol=0)
    upstream = torch.randn_like(ours)
    found = torch.autograd.grad(ours, (q, k, v), upstream)
    expected = torch.autograd.grad(dense, (q, k, v), upstream.double())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_block_mask_for_gpus_is_the_same_rule():
    tree = Tree(nodes=NODES)
    q, k, v = (torch.randn(1, 2, 50, 16) for _ in range(3))
    flexible = flex_attention(q, k, v, block_mask=tree.block_mask(torch.device("cpu")))
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, tree.visible())
    torch.testing.assert_close(flexible, dense, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [1, 100, 128, 700, 1024])
def test_blocks_that_no_query_sees_are_left_out_and_full_ones_are_full(size):
    chance = random.Random(size)
    nodes, start = [], 0
    while start < size:  # prompts, and completions that end where their prompt's subtree does
        own = min(start + chance.randint(1, 300), size)
        stop = min(own + chance.randint(0, 400), size)
        nodes.append((start, own, stop))
        while own < stop:
            end = min(own + chance.randint(1, 90), stop)
            nodes.append((own, end, end))
            own = end
        start = stop
    tree = Tree(nodes=tuple(nodes))
    mask = tree.block_mask(torch.device("cpu"))
    blocks = -(-size // 128)
    visible = torch.zeros(128 * blocks, 128 * blocks, dtype=torch.bool)
    visible[:size, :size] = tree.visible()
    by_block = visible.view(blocks, 128, blocks, 128).transpose(1, 2)
    full = _dense(mask.full_kv_num_blocks, mask.full_kv_indices)
    partial = _dense(mask.kv_num_blocks, mask.kv_indices)
    assert torch.equal(full, by_block.all(dim=(2, 3)))
    assert not (partial & full).any()
    assert not (by_block.any(dim=(2, 3)) & ~(partial | full)).any()
    assert (partial | full).sum() <= 1.2 * by_block.any(dim=(2, 3)).sum() + 1


def _dense(counts, indices):
    found = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for row, (count, columns) in enumerate(zip(counts[0, 0], indices[0, 0], strict=True)):
        found[row, columns[:count].long()] = True
    return found


def test_attention_that_would_go_on_uncompiled_is_an_error(monkeypatch):
    def compiled_too_often(*_, **__):
        raise torch._dynamo.exc.FailOnRecompileLimitHit("recompile_limit reached")

    monkeypatch.setattr(attention, "_compiled_flex", lambda: compiled_too_often)
    q = torch.randn(1, 2, 50, 16)
    with pytest.raises(TrainingError, match=r"compiled 64 times in this process.*layout=padded"):
        attention._flex_attention(q, q, q, Tree(nodes=NODES), None)


def test_what_a_tree_does_not_know_is_refused():
    q = torch.randn(1, 2, 50, 16)
    tree = Tree(nodes=NODES)
    with pytest.raises(TrainingError, match="sliding_window"):
        tree_attention(torch.nn.Module(), q, q, q, None, tree=tree, sliding_window=8)
    sinks = torch.zeros(2)  # zero adds to the sum as well
    with pytest.raises(TrainingError, match="attention sinks"):
        tree_attention(torch.nn.Module(), q, q, q, None, tree=tree, s_aux=sinks)
    tree_attention(torch.nn.Module(), q, q, q, None, tree=tree, softcap=None, s_aux=None)


def test_one_chunk_holds_what_it_says():
    assert list(head._runs((3, 4, 10, 2), 7)) == [
        (slice(0, 2), 0, 7), (slice(2, 3), 7, 17), (slice(3, 4), 17, 19),
    ]  # fmt: skip
    assert head.Head(matrix=torch.zeros(2**25, 0), bias=None).chunk == 2
