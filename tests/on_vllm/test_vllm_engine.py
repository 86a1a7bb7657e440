"""The vllm engine on a real vLLM: its numbers against the trainer's own, and its contract."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig

from tiny import EOS, PAD, save_tiny, tiny_tokenizer
from topr.config import GenerateConfig, ModelConfig
from topr.engines import Engine, Request, open_engine
from topr.engines.sampling import sampled_log_probs
from topr.engines.stops import StopStrings
from topr.engines.vllm import VllmEngine
from topr.errors import EngineError
from topr.models.files import fingerprint
from topr.models.loading import load_model
from topr.records import FinishReason, Rollout, SamplingParams
from topr.training.fitting import forward_of
from topr.training.recompute import recompute

TOKENIZER = tiny_tokenizer()
PROMPTS = ("Hi", "The answer is", "Ann has 12 pens, and buys a few more.", "2 + 2 =")
FURTHER_EOS = tuple(range(200, 215))
"""Of the generation config: so many that a random model often ends."""
LIMIT = 24
TOLERANCE = 1e-4
"""Nats per token between vLLM and the trainer, both float32 on a CPU."""
SETTINGS = {"gpu_memory_utilization": 0.1, "enforce_eager": True}

Drawn = dict[tuple[str, int], Rollout]


def request(prompt: str, n: int = 6, **fields: Any) -> Request:
    ids = tuple(TOKENIZER(prompt)["input_ids"])
    return Request(problem_id=f"id-{prompt}", prompt=prompt, prompt_ids=ids, n=n, **fields)


REQUESTS = tuple(request(prompt) for prompt in PROMPTS)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_tiny(tmp_path_factory.mktemp("model"), hidden_size=128, initializer_range=0.2)
    GenerationConfig(eos_token_id=list(FURTHER_EOS), pad_token_id=PAD).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[VllmEngine]:
    config = GenerateConfig(engine="vllm", vllm=SETTINGS)
    with closing(open_engine(ModelConfig(path=str(model_path)), config)) as opened:
        assert isinstance(opened, VllmEngine)
        yield opened


def draw(engine: Engine, requests: Iterable[Request] = REQUESTS, **sampling: Any) -> Drawn:
    params = SamplingParams(**({"max_tokens": LIMIT} | sampling))
    rollouts = list(engine.generate(tuple(requests), params))
    drawn = {(rollout.problem_id, rollout.sample): rollout for rollout in rollouts}
    assert len(drawn) == len(rollouts) == sum(request.n for request in requests)
    return drawn


def ids(drawn: Drawn) -> dict[tuple[str, int], tuple[int, ...]]:
    return {key: rollout.completion_ids for key, rollout in drawn.items()}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_that_the_trainer_computes(
    engine: VllmEngine, model_path: Path, temperature: float
) -> None:
    drawn = draw(engine, temperature=temperature)
    rows = [
        {
            "group": PROMPTS.index(rollout.prompt),
            "prompt_ids": rollout.prompt_ids,
            "completion_ids": rollout.completion_ids,
            "temperature": temperature,
        }
        for rollout in drawn.values()
    ]
    model, kept = load_model(ModelConfig(path=str(model_path))), Dataset.from_list(rows)
    ours = list(recompute(model, kept, forward=forward_of(model, kept)))
    theirs = [np.asarray(rollout.logprobs, np.float32) for rollout in drawn.values()]
    assert sum(map(len, ours)) > 200
    assert np.concatenate(theirs).min() < -3  # not only near 0, where all would agree
    np.testing.assert_allclose(np.concatenate(theirs), np.concatenate(ours), atol=TOLERANCE)


@pytest.mark.parametrize(
    "cut", [{"top_k": 5}, {"top_p": 0.6}, {"top_k": 8, "top_p": 0.7, "temperature": 0.7}]
)
def test_a_cut_distribution_is_recorded_renormalised(
    engine: VllmEngine, model_path: Path, cut: dict[str, Any]
) -> None:
    model = load_model(ModelConfig(path=str(model_path)))
    lower = 0
    for rollout in draw(engine, **cut).values():
        sequence = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with torch.no_grad():
            logits = model(sequence).logits[0, len(rollout.prompt_ids) - 1 : -1]
        chosen = torch.tensor(rollout.completion_ids)[:, None]
        expected = sampled_log_probs(logits, rollout.sampling).gather(-1, chosen)[:, 0]
        assert rollout.logprobs == pytest.approx(expected.tolist(), abs=TOLERANCE)
        plain = (logits / rollout.sampling.temperature).log_softmax(-1).gather(-1, chosen)[:, 0]
        lower += int((plain < expected - 0.01).sum())
    assert lower > 100


def test_greedy_takes_the_likeliest_tokens_and_records_0(
    engine: VllmEngine, model_path: Path
) -> None:
    model = load_model(ModelConfig(path=str(model_path)))
    for rollout in draw(engine, [request(p, n=1) for p in PROMPTS], temperature=0.0).values():
        with torch.no_grad():
            logits = model(torch.tensor([rollout.prompt_ids + rollout.completion_ids])).logits[0]
        likeliest = logits[len(rollout.prompt_ids) - 1 : -1].argmax(-1)
        assert rollout.completion_ids == tuple(likeliest.tolist())
        assert set(rollout.logprobs or ()) == {0.0}


def test_every_eos_id_ends_and_is_kept(engine: VllmEngine) -> None:
    last = set()
    for rollout in draw(engine, [request(p, n=40) for p in PROMPTS]).values():
        assert rollout.logprobs is not None
        assert len(rollout.logprobs) == len(rollout.completion_ids) <= LIMIT
        assert not {EOS, *FURTHER_EOS} & set(rollout.completion_ids[:-1])
        text = TOKENIZER.decode(list(rollout.completion_ids), skip_special_tokens=True)
        assert rollout.completion == text
        if rollout.finish_reason is FinishReason.STOP:
            last.add(rollout.completion_ids[-1])
        else:
            assert len(rollout.completion_ids) == LIMIT
            assert rollout.completion_ids[-1] not in {EOS, *FURTHER_EOS}
    assert len(last) > 5
    assert last <= {EOS, *FURTHER_EOS}


def test_a_stop_string_ends_at_the_token_that_completes_it(engine: VllmEngine) -> None:
    asked = [request(p, n=12) for p in PROMPTS]
    free = draw(engine, asked)
    texts = [TOKENIZER.decode(list(rollout.completion_ids)) for rollout in free.values()]
    stop = next(t[4:6] for t in texts if len(t) > 12 and t[4:6].isascii() and t[4:6].isprintable())
    stops, hits = StopStrings(TOKENIZER, ("never", stop)), 0
    for key, rollout in draw(engine, asked, stop=("never", stop)).items():
        whole = free[key].completion_ids
        tails = [list(whole[: end + 1]) for end in range(len(whole))]
        ends = [end + 1 for end, found in enumerate(stops.completed(tails)) if found]
        assert rollout.completion_ids == whole[: ends[0] if ends else None]
        assert len(rollout.logprobs or ()) == len(rollout.completion_ids)
        if ends:
            hits += 1
            assert rollout.finish_reason is FinishReason.STOP
            assert stop in TOKENIZER.decode(list(rollout.completion_ids))
    assert hits


def test_the_text_of_a_special_token_is_a_stop_string_too(engine: VllmEngine) -> None:
    ends = [
        rollout
        for rollout in draw(engine, [request("Hi", n=200)], stop=("<|im_start|>",)).values()
        if 3 in rollout.completion_ids
    ]
    assert ends
    assert all(r.completion_ids[-1] == 3 for r in ends)
    assert all(r.finish_reason is FinishReason.STOP for r in ends)


def test_the_seed_fixes_the_samples_and_company_does_not_matter(engine: VllmEngine) -> None:
    together = ids(draw(engine, seed=1))
    assert ids(draw(engine, seed=1)) == together
    assert ids(draw(engine, seed=2)) != together
    assert len(set(together.values())) > len(together) // 2
    part = [request(PROMPTS[2], n=2, first_sample=3), request(PROMPTS[0], n=1, first_sample=5)]
    alone = ids(draw(engine, part, seed=1))
    assert alone.items() <= together.items()


def test_records_say_where_they_come_from(engine: VllmEngine, model_path: Path) -> None:
    asked = request("Hi", n=1, first_sample=5, gold="7", question="Hello?")
    params = SamplingParams(max_tokens=3, seed=9)
    (rollout,) = engine.generate([asked], params, iteration=4)
    assert (rollout.prompt, rollout.prompt_ids) == ("Hi", asked.prompt_ids)
    assert (rollout.sample, rollout.iteration, rollout.gold) == (5, 4, "7")
    assert rollout.question == "Hello?"
    assert (rollout.model, rollout.revision) == (str(model_path), fingerprint(model_path))
    assert (rollout.engine, rollout.sampling) == ("vllm", params)


@pytest.mark.parametrize(
    ("asked", "sampling", "message"),
    [
        (request(""), {}, "'id-' has an empty prompt"),
        (
            Request(problem_id="x", prompt="?", prompt_ids=(1, 5000), n=1),
            {},
            "token id 5000, but the model knows ids 0 to 276",
        ),
        (request("a" * 250), {"max_tokens": 10}, r"250 tokens.*max_tokens=10.*260.*256"),
        (request("Hi"), {"temperature": 2.5}, r"temperature is 2.5.*0\.01 to 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is(
    engine: VllmEngine, asked: Request, sampling: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        engine.generate([*REQUESTS, asked], SamplingParams(**({"max_tokens": LIMIT} | sampling)))


def test_an_interrupted_drawing_leaves_nothing_behind(engine: VllmEngine) -> None:
    rollouts = engine.generate(REQUESTS, SamplingParams(max_tokens=LIMIT, seed=1))
    first = next(rollouts)
    rollouts.close()  # type: ignore[attr-defined]
    assert not engine.llm.llm_engine.has_unfinished_requests()
    assert draw(engine, seed=1)[first.problem_id, first.sample] == first


def test_close_ends_its_processes(model_path: Path) -> None:
    """Also after a kill, which is told. And the limit that the recipe sets is the one that a prompt
    must fit into."""
    me = psutil.Process()
    before = {child.pid for child in me.children(recursive=True)}
    config = GenerateConfig(engine="vllm", vllm={**SETTINGS, "max_model_len": 32})
    with closing(open_engine(ModelConfig(path=str(model_path)), config)) as opened:
        started = [c for c in me.children(recursive=True) if c.pid not in before]
        assert started
        with pytest.raises(EngineError, match="the model ends at 32"):
            opened.generate([request("a" * 20)], SamplingParams(max_tokens=20))
        rollouts = opened.generate([request("Hi", n=200)], SamplingParams(max_tokens=LIMIT))
        next(rollouts)
        for process in started:
            if "resource_tracker" not in str(process.cmdline()):
                process.kill()
        with pytest.raises(EngineError, match=r"vLLM's process ended with \d+ completions to draw"):
            list(rollouts)
    alive = psutil.wait_procs(started, timeout=20)[1]
    # Python's own tracker of shared memory stays for as long as the process that started it.
    assert [process for process in alive if "resource_tracker" not in str(process.cmdline())] == []


def test_what_vllm_refuses_is_an_engine_error(model_path: Path) -> None:
    config = GenerateConfig(engine="vllm", vllm={**SETTINGS, "args": {"no_such_argument": 1}})
    with pytest.raises(EngineError, match=r"(?s)vLLM cannot start on.*no_such_argument"):
        open_engine(ModelConfig(path=str(model_path)), config)


def test_prompts_beyond_a_steps_budget_are_drawn(engine: VllmEngine) -> None:
    """A CPU's sampler fails on a seeded prompt that is prefilled in parts."""
    many = [
        Request(problem_id=f"p{i}", prompt="", prompt_ids=(*range(5, 195), i % 200), n=2)
        for i in range(200)
    ]
    assert len(draw(engine, many, max_tokens=2)) == 400


def close(ours: Drawn, theirs: Drawn) -> bool:
    """The same tokens, and log-probabilities but for the order in which numbers are added."""
    return ids(ours) == ids(theirs) and all(
        ours[key].logprobs == pytest.approx(theirs[key].logprobs, abs=TOLERANCE) for key in ours
    )


def test_a_model_spread_over_two_processes_draws_the_same(
    engine: VllmEngine, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # a core for each
    config = GenerateConfig(engine="vllm", vllm=SETTINGS | {"tensor_parallel_size": 2})
    with closing(open_engine(ModelConfig(path=str(model_path)), config)) as spread:
        assert isinstance(spread, VllmEngine)
        assert close(draw(spread), draw(engine))


def test_two_copies_as_workers_of_ray_draw_the_same(engine: VllmEngine, model_path: Path) -> None:
    config = GenerateConfig(engine="ray", vllm=SETTINGS, ray={"workers": 2, "engine": "vllm"})
    with closing(open_engine(ModelConfig(path=str(model_path)), config)) as workers:
        found = draw(workers)
    assert close(found, draw(engine))
    assert {rollout.engine for rollout in found.values()} == {"vllm"}
