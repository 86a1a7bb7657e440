"""The engine that asks a server: any OpenAI-compatible completions endpoint.

Not here: the wire format (`topr.engines.completions`), retries (`topr.engines.client`), and the
process of a server that topr starts (`topr.engines.server_process`).
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import PreTrainedTokenizerBase

from topr.config.engines import ServerConfig
from topr.config.sections import GenerateConfig, ModelConfig
from topr.engines.background import in_background
from topr.engines.base import Engine, Request, Sample, make_rollout, samples_of, validate_requests
from topr.engines.client import Endpoint, Session
from topr.engines.completions import (
    Answer,
    Prompt,
    ServedModel,
    ServerCapabilities,
    body,
    finalize_completion,
    read_answer,
)
from topr.engines.probing import probe
from topr.engines.rng import request_seed
from topr.engines.server_process import ServerProcess, check_command, model_word
from topr.engines.stops import StopStrings
from topr.errors import ConfigError, EngineError
from topr.models.facts import ModelFacts, model_facts
from topr.models.loading import load_tokenizer
from topr.models.places import identity
from topr.records import Rollout, SamplingParams
from topr.tokenization.ends import Ends

logger = logging.getLogger(__name__)


class ServerEngine(Engine):
    """Draws completions from a server, one request for each, many under way at a time."""

    name = "server"
    journal = True

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: PreTrainedTokenizerBase,
        facts: ModelFacts,
        config: ServerConfig,
        *,
        sampling: SamplingParams,
        model_name: str,
        revision: str | None = None,
        served: ServerProcess | None = None,
    ) -> None:
        """Wait until the server answers, and see what it takes and gives.

        Args:
            endpoint: where the server is.
            tokenizer: the model's.
            facts: of the model.
            config: the section `generate.server`.
            sampling: of the section `generate`: whether log-probabilities are those of it.
            model_name: what records say sampled them.
            revision: likewise; see `topr.models.files.fingerprint`.
            served: the server's process, where it is the engine's own: closed with it.

        Raises:
            EngineError: there is no such server, or it does not serve the model.

        """
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.revision = revision
        self._endpoint = endpoint
        self._facts = facts
        self._config = config
        self._served = served
        self._model, self._capabilities = self._handshake()
        if served is not None:
            served.check_alive()  # else another server has taken its port, and was met
        self._warned = False
        left_out = self._capabilities.unaccounted_params(sampling)
        self._records_logprobs = self._capabilities.gives_logprobs and not left_out
        if not self._capabilities.draws:
            logger.warning(
                "the server at %s wrote the same text with two seeds at temperature 2: see that it "
                "samples at all. transformers serve needs do_sample (docs/engines/server.md)",
                endpoint.url,
            )
        if not self._capabilities.gives_logprobs:
            self._warn("does not give a log-probability of every token id that it draws")
        self._warn_of(left_out)

    @property
    def records_logprobs(self) -> bool:
        """Whether the server gives the log-probability of every token that it samples."""
        return self._records_logprobs

    @staticmethod
    def check(model: ModelConfig, config: GenerateConfig) -> None:
        """Refuse a server that a run cannot use, or that cannot be started."""
        if config.server.url is not None:
            raise ConfigError(
                f"generate.server.url={config.server.url}: that server has one model, and a run "
                "draws from each model that it trains. Leave url out, and topr starts a server for "
                "each (generate.server.command); or draw from that server with `topr generate`, "
                "and train on what it wrote with `topr grade`, `topr curate` and `topr train`"
            )
        _key(config.server)
        check_command(config.server)

    @classmethod
    def open(cls, model: ModelConfig, config: GenerateConfig) -> "ServerEngine":
        """Find the server, or start one, and wait until it answers."""
        server, key = config.server, _key(config.server)
        tokenizer, revision = load_tokenizer(model), identity(model)
        facts = model_facts(model, tokenizer)
        sampling = SamplingParams(
            temperature=config.temperature, top_p=config.top_p, top_k=config.top_k
        )
        served, url = None, server.url
        if url is None:
            check_command(server)
            served = ServerProcess(model, server)
            url = served.url
        endpoint = Endpoint(
            url=_up_to_version(url),
            timeout=server.timeout,
            patience=server.patience,
            key=key,
            check=served.check_alive if served else lambda: None,
        )
        try:
            return cls(
                endpoint, tokenizer, facts, server, sampling=sampling,
                model_name=model.path, revision=revision, served=served,
            )  # fmt: skip
        except BaseException:
            if served is not None:
                served.close(keep_log=True)
            raise

    def close(self) -> None:
        """End the server, where it is the engine's own."""
        if self._served is not None:
            self._served.close()
            self._served = None

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, *, iteration: int = 0
    ) -> Iterator[Rollout]:
        """Yield the completions as they are answered.

        Every request is checked before anything is sampled. A request that fails in passing is made
        again with the same seed, so that a server that honours seeds samples the same sample.

        Raises:
            EngineError: a prompt cannot be completed, the server refuses a request, or it has not
                answered for `patience` seconds.

        """
        validate_requests(requests, sampling, self._facts)
        prompts = {request.problem_id: self._prompt(request) for request in requests}
        return self._rollouts(list(samples_of(requests)), prompts, sampling, iteration)

    def _rollouts(
        self, samples: Sequence[Sample], prompts: Mapping[str, Prompt], sampling: SamplingParams,
        iteration: int,
    ) -> Iterator[Rollout]:  # fmt: skip
        stops = StopStrings(self.tokenizer, sampling.stop)
        ends = Ends(self.tokenizer, self._facts.eos_ids)
        left_out = self._capabilities.unaccounted_params(sampling)
        self._warn_of(left_out)

        def ask(put: Callable[[tuple[Sample, Answer]], None]) -> Awaitable[None]:
            return self._ask_all(samples, prompts, sampling, put)

        for sample, answer in in_background(ask):
            complete = finalize_completion(
                replace(answer, logprobs=None) if left_out else answer,
                sample.request.prompt,
                self.tokenizer,
                stops,
                ends,
                greedy=sampling.temperature == 0.0,
            )
            if complete.logprobs is None:
                self._warn("gave a completion without a log-probability of each of its tokens")
            assert complete.ids is not None  # noqa: S101 - `finalize_completion` tokenised a text
            yield make_rollout(
                self, sample, sampling, iteration,
                ids=complete.ids, logprobs=complete.logprobs, reason=complete.reason,
            )  # fmt: skip

    async def _ask_all(
        self, samples: Sequence[Sample], prompts: Mapping[str, Prompt], sampling: SamplingParams,
        put: Callable[[tuple[Sample, Answer]], None],
    ) -> None:  # fmt: skip
        """Ask for all samples, `concurrency` of them at a time."""
        left = iter(samples)
        workers = min(self._config.concurrency, len(samples))

        async def work(session: Session) -> None:
            for sample in left:
                problem = sample.request.problem_id
                seed = request_seed(sampling.seed, problem, sample.number)
                fields = body(prompts[problem], sampling, seed, self._capabilities, self._model)
                answer = await session.ask("completions", read_answer, fields, spread=seed / 2**31)
                put((sample, answer))

        try:
            async with Session(self._endpoint, workers) as session, asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(work(session))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _handshake(self) -> tuple[ServedModel, ServerCapabilities]:
        """Return what the server calls the model, and what it takes and gives."""

        async def handshake(put: Callable[[tuple[ServedModel, ServerCapabilities]], None]) -> None:
            async with Session(self._endpoint) as session:
                name = self._config.model
                if name is not None:
                    name = name.replace("{model}", model_word(self.model_name))
                else:
                    name = self._find(await session.ask("models", _models, longest=1.0))
                model = ServedModel(
                    name=name, end_ids=self._facts.eos_ids, extra=self._config.extra_body
                )
                put((model, await probe(session, self.tokenizer, model)))

        (met,) = in_background(handshake)
        return met

    def _find(self, listed: dict[str, set[str]]) -> str:
        """Return the name of the model among those that a server lists."""
        called = {self.model_name, str(Path(self.model_name).expanduser().resolve())}
        own = [name for name, names in listed.items() if called & names]
        if own:
            return own[0]
        if len(listed) != 1:
            raise EngineError(
                f"{self._endpoint.url} lists the models {', '.join(listed) or '(none)'}, of which "
                f"none is called {self.model_name!r}: set generate.server.model to the one that is "
                "the model of this recipe"
            )
        (name,) = listed
        if self._served is None:
            logger.warning(
                "the server at %s calls its model %r: that it is %r, whose tokenizer is used and "
                "which the rollouts will name, cannot be seen from here",
                self._endpoint.url, name, self.model_name,
            )  # fmt: skip
        return name

    def _prompt(self, request: Request) -> Prompt:
        """Return a request's prompt; as text, where the server will tokenise it likewise."""
        text, bos = request.prompt, self.tokenizer.bos_token
        if self._capabilities.takes_ids:
            return Prompt(ids=request.prompt_ids, text=text)
        for form in (text, text.removeprefix(bos or "")):
            if tuple(self.tokenizer(form)["input_ids"]) == request.prompt_ids:
                return Prompt(ids=request.prompt_ids, text=form)
        raise EngineError(
            f"{self._endpoint.url} takes prompts as text alone, and that of problem "
            f"{request.problem_id!r} would be tokenised otherwise there than here: use a server "
            "that takes token ids, such as vLLM's"
        )

    def _warn_of(self, left_out: Sequence[str]) -> None:
        """Say once that log-probabilities are of another distribution than the sampled one."""
        if left_out:
            plain = not self._capabilities.counts_temperature
            hint = ", as vLLM's do without --logprobs-mode processed_logprobs" if plain else ""
            self._warn(
                f"gives log-probabilities that leave out {' and '.join(left_out)}{hint}: they are "
                "not recorded"
            )

    def _warn(self, what: str) -> None:
        """Say once that log-probabilities are missing."""
        if self._warned:
            return
        self._warned = True
        logger.warning(
            "the server at %s %s; training on its rollouts needs train.behavior_logprobs=recompute",
            self._endpoint.url, what,
        )  # fmt: skip


def _models(answer: Any) -> dict[str, set[str]]:
    """Return all that a server calls its models, by the name that requests give."""
    try:
        return {str(x["id"]): {str(x["id"]), str(x.get("root"))} for x in answer["data"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"the server answered {str(answer)[:500]}, which is not a list of models: "
            "generate.server.url must be that of an OpenAI-compatible server, up to /v1; where it "
            "lists none, set generate.server.model"
        ) from error


def _up_to_version(url: str) -> str:
    """Return the url with the `/v1` that may be left out."""
    url = url.rstrip("/")
    return url if urlsplit(url).path else f"{url}/v1"


def _key(config: ServerConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env)
    if not key:
        raise ConfigError(
            f"generate.server.api_key_env={config.api_key_env}, and there is no such environment "
            "variable: set it to the server's key, or leave api_key_env out"
        )
    return key
