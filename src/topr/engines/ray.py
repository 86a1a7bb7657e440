"""Ray Data over another engine: one actor per device, on one node or many.

What is sampled is the other engine's; here is only who samples what. The problems of one shard are
one block, so a worker is asked for exactly what the engine would be asked for without Ray. Not
here: progress on disk (`topr.stages.draw` writes shards that are complete), and servers that Ray
does not know (engine `server`).
"""

import logging
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from topr.config.sections import GenerateConfig, ModelConfig
from topr.engines.base import Engine, Request, validate_requests
from topr.errors import ConfigError, EngineError
from topr.models.facts import ModelFacts, model_facts
from topr.models.loading import load_tokenizer
from topr.models.places import identity
from topr.records import Rollout, SamplingParams
from topr.store import rollouts_to_table, table_to_rollouts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

RESTARTS = 16
"""Times that a worker which died is started again, and its block sampled again. More than a machine
that is taken back now and then needs, and an end where every start fails."""

LOOPBACK = "127.0.0.2"
"""Address of a cluster of this process's own. Ray replaces 127.0.0.1 by the address at which other
machines reach this one. It listens on all of them all the same, and wants a token."""

REQUEST_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("prompt", pa.string()),
        ("prompt_ids", pa.list_(pa.int64())),
        ("n", pa.int64()),
        ("first_sample", pa.int64()),
        ("gold", pa.string()),
        ("question", pa.string()),
    ]
)


