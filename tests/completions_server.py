"""A small OpenAI-compatible completions server, in a process of its own, with faults on request.

    python completions_server.py PORT LOG [TRAIT ...]

There is no model: prompt and seed fix the tokens that it writes, as on a server that honours
seeds, over the tiny tokenizer's printable characters. Each good answer is noted in LOG, a JSON line
each. Nothing of topr is imported, so that it is up at once.

Faults befall every fifth request, each kind in turn: `busy` (429 with Retry-After), `broken` (500),
`cut` (half an answer), `garbled` (no JSON), `slow`, `aborted`. Other traits: `textual` (text in and
out, OpenAI's fields alone), `endless` (the token that ends a text is left out), `trimmed` (stop
strings are), `strict` (404 for every model), `paced` (20 ms an answer), `parent` (starts another),
`set` (one text for all seeds), `plain` (log-probabilities count neither temperature nor top-p),
`tempered` (they count the temperature alone), `narrow` (400 for a small top_p), `listing` (as
llama.cpp gives tokens), `of=PATH` (notes that it serves that model).
"""

import json
import math
import random
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

EOS, FIRST = 2, 5  # of the tiny tokenizer: the ids from 5 on are the characters from "!" on
LLAMA_CPP = {"verbose", "return_tokens", "response_fields", "post_sampling_probs", "samplers"}
KINDS = ("busy", "broken", "cut", "garbled", "slow", "aborted")
OPENAI = {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "seed", "logprobs", "stop"}


def text_of(ids: list[int]) -> str:
    return "".join(chr(ord("!") + token - FIRST) for token in ids if token >= FIRST)


def complete(asked: dict[str, Any], traits: set[str]) -> dict[str, Any]:
    """Return the one answer to a request."""
    seed = asked["seed"] if asked["temperature"] and "set" not in traits else "greedy"
    numbers = random.Random(f"{seed} {asked['prompt']}")
    ends = {EOS, *asked.get("stop_token_ids", ())}
    ids: list[int] = []
    logprobs: list[float] = []
    reason = "length"
    while len(ids) < asked["max_tokens"] and reason == "length":
        ids.append(EOS if numbers.random() < 0.08 else FIRST + numbers.randrange(94))
        logprobs.append(-numbers.random())
        if ids[-1] in ends or any(stop in text_of(ids) for stop in asked.get("stop", ())):
            reason = "stop"
    likeliest = asked["top_p"] < 0.01 or asked.get("top_k") == 1
    if likeliest and not {"plain", "tempered"} & traits:
        logprobs = [0.0] * len(ids)
    elif likeliest:  # of most tokens a model is nearly sure
        logprobs = [of if place == 2 else -1e-7 for place, of in enumerate(logprobs)]
    if "tempered" in traits:
        logprobs = [of * asked["temperature"] for of in logprobs]
    cut = "endless" in traits if ids[-1] in ends else "trimmed" in traits
    if cut and reason == "stop":
        del ids[-1], logprobs[-1]
    choice: dict[str, Any] = {"index": 0, "text": text_of(ids), "finish_reason": reason}
    if "listing" in traits:
        return listing(asked, choice, ids, logprobs)
    if "textual" not in traits:
        choice |= {"token_ids": ids, "logprobs": {"token_logprobs": logprobs}}
    return {"object": "text_completion", "choices": [choice]}


def listing(
    asked: dict[str, Any], choice: dict[str, Any], ids: list[int], logprobs: list[float]
) -> dict[str, Any]:
    """Return an answer as llama.cpp gives it: no token that ends within a character is listed, here
    one in eight; nor is another's probability known where it was drafted, here one in fifty."""
    if not set(asked) >= LLAMA_CPP:
        content = [{"id": token, "logprob": -5.0} for token in ids]
        return {"choices": [choice | {"logprobs": {"content": content}}]}
    content = [
        {"id": token, "prob": 1.0, "top_probs": []}
        if token % 50 == 3
        else {"id": token, "prob": math.exp(of), "top_probs": [{"id": token}]}
        for token, of in zip(ids, logprobs, strict=True)
        if token == EOS or token % 8 != 1
    ]
    choice |= {"logprobs": {"content": content} if content else None}
    return {"choices": [choice], "__verbose": {"tokens": ids}}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, log: Path, traits: set[str]) -> None:
        self.log, self.traits, self.lock, self.count = log, traits, threading.Lock(), 0
        super().__init__(("127.0.0.1", port), Handler)

    def fault(self) -> str | None:
        """Return what befalls the next request."""
        kinds = [kind for kind in KINDS if kind in self.traits]
        with self.lock:
            self.count += 1
            turn, rest = divmod(self.count, 5)
        return kinds[turn % len(kinds)] if kinds and not rest else None

    def note(self, **values: Any) -> None:
        with self.lock, self.log.open("a") as log:
            log.write(json.dumps(values) + "\n")


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Write nothing."""

    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        traits, fault = self.server.traits, self.server.fault()
        if "strict" in traits:
            self.reply(404, {"error": f"no model {asked['model']}"})
        elif "textual" in traits and (set(asked) - OPENAI or isinstance(asked["prompt"], list)):
            self.reply(422, {"error": "unexpected fields"})
        elif "narrow" in traits and asked["top_p"] < 0.01:
            self.reply(400, {"error": "top_p must be at least 0.01"})
        elif fault == "busy":
            self.reply(429, {"error": "busy"}, retry="1")
        elif fault == "broken":
            self.reply(500, {"error": "broken"})
        else:
            self.answer(asked, fault)

    def answer(self, asked: dict[str, Any], fault: str | None) -> None:
        answer = complete(asked, self.server.traits)
        if "paced" in self.server.traits:
            with self.server.lock:
                time.sleep(0.02)
        if fault == "slow":
            time.sleep(5)
        if fault == "aborted":
            answer["choices"][0]["finish_reason"] = "abort"
        if fault is None and asked["temperature"] == 1:  # the probes are at others
            self.server.note(seed=asked["seed"], auth=self.headers["Authorization"])
        self.reply(200, answer, fault=fault)

    def reply(
        self, status: int, value: Any, *, retry: str | None = None, fault: str | None = None
    ) -> None:
        data = json.dumps(value).encode()
        if fault == "garbled":
            data = b"<html>" + data
        self.send_response(status)
        if retry is not None:
            self.send_header("Retry-After", retry)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        self.close_connection = fault == "cut"


if __name__ == "__main__":
    port, log, *traits = sys.argv[1:]
    server = Server(int(port), Path(log), set(traits))
    if "parent" in traits:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        server.note(child=child.pid)
    for trait in traits:
        if trait.startswith("of="):
            server.note(model=trait.removeprefix("of="))
    server.serve_forever()
