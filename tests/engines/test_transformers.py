"""The transformers engine on tiny random models of several architectures."""

import math
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import PreTrainedModel

from tiny import ARCHITECTURES, EOS, PAD, TURN_END, tiny_model, tiny_tokenizer
from topr.config import GenerateConfig, ModelConfig
from topr.engines import ENGINES, open_engine, transformers
from topr.engines.base import Request
from topr.engines.kv_cache import Batching
from topr.engines.transformers import TransformersEngine
from topr.errors import EngineError
from topr.models.files import fingerprint
from topr.records import FinishReason, Rollout, SamplingParams

TOKENIZER = tiny_tokenizer()
PROMPTS = ("Hi", "The answer is", "Ann has 12 pens, and buys a few more.", "2 + 2 =")
LIMIT = 24


def request(prompt: str, n: int = 3, **fields: object) -> Request:
    ids = tuple(TOKENIZER(prompt)["input_ids"])
    return Request(
        problem_id=f"id-{prompt}",
        prompt=prompt,
        prompt_ids=ids,
        n=n,
        **fields,  # type: ignore[arg-type]
    )


REQUESTS = tuple(request(prompt) for prompt in PROMPTS)


def single_token() -> Request:
    return Request(problem_id="one", prompt="?", prompt_ids=(40,), n=3)


def engine(model: PreTrainedModel, batch_size: int = 64) -> TransformersEngine:
    return TransformersEngine(
        model, TOKENIZER, model_name="tiny", revision="r1", batch_size=batch_size
    )


def draw(
    model: PreTrainedModel,
    requests: Iterable[Request] = REQUESTS,
    batch_size: int = 64,
    opened: TransformersEngine | None = None,
    **sampling: object,
) -> dict[tuple[str, int], Rollout]:
    params = SamplingParams(**({"max_tokens": LIMIT} | sampling))  # type: ignore[arg-type]
    opened = opened or engine(model, batch_size)
    rollouts = list(opened.generate(tuple(requests), params))
    drawn = {(rollout.problem_id, rollout.sample): rollout for rollout in rollouts}
    assert len(drawn) == len(rollouts)
    return drawn


def ids(drawn: dict[tuple[str, int], Rollout]) -> dict[tuple[str, int], tuple[int, ...]]:
    return {key: rollout.completion_ids for key, rollout in drawn.items()}


def ending_model(architecture: str = "llama", eos_logit: float = 3.5) -> PreTrainedModel:
    """A model that ends often: its head has a bias on the end-of-sequence token."""
    model = tiny_model(architecture)
    head = model.get_output_embeddings()
    bias = torch.zeros(head.out_features)
    bias[EOS] = eos_logit
    head.bias = torch.nn.Parameter(bias)
    return model


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return ending_model()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_are_those_of_a_plain_forward(architecture: str) -> None:
    """Padding, shared prefill, the cache, and rows that leave change nothing."""
    model = ending_model(architecture)
    drawn = draw(model)
    assert len({len(rollout.completion_ids) for rollout in drawn.values()}) > 3
    for rollout in drawn.values():
        sequence = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with torch.no_grad():
            log_probs = model(sequence).logits[0].log_softmax(-1)
        start = len(rollout.prompt_ids)
        expected = [
            float(log_probs[start + offset - 1, token])
            for offset, token in enumerate(rollout.completion_ids)
        ]
        assert rollout.logprobs == pytest.approx(expected, abs=1e-4)


@contextmanager
def shapes_of(model: PreTrainedModel) -> Iterator[list[torch.Size]]:
    """The shapes of the ids that a model is given for a while."""
    shapes: list[torch.Size] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, inputs: shapes.append(inputs[0].shape)
    )
    try:
        yield shapes
    finally:
        hook.remove()