class RayEngine(Engine):
    """Draws completions in the workers of a Ray cluster."""

    name = "ray"
    spans_shards = True
    """Workers load the model once for all that one call gives: see `topr.stages.draw`."""

    def __init__(
        self,
        model: ModelConfig,
        config: GenerateConfig,
        tokenizer: "PreTrainedTokenizerBase",
        facts: ModelFacts,
        *,
        workers: int,
        gpus: float,
        owns_cluster: bool,
    ) -> None:
        """Draw in the cluster that this process is connected to.

        Args:
            model: the section `model`; every worker loads it.
            config: the section `generate`.
            tokenizer: the model's.
            facts: of the model, to refuse prompts before they are sent.
            workers: actors.
            gpus: of each.
            owns_cluster: `close` disconnects, which ends a cluster of this process's own.

        """
        self.model = model
        self.config = config
        self.tokenizer = tokenizer
        self.facts = facts
        self.model_name = model.path
        self.revision = identity(model)
        self.workers = workers
        self.gpus = gpus
        self._owns_cluster = owns_cluster
        self._warned = False

    @cached_property
    def records_logprobs(self) -> bool:
        """False where the engine in the workers records none. A separate worker asks a server."""
        if self.config.ray.engine != "server":
            return True
        import ray

        asked = ray.remote(num_cpus=self.config.ray.cpus_per_worker, num_gpus=self.gpus)(
            _records_logprobs
        )
        try:
            found = bool(ray.get(asked.remote(*self._of_worker())))
        except ray.exceptions.RayError as error:
            raise EngineError(_told(str(error))) from error
        if not found:
            self._warn()
        return found

    @staticmethod
    def check(model: ModelConfig, config: GenerateConfig) -> None:
        """Refuse to start without Ray, or without what the engine in the workers needs."""
        _check_installed(config)
        from topr.engines import check_engine

        check_engine(model, inner_config(config))

    @classmethod
    def open(cls, model: ModelConfig, config: GenerateConfig) -> "RayEngine":
        """Connect to the cluster, or start one on this machine. No worker loads the model yet.

        Raises:
            ModelError: there is no such model.
            EngineError: the cluster cannot be reached, or is too small for one worker.

        """
        if config.ray.engine == "server" and config.server.url is not None:
            _check_installed(config)  # `check` refuses a server that is there: no run can train so
        else:
            cls.check(model, config)
        tokenizer = load_tokenizer(model)
        facts = model_facts(model, tokenizer)
        import ray

        owns = not ray.is_initialized()
        if owns:
            _connect(config.ray.address or os.environ.get("RAY_ADDRESS") or "local")
        try:
            workers, gpus = _size(config, ray.nodes())
            return cls(
                model, config, tokenizer, facts, workers=workers, gpus=gpus, owns_cluster=owns
            )
        except BaseException:
            if owns:
                ray.shutdown()
            raise

    def close(self) -> None:
        """Let go of the cluster; end it where it is this process's own."""
        if self._owns_cluster:
            import ray

            ray.shutdown()

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, *, iteration: int = 0
    ) -> Iterator[Rollout]:
        """Yield the completions block by block, as workers finish them.

        A worker that dies is started again, and its block is sampled again from the beginning: the
        same seeds give the same completions, and none of them was seen before.

        Raises:
            EngineError: a prompt cannot be completed (before anything is sampled); a worker's
                engine refuses or fails; workers die again and again.

        """
        validate_requests(requests, sampling, self.facts)
        return self._rollouts(requests, sampling, iteration) if requests else iter(())

    def _rollouts(
        self, requests: Sequence[Request], sampling: SamplingParams, iteration: int
    ) -> Iterator[Rollout]:
        import ray
        from ray.data import ActorPoolStrategy

        blocks = blocks_of(requests, self.config.shard_problems, self.workers)
        with _quiet():
            dataset = ray.data.from_arrow(blocks).map_batches(
                _Worker,
                fn_constructor_args=self._of_worker(),
                fn_kwargs={"sampling": asdict(sampling), "iteration": iteration},
                batch_size=None,  # a whole block
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    size=min(self.workers, len(blocks)), max_tasks_in_flight_per_actor=1
                ),
                num_cpus=self.config.ray.cpus_per_worker,
                num_gpus=self.gpus,
                max_restarts=RESTARTS,
                max_task_retries=RESTARTS,
            )
        try:
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                if table["logprobs"].null_count:
                    self._warn()
                yield from table_to_rollouts(table)
        except ray.exceptions.RayError as error:
            raise EngineError(_told(str(error))) from error

    def _warn(self) -> None:
        """Say once that log-probabilities are missing: what a worker says is in its log alone."""
        if self._warned:
            return
        self._warned = True
        logger.warning(
            "engine %s in the workers gives completions without log-probabilities (their logs say "
            "why): training on them needs train.behavior_logprobs=recompute",
            self.config.ray.engine,
        )

    def _of_worker(self) -> tuple[dict[str, Any], str, dict[str, Any]]:
        """Return what a worker is made of: a model that it finds, its name, and the settings."""
        directory = Path(self.model.path).expanduser()
        path = str(directory.resolve()) if directory.is_dir() else self.model.path
        model = self.model.model_copy(update={"path": path})
        return model.model_dump(), self.model.path, inner_config(self.config).model_dump()


class _Worker:
    """An actor of Ray Data: an engine, opened once, that samples block after block."""

    def __init__(self, model: dict[str, Any], name: str, config: dict[str, Any]) -> None:
        from topr.engines import open_engine

        self._engine = open_engine(ModelConfig(**model), GenerateConfig(**config))
        self._engine.model_name = name  # as the recipe has it, and not where this worker found it

    def __del__(self) -> None:
        """Close the engine: nothing else is called where an actor of Ray Data ends."""
        if hasattr(self, "_engine"):  # it may not have opened
            self._engine.close()

    def __call__(self, table: pa.Table, sampling: dict[str, Any], iteration: int) -> pa.Table:
        requests = [
            Request(**{**row, "prompt_ids": tuple(row["prompt_ids"])}) for row in table.to_pylist()
        ]
        params = SamplingParams(**{**sampling, "stop": tuple(sampling["stop"])})
        return rollouts_to_table(self._engine.generate(requests, params, iteration=iteration))


def _records_logprobs(model: dict[str, Any], name: str, config: dict[str, Any]) -> bool:
    """Run in a worker of Ray: see `RayEngine.records_logprobs`."""
    from topr.engines import open_engine

    with closing(open_engine(ModelConfig(**model), GenerateConfig(**config))) as engine:
        return engine.records_logprobs


