"""Sampling parameters to requests, answers to tokens, and waiting. No server here."""

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import httpx2
import pytest

from tiny import EOS, TURN_END, tiny_tokenizer
from topr.config import GenerateConfig, load_recipe
from topr.config.engines import SERVER_BODY_OF_TOPR, ServerConfig
from topr.engines.background import in_background
from topr.engines.client import _retry_after
from topr.engines.completions import (
    KINDS,
    LLAMA_CPP,
    Answer,
    Prompt,
    ServedModel,
    body,
    finalize_completion,
    read_answer,
)
from topr.engines.stops import StopStrings
from topr.errors import ConfigError, EngineError
from topr.records import FinishReason, SamplingParams
from topr.runs.preparation import check_logprobs
from topr.tokenization.ends import Ends

TOKENIZER = tiny_tokenizer()
PROMPT = Prompt(ids=(7, 8), text="#$")
SAMPLING = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=9, stop=("x",), seed=1)


def request(kind: int, sampling: SamplingParams = SAMPLING, **changes: Any) -> dict[str, Any]:
    capabilities = dataclasses.replace(KINDS[kind], **changes)
    model = ServedModel(name="m", end_ids=(2, 4), extra={"a": 1})
    return body(PROMPT, sampling, 77, capabilities, model)


def test_a_request_says_all_that_fixes_the_distribution() -> None:
    """Nothing is left to a server's defaults, or to those that a model brings along."""
    assert request(0, keeps_stops=True) == {
        "model": "m", "prompt": [7, 8], "n": 1, "max_tokens": 9, "temperature": 0.7, "top_p": 0.9,
        "seed": 77, "logprobs": 1, "stop": ["x"], "include_stop_str_in_output": True, "top_k": -1,
        "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": [2, 4],
        "return_token_ids": True, "skip_special_tokens": False, "a": 1,
    }  # fmt: skip
    assert request(0, dataclasses.replace(SAMPLING, top_k=3))["top_k"] == 3
    assert request(0, llama_cpp=True) == request(0) | LLAMA_CPP
    assert LLAMA_CPP["samplers"] == ["temperature", "top_k", "top_p"]
    assert LLAMA_CPP.keys() < SERVER_BODY_OF_TOPR


def test_a_plain_server_is_sent_openais_fields_alone() -> None:
    fields = {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "seed", "logprobs", "a"}
    assert set(request(1)) == set(request(2)) == fields
    assert (request(1)["prompt"], request(2)["prompt"]) == ([7, 8], "#$")
    with pytest.raises(EngineError, match="top_k=3 is none of them"):
        request(1, dataclasses.replace(SAMPLING, top_k=3))


def choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"text": "ab", "finish_reason": "stop"} | fields]}


@pytest.mark.parametrize(
    ("fields", "ids", "logprobs"),
    [
        ({}, None, None),
        ({"logprobs": None}, None, None),
        ({"token_ids": [5, 2]}, (5, 2), None),
        ({"token_ids": [5, 2], "logprobs": {"token_logprobs": [-1, -2.5]}}, (5, 2), (-1.0, -2.5)),
        ({"token_ids": [5, 2], "logprobs": {"token_logprobs": [-1]}}, (5, 2), None),
        ({"token_ids": [5, 2], "logprobs": {"token_logprobs": [None, -1]}}, (5, 2), None),
        ({"logprobs": {"token_logprobs": [-1, -2.5]}}, None, None),
        ({"logprobs": {"content": [{"id": 5, "logprob": -1}]}}, None, None),  # some may be missing
    ],
)
def test_tokens_are_found_where_servers_put_them(fields: Any, ids: Any, logprobs: Any) -> None:
    answer = read_answer(choice(**fields))
    assert (answer.ids, answer.logprobs) == (ids, logprobs)
    assert (answer.text, answer.reason) == ("ab", FinishReason.STOP)


def listed(token: int, prob: float, **further: Any) -> dict[str, Any]:
    return {"id": token, "prob": prob, "top_probs": [{"id": token}]} | further


@pytest.mark.parametrize(
    ("logprobs", "tokens", "found"),
    [
        ({"content": [listed(5, 1.0), listed(2, 0.5)]}, [5, 2], (0.0, math.log(0.5))),
        ({"content": [listed(5, 1.0)]}, [5, 7], None),  # one ended within a character
        ({"content": [listed(5, 0.0)]}, [5], None),
        ({"content": [listed(5, 1.0, top_probs=[])]}, [5], None),  # from speculation
        ({"content": [{"id": 5, "logprob": -1.0}]}, [5], None),  # of the plain softmax
        ({"content": []}, [7], None),
        (None, [7], None),
    ],
)
def test_llama_cpp_gives_all_tokens_and_a_number_of_most(
    logprobs: Any, tokens: list[int], found: Any
) -> None:
    answer = read_answer(choice(logprobs=logprobs) | {"__verbose": {"tokens": tokens}})
    assert answer.llama_cpp
    assert (answer.ids, answer.logprobs) == (tuple(tokens), found)


@pytest.mark.parametrize("answer", [{}, [], {"choices": []}, {"choices": ["a"]}, 3, None,
                                    choice(token_ids=["x"])])  # fmt: skip