def test_prompts_are_prefilled_once_and_ended_rows_leave(llama: PreTrainedModel) -> None:
    opened = engine(llama)
    draw(llama, opened=opened)  # the model is tried, once
    with shapes_of(llama) as shapes:
        drawn = draw(llama, [request(prompt, n=8) for prompt in PROMPTS], opened=opened)
    longest = max(len(request(prompt).prompt_ids) for prompt in PROMPTS)
    assert shapes[0] == (len(PROMPTS), longest - 1)  # the last token is each row's first
    assert shapes[1] == (8 * len(PROMPTS), 1)
    rows = sum(shape[0] for shape in shapes[1:])
    needed = sum(len(rollout.completion_ids) for rollout in drawn.values())
    assert needed <= rows <= needed * 8 / 7  # under an eighth of a batch has ended
    assert all(shape[1] == 1 for shape in shapes[1:])


def test_rows_enter_where_others_have_ended(llama: PreTrainedModel) -> None:
    """The batch stays full while completions wait, and a prompt is run once for all of them."""
    opened = engine(llama, batch_size=16)
    draw(llama, opened=opened)
    with shapes_of(llama) as shapes:
        drawn = draw(llama, [request(prompt, n=40) for prompt in PROMPTS[1:]], opened=opened)
    prefills = [shape for shape in shapes if shape[1] > 1]
    assert sum(shape[0] for shape in prefills) == len(PROMPTS[1:])
    steps = [shape[0] for shape in shapes if shape[1] == 1]
    assert steps[0] == 16
    shrinking = next(i for i, rows in enumerate(steps) if rows < 16)
    assert steps == sorted(steps, reverse=True)
    needed = sum(len(rollout.completion_ids) for rollout in drawn.values())
    assert 16 * shrinking > 0.85 * needed  # so most tokens were drawn in full batches


@pytest.mark.parametrize("batching", [Batching.PADDED, Batching.LEVEL, Batching.SINGLE])
def test_every_way_of_decoding_draws_the_same_samples(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, batching: Batching
) -> None:
    """What models get that do not fit the fastest one."""
    asked = [*(request(prompt, n=5) for prompt in PROMPTS), single_token()]
    expected = draw(llama, asked, batch_size=6)
    monkeypatch.setattr(transformers, "find_batching", lambda *_, **__: batching)
    opened = engine(llama, batch_size=6)
    with shapes_of(llama) as shapes:
        found = draw(llama, asked, opened=opened)
    assert ids(found) == ids(expected)
    for key, rollout in found.items():
        assert rollout.logprobs == pytest.approx(expected[key].logprobs, abs=1e-4)
    steps = [shape[0] for shape in shapes if shape[1] == 1]
    assert max(steps) == {Batching.PADDED: 6, Batching.LEVEL: 5, Batching.SINGLE: 1}[batching]


def test_a_prompt_may_be_a_single_token(llama: PreTrainedModel) -> None:
    alone = draw(llama, [single_token()])
    assert ids(alone).items() <= ids(draw(llama, [*REQUESTS, single_token()], batch_size=2)).items()
    for rollout in alone.values():
        with torch.no_grad():
            logits = llama(torch.tensor([rollout.prompt_ids])).logits[0, 0]
        first = float(logits.log_softmax(-1)[rollout.completion_ids[0]])
        assert rollout.logprobs is not None
        assert rollout.logprobs[0] == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_batch_size_does_not_change_the_samples(architecture: str) -> None:
    model = ending_model(architecture)
    together = draw(model)
    for batch_size in (1, 5):
        assert ids(draw(model, batch_size=batch_size)) == ids(together)


def test_a_sample_does_not_depend_on_its_company(llama: PreTrainedModel) -> None:
    together = ids(draw(llama))
    assert ids(draw(llama, [REQUESTS[2]])).items() <= together.items()
    alone = draw(llama, [request(PROMPTS[2], n=1, first_sample=2)])
    assert ids(alone) == {(f"id-{PROMPTS[2]}", 2): together[f"id-{PROMPTS[2]}", 2]}