def inner_config(config: GenerateConfig) -> GenerateConfig:
    """Return the section `generate` for the engine in the workers."""
    return config.model_copy(update={"engine": config.ray.engine})


def blocks_of(requests: Sequence[Request], shard_problems: int, workers: int) -> list[pa.Table]:
    """Cut requests into what workers are given at a time.

    Consecutive ones, as many as a shard has problems, so that an engine is given what it would be
    given without Ray; fewer only where some of the workers would have nothing to do.
    """
    size = min(shard_problems, math.ceil(len(requests) / workers))
    names = REQUEST_SCHEMA.names
    rows = [{name: getattr(request, name) for name in names} for request in requests]
    return [
        pa.Table.from_pylist(rows[start : start + size], schema=REQUEST_SCHEMA)
        for start in range(0, len(rows), size)
    ]


def _check_installed(config: GenerateConfig) -> None:
    if find_spec("ray") is None or find_spec("ray.data") is None:
        raise ConfigError(
            "generate.engine is ray, and the package ray is not installed here: install it "
            f"(pip install '.[ray]' in topr's checkout), or set generate.engine={config.ray.engine}"
        )


def _connect(address: str, **resources: int) -> None:
    """Connect to a cluster, or (`local`) start one on this machine for this process alone.

    Args:
        address: of the cluster.
        resources: of one that is started, such as `num_cpus`; defaults to the machine's.

    """
    import ray.data

    own: dict[str, Any] = dict(resources)
    if address == "local":
        if os.environ.get("RAY_AUTH_MODE", "token").lower() == "disabled":
            raise EngineError(
                "RAY_AUTH_MODE=disabled, and the processes of a Ray cluster listen on all of this "
                "machine's addresses: unset it, so that they want a token, or connect to a "
                "cluster of your own (generate.ray.address)"
            )
        own |= {"include_dashboard": False, "_node_ip_address": LOOPBACK}
    with _quiet():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EngineError(
                f"the Ray cluster at {address!r} cannot be reached: {error}\nStart one with `ray "
                "start --head`, give its address in generate.ray.address (`auto` is the one on "
                "this machine) or RAY_ADDRESS, or give neither to have one started"
            ) from error
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # Its tracebacks are those of Ray's inside; what went wrong is in the error that is raised.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _size(config: GenerateConfig, nodes: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
    """Return how many workers, and the GPUs of each, for the nodes of a cluster (`ray.nodes`).

    Raises:
        EngineError: no node has room for a single worker.

    """
    settings = config.ray
    there = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = settings.gpus_per_worker
    if gpus is None:
        spread = config.vllm.tensor_parallel_size if settings.engine == "vllm" else 1
        gpus = float(spread if any(node.get("GPU", 0) for node in there) else 0)
    needs = {"GPU": gpus, "CPU": settings.cpus_per_worker}
    room = sum(
        min(math.floor(node.get(name, 0) / need + 1e-6) for name, need in needs.items() if need)
        for node in there
    )
    if not room:
        has = {f"{node.get('GPU', 0):g} GPUs and {node.get('CPU', 0):g} CPUs" for node in there}
        raise EngineError(
            f"a worker takes {needs} of one node, and the nodes of the Ray cluster have "
            f"{'; '.join(sorted(has, reverse=True))}: set generate.ray.gpus_per_worker and "
            "cpus_per_worker, or connect to a cluster of larger nodes"
        )
    workers = settings.workers or (room if gpus else 1)
    if workers > room:
        logger.warning(
            "%d workers are asked for, and the Ray cluster has room for %d now: the others start "
            "when it grows", workers, room,
        )  # fmt: skip
    return workers, gpus


def _told(message: str) -> str:
    """Return what a worker's own error says, or else the end of what Ray says."""
    own = re.findall(r"topr\.errors\.\w+: (.*?)(?=\n\n|\nThe above|\Z)", message, re.DOTALL)
    said = own[-1].strip() if own else message.strip()[-2000:]
    return f"a worker of the ray engine failed: {said}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Ray warns of in its own defaults, and that it will rename how restarts are
    limited.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