def test_what_is_no_completion_is_refused(answer: Any) -> None:
    with pytest.raises(EngineError, match="is not a completion"):
        read_answer(answer)


def test_what_was_broken_off_is_no_completion() -> None:
    with pytest.raises(EngineError, match="broken off, with finish_reason 'abort'"):
        read_answer(choice(finish_reason="abort"))


@pytest.mark.parametrize("end", [EOS, TURN_END])
def test_any_end_of_the_model_is_one(end: int) -> None:
    answer = Answer(text="", reason=FinishReason.STOP, ids=(9, end), logprobs=(-1.0, -2.0))
    stops = StopStrings(TOKENIZER, ())
    ends = Ends(TOKENIZER, {EOS, TURN_END})
    assert finalize_completion(answer, "1+1=", TOKENIZER, stops, ends, greedy=False) == answer


def test_an_end_that_was_left_out_is_that_of_an_answer_to_the_prompt() -> None:
    tokenizer = tiny_tokenizer(chat_template=True)
    turns = [{"role": "user", "content": "1+1?"}]
    chat = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    answer = Answer(text="2", reason=FinishReason.STOP, ids=None, logprobs=None)
    stops, ends = StopStrings(tokenizer, ()), Ends(tokenizer)
    for prompt, end in (("1+1=", EOS), (chat, TURN_END)):
        found = finalize_completion(answer, str(prompt), tokenizer, stops, ends, greedy=False)
        assert found.ids == (*tokenizer("2", add_special_tokens=False)["input_ids"], end)


def test_a_stop_string_ends_at_the_token_that_completes_it() -> None:
    ids = tuple(TOKENIZER("Theanswer, or not; and the answer again")["input_ids"])
    for stop in ("answer", "; a", "again", "T", "<|im_end|>", "nothing"):
        for whole_ids in (ids, (*ids, TURN_END)):
            stops = StopStrings(TOKENIZER, (stop, "never"))
            tails = [list(whole_ids[: end + 1]) for end in range(len(whole_ids))]
            found = [end + 1 for end, hit in enumerate(stops.completed(tails)) if hit]
            assert stops.end(whole_ids) == (found[0] if found else None)
    assert StopStrings(TOKENIZER, ()).end(ids) is None


def test_retry_after_is_seconds_or_a_date() -> None:
    def asked(value: str) -> float:
        return _retry_after(httpx2.Response(429, headers={"Retry-After": value}))

    assert asked("7") == 7.0
    assert 8 < asked(formatdate(time.time() + 10, usegmt=True)) <= 10
    assert asked(formatdate(time.time() - 10, usegmt=True)) == 0.0
    assert asked("soon") == 0.0
    assert _retry_after(httpx2.Response(429)) == 0.0


def test_background_work_is_cancelled_when_nobody_takes_its_results() -> None:
    ended = []

    async def count(put: Callable[[int], None]) -> None:
        try:
            for number in range(1000):
                put(number)
                await asyncio.sleep(0.01)
        finally:
            ended.append(True)

    numbers = in_background(count)
    assert [next(numbers), next(numbers)] == [0, 1]
    numbers.close()  # type: ignore[attr-defined]
    assert ended == [True]


def test_background_work_may_fail_and_may_run_within_a_loop() -> None:
    async def fail(put: Callable[[int], None]) -> None:
        put(1)
        raise EngineError("no more")

    async def inside() -> list[int]:
        return list(in_background(fail))

    taken = in_background(fail)
    assert next(taken) == 1
    for work in (lambda: next(taken), lambda: asyncio.run(inside())):
        with pytest.raises(EngineError, match="no more"):
            work()


def test_keys_that_exclude_each_other_are_refused() -> None:
    for wrong, said in [
        ("url=http://h, arguments=[a]", "set one of them"),
        ("url=h:80", "must begin with http"),
        ("command=[serve]", "no word with {port}"),
        ("command=['{port}'], arguments=[a]", "write them into command"),
    ]:
        section = "{" + wrong.replace("=", ": ") + "}"
        with pytest.raises(ConfigError, match=said):
            load_recipe("quickstart", [f"generate.server={section}"])


def test_a_server_that_moved_is_the_same_run() -> None:
    plain = load_recipe("quickstart", ["generate.engine=server"])
    moved = load_recipe("quickstart", ["generate.engine=server", "generate.server.url=http://h"])
    other = load_recipe("quickstart", ["generate.engine=server", "generate.server.model=m"])
    assert moved.fingerprint() == plain.fingerprint() != other.fingerprint()
    assert GenerateConfig(server=ServerConfig(patience=3)).fixed() == GenerateConfig().fixed()


def test_a_run_that_needs_log_probabilities_says_so_before_it_draws() -> None:
    class Silent:
        name = "server"
        records_logprobs = False

    recipe = load_recipe("quickstart", ["generate.engine=server"])
    with pytest.raises(ConfigError, match=r"train.behavior_logprobs=sampler, but engine 'server'"):
        check_logprobs(Silent(), recipe)  # type: ignore[arg-type]
    check_logprobs(Silent(), load_recipe("quickstart", ["train.behavior_logprobs=recompute"]))  # type: ignore[arg-type]
    Silent.records_logprobs = True
    check_logprobs(Silent(), recipe)  # type: ignore[arg-type]