def test_the_seed_fixes_the_samples(llama: PreTrainedModel) -> None:
    first = draw(llama, seed=1)
    torch.rand(3)  # global random state plays no part
    assert draw(llama, seed=1) == first
    assert ids(draw(llama, seed=2)) != ids(first)
    assert len(set(ids(draw(llama, [request("Hi", n=8)])).values())) > 1


def test_a_long_completion_goes_on_as_it_began() -> None:
    """Whatever the limit was, and through every move of the cache to larger buffers."""
    model = tiny_model(eos_token_id=None)
    model.generation_config.eos_token_id = None
    long = draw(model, [request("Hi", n=2)], max_tokens=150)
    short = draw(model, [request("Hi", n=2)], max_tokens=20)
    assert {key: value[:20] for key, value in ids(long).items()} == ids(short)


def test_truncated_distributions_are_recorded_renormalised(llama: PreTrainedModel) -> None:
    for rollout in draw(llama, temperature=0.7, top_k=3).values():
        sequence = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with torch.no_grad():
            logits = llama(sequence).logits[0, len(rollout.prompt_ids) - 1 : -1] / 0.7
        kept, tokens = logits.topk(3)
        chosen = tokens == torch.tensor(rollout.completion_ids)[:, None]
        assert (chosen.sum(-1) == 1).all()
        expected = kept.log_softmax(-1)[chosen]
        assert rollout.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_greedy_agrees_with_generate(llama: PreTrainedModel) -> None:
    for rollout in draw(llama, [request(p, n=1) for p in PROMPTS], temperature=0.0).values():
        prompt = torch.tensor([rollout.prompt_ids])
        plain = llama.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=LIMIT,
            pad_token_id=PAD,
        )
        assert rollout.completion_ids == tuple(plain[0, prompt.shape[1] :].tolist())
        assert set(rollout.logprobs or ()) == {0.0}


def test_the_first_token_follows_the_exact_distribution(llama: PreTrainedModel) -> None:
    """Chi-square of 4,000 first tokens over the likely ones, and the rest in one bin."""
    prompt = request("Hi", n=4000)
    with torch.no_grad():
        probs = llama(torch.tensor([prompt.prompt_ids])).logits[0, -1].softmax(-1).double()
    drawn = draw(llama, [prompt], batch_size=1000, max_tokens=1)
    firsts = torch.tensor([rollout.completion_ids[0] for rollout in drawn.values()])
    counts = torch.bincount(firsts, minlength=len(probs)).double()
    likely = probs * 4000 > 5
    expected = torch.cat((probs[likely], probs[~likely].sum()[None])) * 4000
    observed = torch.cat((counts[likely], counts[~likely].sum()[None]))
    freedom = len(expected) - 1
    assert freedom > 10
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_completions_end_with_eos_or_at_the_limit(llama: PreTrainedModel) -> None:
    reasons = set()
    for rollout in draw(llama, [request(p, n=8) for p in PROMPTS]).values():
        reasons.add(rollout.finish_reason)
        assert rollout.logprobs is not None
        assert len(rollout.logprobs) == len(rollout.completion_ids)
        assert EOS not in rollout.completion_ids[:-1]
        assert "</s>" not in rollout.completion
        if rollout.finish_reason is FinishReason.STOP:
            assert rollout.completion_ids[-1] == EOS
        else:
            assert len(rollout.completion_ids) == LIMIT
            assert rollout.completion_ids[-1] != EOS
    assert reasons == set(FinishReason)


def test_every_eos_id_of_the_generation_config_ends() -> None:
    model = ending_model()
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.bias[TURN_END] = 4.0
    model.generation_config.eos_token_id = [EOS, TURN_END]
    last = {
        rollout.completion_ids[-1]
        for rollout in draw(model, [request("Hi", n=24)]).values()
        if rollout.finish_reason is FinishReason.STOP
    }
    assert last == {EOS, TURN_END}


