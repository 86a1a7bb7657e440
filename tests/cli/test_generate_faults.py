"""`topr generate` killed, or out of disk, while it draws: the same command again ends the same."""

import functools
import importlib.util
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from command_line import topr, write_jsonl
from servers import own
from tiny import save_tiny
from topr.store import read_table, shard_paths

# Starting Ray takes minutes where other programs have the cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RECIPE = """
task:
  name: jsonl
  train_file: sums.jsonl
  test_problems: 4
  grader: numeric
model: {path: model, device: cpu}
generate:
  n: 16
  max_tokens: 150
  batch_size: 8
  shard_problems: 2
"""
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install .[ray]"
)
ENGINES = ["transformers", pytest.param("ray", marks=needs_ray)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends a text, so that a shard takes a while."""
    folder = tmp_path_factory.mktemp("faults")
    save_tiny(folder / "model", eos_token_id=None, max_position_embeddings=512)
    rows = [{"prompt": f"What is {i} + {i} ?", "answer": str(2 * i)} for i in range(16)]
    write_jsonl(folder / "sums.jsonl", rows)
    server = f"  server: {json.dumps(own(folder / 'log', 'paced'))}\n"
    (folder / "recipe.yaml").write_text(RECIPE + server)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Callable[[str], pa.Table]:
    """What an engine draws when nothing happens."""

    @functools.cache
    def drawn(engine: str) -> pa.Table:
        output = f"undisturbed-{engine}"
        topr(folder, "generate", "recipe.yaml", "-o", output, f"generate.engine={engine}")
        table = read_table(folder / output)
        assert table.num_rows == 12 * 16
        return table

    return drawn


def start(folder: Path, engine: str, output: str, *further: str) -> subprocess.Popen[str]:
    command = ["generate", "recipe.yaml", "-o", output, f"generate.engine={engine}", *further]
    return subprocess.Popen(
        [sys.executable, "-m", "topr", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_a_shard(process: subprocess.Popen[str], directory: Path) -> None:
    until = time.monotonic() + 300
    while not list(directory.glob("part-*.parquet")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "no shard in five minutes"
        time.sleep(0.01)


def is_agent(process: psutil.Process) -> bool:
    try:
        return "agent" in " ".join(process.cmdline()).lower()
    except psutil.Error:
        return False


def ended_the_same(folder: Path, engine: str, output: str, undisturbed: pa.Table) -> bool:
    """Run the command again: shards that are there stay, and all rows are the undisturbed run's."""
    kept = {path: path.stat().st_ino for path in shard_paths(folder / output)}
    assert 1 <= len(kept) < 6
    topr(folder, "generate", "recipe.yaml", "-o", output, f"generate.engine={engine}")
    assert {path: path.stat().st_ino for path in kept} == kept
    hidden = [path.name for path in (folder / output).iterdir() if path.name.startswith(".")]
    assert hidden == [".lock"]
    return bool(read_table(folder / output).equals(undisturbed))


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_while_drawing_it_goes_on(
    folder: Path,
    undisturbed: Callable[[str], pa.Table],
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    output = f"killed-{engine}"
    process = start(folder, engine, output)
    wait_for_a_shard(process, folder / output)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    # Workers end with it. Ray's agents, which hold no model, give up a minute or two later.
    alive = psutil.wait_procs([c for c in children if not is_agent(c)], timeout=60)[1]
    assert alive == []
    assert ended_the_same(folder, engine, output, undisturbed("transformers"))


@pytest.mark.parametrize("engine", ["transformers", "server"])
def test_out_of_disk_while_drawing_it_says_so_and_goes_on(
    folder: Path, undisturbed: Callable[[str], pa.Table], engine: str
) -> None:
    """The kernel refuses what it writes beyond some bytes, from the second shard on."""
    output = f"full-{engine}"
    process = start(folder, engine, output)
    wait_for_a_shard(process, folder / output)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (500, 500))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert re.search(
        rf"error: {output}/\S+ could not be written: (File too large|No space left on device). "
        r"Make room, and the same command resumes\n\Z",
        said,
    )
    assert ended_the_same(folder, engine, output, undisturbed(engine))


@pytest.fixture
def two_nodes() -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).parent / "two_ray_nodes.py"
    process = subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    yield process
    process.communicate("\n\n", timeout=120)


@needs_ray
def test_a_node_that_is_lost_loses_and_doubles_nothing(
    folder: Path, undisturbed: Callable[[str], pa.Table], two_nodes: subprocess.Popen[str]
) -> None:
    expected = undisturbed("transformers")
    assert two_nodes.stdin is not None
    assert two_nodes.stdout is not None
    address = two_nodes.stdout.readline().strip()
    process = start(folder, "ray", "two-nodes", f"generate.ray.address={address}")
    wait_for_a_shard(process, folder / "two-nodes")
    two_nodes.stdin.write("\n")
    two_nodes.stdin.flush()
    assert two_nodes.stdout.readline() == "lost\n"
    assert process.poll() is None  # much was left to draw
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert read_table(folder / "two-nodes").equals(expected)
