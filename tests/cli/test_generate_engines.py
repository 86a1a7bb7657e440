"""One recipe, drawn by one engine after another: `generate.engine` is all that changes."""

import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pytest

from command_line import topr, write_jsonl
from servers import own, own_processes, soon
from tiny import save_tiny
from topr.store import read_table

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="ray is not installed: pip install .[ray]",
    ),
    pytest.mark.slow,
]


def test_the_engine_is_all_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gives every completion with its log-probabilities, and no server of a worker is left."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    model, log = save_tiny(tmp_path / "model"), tmp_path / "log"
    rows = [{"prompt": f"What is {i} ?", "answer": str(i)} for i in range(6)]
    write_jsonl(tmp_path / "sums.jsonl", rows)
    recipe = {
        "task": {"name": "jsonl", "train_file": "sums.jsonl", "test_problems": 2},
        "model": {"path": str(model), "device": "cpu"},
        "generate": {
            "n": 4, "max_tokens": 16, "shard_problems": 2,
            "server": own(log), "ray": {"engine": "server", "workers": 2},
        },
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    drawn: dict[str, pa.Table] = {}
    for engine in ("transformers", "server", "ray"):
        topr(tmp_path, "generate", "recipe.yaml", "-o", engine, f"generate.engine={engine}")
        drawn[engine] = read_table(tmp_path / engine)
        assert soon(lambda: own_processes(log) == [])
    keys = ["problem_id", "sample", "prompt_ids", "gold"]
    assert drawn["transformers"].num_rows == 16
    assert drawn["server"].select(keys).equals(drawn["transformers"].select(keys))
    assert drawn["ray"].equals(drawn["server"])
    for table in drawn.values():
        for row in table.to_pylist():
            assert len(row["logprobs"]) == len(row["completion_ids"]) > 0
