"""The ray engine on a local cluster of two workers: the same rollouts, and none lost by a kill."""

import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import torch

from servers import gone, notes, own, own_processes, serving, soon
from tiny import save_tiny, tiny_model, tiny_tokenizer
from topr.config import GenerateConfig, ModelConfig, load_recipe
from topr.engines import Engine, Request, check_engine, open_engine, ray
from topr.errors import ConfigError, EngineError
from topr.records import Problem, SamplingParams
from topr.runs.preparation import check_logprobs
from topr.stages.draw import draw
from topr.stages.draw_plan import DrawPlan
from topr.store import read_table

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="ray is not installed: pip install .[ray]",
    ),
    pytest.mark.slow,
]

PROBLEMS = [Problem(id=f"p{i}", prompt=f"What is {i} + {i * i} ?", answer="?") for i in range(12)]
SAMPLING = SamplingParams(max_tokens=40, seed=3)


def problem(ids: tuple[int, ...], name: str = "p") -> Request:
    return Request(problem_id=name, prompt="?", prompt_ids=ids, n=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(path=str(save_tiny(tmp_path_factory.mktemp("model"))), device="cpu")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this process's own with room for two workers, whatever the machine has."""
    import ray as real_ray

    ray._connect("local", num_cpus=2)
    yield
    real_ray.shutdown()


def generate_config(**settings: Any) -> GenerateConfig:
    return GenerateConfig(
        engine="ray", ray={"workers": 2, **settings.pop("ray", {})},
        **({"n": 4, "shard_problems": 2, "batch_size": 8} | settings),
    )  # fmt: skip


@pytest.fixture
def opened(cluster: None, model: ModelConfig) -> Iterator[Engine]:
    with closing(open_engine(model, generate_config())) as engine:
        yield engine


def draw_all(
    engine: Engine,
    directory: Path,
    sampling: SamplingParams,
    told: Callable[[], None] | None = None,
) -> pa.Table:
    plan = DrawPlan(problems=PROBLEMS, sampling=sampling, n=4, shard_problems=2)
    made = draw(plan, engine, directory, advance=lambda *_, **__: told() if told else None)
    assert made == 48
    return read_table(directory)


@pytest.fixture(scope="module")
def without_ray(model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What the transformers engine draws, on one thread as a worker of one core does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = generate_config().model_copy(update={"engine": "transformers"})
    with closing(open_engine(model, config)) as engine:
        table = draw_all(engine, tmp_path_factory.mktemp("plain"), SAMPLING)
    torch.set_num_threads(threads)
    return table


def workers() -> list[psutil.Process]:
    """The actors: Ray names a worker's process after what it does."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any("MapWorker" in word for word in _words(child))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_killing_workers_loses_nothing_and_doubles_nothing(
    opened: Engine, without_ray: pa.Table, tmp_path: Path
) -> None:
    """Both are killed in the middle: the table is that of the engine without Ray all the same, to
    the last bit, and names the engine that drew.
    """
    killed: list[int] = []

    def kill() -> None:
        found = [process.pid for process in workers()]
        if not killed and len(found) == 2:
            killed.extend(found)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    assert draw_all(opened, tmp_path, SAMPLING, kill).equals(without_ray)
    assert len(killed) == 2
    assert not any(psutil.pid_exists(pid) for pid in killed)


# Over the engine `server`


@pytest.fixture(scope="module")
def from_a_server(model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What the server engine draws without Ray. The server's tokens are those of the seed."""
    folder = tmp_path_factory.mktemp("server")
    with (
        serving(folder / "log") as url,
        closing(open_engine(model, GenerateConfig(engine="server", server={"url": url}))) as engine,
    ):
        return draw_all(engine, folder / "rollouts", SAMPLING)


def over_server(**server: Any) -> GenerateConfig:
    return generate_config(ray={"engine": "server"}, server=server)


def test_workers_killed_over_a_server_that_is_there_lose_and_double_nothing(
    cluster: None, model: ModelConfig, from_a_server: pa.Table, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill() -> None:
        for process in workers() if not killed else ():
            with suppress(psutil.NoSuchProcess):
                process.kill()
                killed.append(process.pid)

    with (
        serving(tmp_path / "log", "paced") as url,
        closing(open_engine(model, over_server(url=url))) as engine,
    ):
        assert draw_all(engine, tmp_path / "rollouts", SAMPLING, kill).equals(from_a_server)
    assert killed
    assert not any(psutil.pid_exists(pid) for pid in killed)


def test_the_servers_of_workers_end_with_the_draw(
    cluster: None, model: ModelConfig, from_a_server: pa.Table, tmp_path: Path
) -> None:
    log, started = tmp_path / "log", set[int]()
    config = over_server(**own(log, "parent"))
    with closing(open_engine(model, config)) as engine:
        drawn = draw_all(
            engine, tmp_path / "rollouts", SAMPLING, lambda: started.update(own_processes(log))
        )
    assert drawn.equals(from_a_server)
    assert len(started) >= 4  # the two that watch a server, it, its child
    assert soon(lambda: all(map(gone, started)))


def test_a_worker_closes_its_engine(model: ModelConfig, tmp_path: Path) -> None:
    """Ray Data lets go of it where the actor ends well, and calls nothing of it."""
    log = tmp_path / "log"
    config = over_server(**own(log)).model_copy(update={"engine": "server"})
    worker = ray._Worker(model.model_dump(), model.path, config.model_dump())
    started = own_processes(log)
    assert len(started) == 3
    del worker
    assert all(map(gone, started))


def test_that_log_probabilities_are_missing_is_said_before_a_run_draws(
    cluster: None, model: ModelConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, sampler = over_server(**own(tmp_path / "log", "textual")), load_recipe("quickstart", [])
    recompute = load_recipe("quickstart", ["train.behavior_logprobs=recompute"])
    caplog.set_level(logging.WARNING)
    with closing(open_engine(model, config)) as engine:
        check_logprobs(engine, recompute)
        assert notes(tmp_path / "log") == own_processes(tmp_path / "log") == []
        with pytest.raises(ConfigError, match="engine 'ray' gives no log-probabilities"):
            check_logprobs(engine, sampler)
        assert own_processes(tmp_path / "log") == []
        assert caplog.text.count("train.behavior_logprobs=recompute") == 1
    with closing(open_engine(model, config)) as engine:
        assert draw_all(engine, tmp_path / "rollouts", SAMPLING)["logprobs"].null_count == 48
    assert caplog.text.count("train.behavior_logprobs=recompute") == 2


def test_what_cannot_be_drawn_is_refused_before_a_worker_is_started(opened: Engine) -> None:
    for ids, message in [
        ((), "'bad' has an empty prompt"),
        ((1, 5000), "token id 5000, but the model knows ids 0 to 276"),
        ((5,) * 250, r"250 tokens.*max_tokens=40.*290.*256"),
    ]:
        with pytest.raises(EngineError, match=message):
            opened.generate([problem((5, 6)), problem(ids, "bad")], SAMPLING)


def test_what_a_worker_says_is_told(cluster: None, tmp_path: Path) -> None:
    broken = tiny_model()
    with torch.no_grad():
        broken.get_output_embeddings().weight[7] = torch.nan
    broken.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = generate_config(ray={"workers": 1})
    message = r"a worker of the ray engine failed: .*gave logits that are N.*or bfloat16$"
    with closing(open_engine(ModelConfig(path=str(tmp_path), device="cpu"), config)) as engine:
        rollouts = engine.generate([problem((5, 6))], SAMPLING)
        with pytest.raises(EngineError, match=message):
            next(rollouts)


def test_a_model_that_no_worker_can_load_ends_the_drawing(cluster: None, tmp_path: Path) -> None:
    save_tiny(tmp_path)
    config = generate_config(ray={"workers": 1})
    with closing(open_engine(ModelConfig(path=str(tmp_path), device="cpu"), config)) as engine:
        (tmp_path / "model.safetensors").write_bytes(b"")
        rollouts = engine.generate([problem((5, 6))], SAMPLING)
        with pytest.raises(EngineError, match="a worker of the ray engine failed"):
            next(rollouts)


OWN_CLUSTER = """
import psutil, ray, sys
from topr.config import GenerateConfig, ModelConfig
from topr.engines import open_engine
from topr.errors import EngineError

if __name__ == "__main__":
    model = ModelConfig(path=sys.argv[1], device="cpu")
    try:
        open_engine(model, GenerateConfig(engine="ray", ray={"gpus_per_worker": 64}))
    except EngineError as error:
        assert "a worker takes" in str(error), error
    assert not ray.is_initialized()
    engine = open_engine(model, GenerateConfig(engine="ray"))
    hosts = [key for key in ray.cluster_resources() if key.startswith("node:1")]
    assert hosts == ["node:127.0.0.2"], hosts
    children = psutil.Process().children(recursive=True)
    assert children
    engine.close()
    assert not ray.is_initialized()
    assert psutil.wait_procs(children, timeout=30)[1] == []
    print("done")
"""


def test_a_cluster_of_its_own_listens_to_this_machine_and_ends_with_the_engine(
    model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, since this one may be connected. One that is too small ends too."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    command = [sys.executable, "-W", "error", "-c", OWN_CLUSTER, model.path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr


def test_blocks_are_shards_while_every_worker_has_one() -> None:
    requests = [problem((5, 6, i), f"p{i}") for i in range(10)]
    shards = ray.blocks_of(requests, shard_problems=4, workers=2)
    assert [block["problem_id"].to_pylist() for block in shards] == [
        [f"p{i}" for i in part] for part in (range(4), range(4, 8), range(8, 10))
    ]
    assert [len(block) for block in ray.blocks_of(requests, 64, 4)] == [3, 3, 3, 1]
    assert shards[0].to_pylist()[1] == {
        "problem_id": "p1", "prompt": "?", "prompt_ids": [5, 6, 1], "n": 2, "first_sample": 0,
        "gold": None, "question": None,
    }  # fmt: skip


def nodes(*resources: dict[str, float]) -> list[dict[str, Any]]:
    """As `ray.nodes` has them, one that was lost among them."""
    alive = [{"Alive": True, "Resources": own} for own in resources]
    return [*alive, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]


CPUS, EIGHT = {"CPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("settings", "there", "expected"),
    [
        ({}, [CPUS], (1, 0.0)),
        ({}, [EIGHT], (8, 1.0)),
        ({}, [CPUS, EIGHT, EIGHT], (16, 1.0)),
        ({"engine": "vllm"}, [EIGHT], (2, 4.0)),
        ({"engine": "vllm"}, [{"CPU": 64.0, "GPU": 6.0}] * 2, (2, 4.0)),
        ({"engine": "vllm"}, [EIGHT, {"CPU": 64.0, "GPU": 3.0}], (2, 4.0)),
        ({"workers": 3}, [EIGHT], (3, 1.0)),
        ({"gpus_per_worker": 0.5}, [{"CPU": 64.0, "GPU": 2.0}], (4, 0.5)),
        ({"gpus_per_worker": 0.1}, [{"CPU": 64.0, "GPU": 1.0}], (10, 0.1)),
        ({"gpus_per_worker": 0, "workers": 4}, [{"CPU": 4.0, "GPU": 2.0}], (4, 0.0)),
        ({"cpus_per_worker": 32}, [EIGHT], (2, 1.0)),
        ({"cpus_per_worker": 48}, [EIGHT, EIGHT], (2, 1.0)),
    ],
)
def test_the_nodes_give_the_number_of_workers(
    settings: dict[str, Any], there: list[dict[str, float]], expected: tuple[int, float]
) -> None:
    config = GenerateConfig(engine="ray", ray=settings, vllm={"tensor_parallel_size": 4})
    assert ray._size(config, nodes(*there)) == expected


def test_a_cluster_without_room_for_a_worker_is_refused() -> None:
    """Two nodes that have room for it together have none."""
    config = GenerateConfig(engine="ray", ray={"engine": "vllm"}, vllm={"tensor_parallel_size": 16})
    message = r"16\.0.* 8 GPUs and 64 CPUs; 0 GPUs and 8 CPUs:"
    with pytest.raises(EngineError, match=message):
        ray._size(config, nodes(EIGHT, CPUS, EIGHT))


def test_the_engine_in_the_workers_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GenerateConfig(engine="ray", ray={"engine": "vllm"})
    monkeypatch.setattr("topr.engines.vllm.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="vllm is not installed"):
        check_engine(ModelConfig(path="m"), config)


def test_without_ray_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install '.\[ray\]'.*engine=transformers"):
        check_engine(ModelConfig(path="m"), GenerateConfig(engine="ray"))


def test_where_it_is_drawn_is_not_what_is_drawn() -> None:
    """A run goes on on another cluster."""
    here, there, other = (
        load_recipe("quickstart", ["generate.engine=ray", *changes]).fixed()
        for changes in ([], ["generate.ray.workers=8"], ["generate.ray.engine=vllm"])
    )
    assert here == there != other