def test_a_stop_string_ends_at_the_token_that_completes_it(llama: PreTrainedModel) -> None:
    free = draw(llama, [request(p, n=8) for p in PROMPTS])
    stop = next(r.completion[3:6] for r in free.values() if len(r.completion) > 12)
    stopped = draw(llama, [request(p, n=8) for p in PROMPTS], stop=("never", stop))
    hits = 0
    for key, rollout in stopped.items():
        length = len(rollout.completion_ids)
        assert rollout.completion_ids == free[key].completion_ids[:length]
        if stop not in free[key].completion:
            assert length == len(free[key].completion_ids)
            continue
        hits += 1
        assert rollout.finish_reason is FinishReason.STOP
        assert stop in rollout.completion
        assert stop not in TOKENIZER.decode(list(rollout.completion_ids[:-1]))
        assert EOS not in rollout.completion_ids
    assert hits


def test_records_say_where_they_come_from(llama: PreTrainedModel) -> None:
    asked = request("Hi", n=1, first_sample=5, gold="7")
    params = SamplingParams(max_tokens=3, seed=9)
    (rollout,) = engine(llama).generate([asked], params, iteration=4)
    assert rollout.prompt == "Hi"
    assert rollout.prompt_ids == asked.prompt_ids
    assert (rollout.sample, rollout.iteration, rollout.gold) == (5, 4, "7")
    assert (rollout.model, rollout.revision, rollout.engine) == ("tiny", "r1", "transformers")
    assert rollout.sampling == params
    assert rollout.completion == TOKENIZER.decode(rollout.completion_ids, skip_special_tokens=True)


def test_training_mode_and_gradients_are_left_alone(llama: PreTrainedModel) -> None:
    llama.train()
    try:
        for _ in engine(llama, batch_size=2).generate(REQUESTS, SamplingParams(max_tokens=2)):
            assert llama.training
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
    finally:
        llama.eval()


def test_dropout_is_off_while_drawing() -> None:
    model = tiny_model(attention_dropout=0.5)
    calm = ids(draw(model))
    assert ids(draw(model.train())) == calm


def test_a_prompt_that_leaves_no_room_is_refused_before_anything_is_drawn(
    llama: PreTrainedModel,
) -> None:
    long = request("a" * 250, n=1)
    with pytest.raises(EngineError, match=r"id-aaa.*250 tokens.*max_tokens=10.*260.*256"):
        engine(llama).generate([REQUESTS[0], long], SamplingParams(max_tokens=10))
    assert len(draw(llama, [long], max_tokens=6)) == 1  # 256: all of it


def test_an_empty_prompt_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(EngineError, match="'id-' has an empty prompt"):
        engine(llama).generate([request("")], SamplingParams())


def test_another_tokenizers_ids_are_refused(llama: PreTrainedModel) -> None:
    foreign = Request(problem_id="x", prompt="?", prompt_ids=(1, 5000), n=1)
    with pytest.raises(EngineError, match=r"token id 5000, but the model knows ids 0 to 276"):
        engine(llama).generate([foreign], SamplingParams())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_diverged_model_is_named(temperature: float) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = math.nan
    with pytest.raises(EngineError, match=r"tiny gave logits that are NaN"):
        draw(model, temperature=temperature)


def test_the_engine_that_a_recipe_names_is_opened_on_its_model(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    llama.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    config = GenerateConfig(engine="transformers", batch_size=2)
    with closing(open_engine(ModelConfig(path=str(tmp_path)), config)) as opened:
        assert isinstance(opened, TransformersEngine)
        assert opened.batch_size == 2
        assert (opened.model_name, opened.revision) == (str(tmp_path), fingerprint(tmp_path))


def test_every_engine_of_the_section_is_there_and_no_other() -> None:
    assert set(get_args(GenerateConfig.model_fields["engine"].annotation)) == set(ENGINES)
