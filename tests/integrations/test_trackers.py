"""`train.report_to`: each tracker's own store, read by its own package, holds what the log holds.

Trackers that are not installed are skipped. Nothing leaves the machine.
"""

import importlib.util
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import read_jsonl, topr, write_jsonl
from tiny import save_tiny

STEPS = 3
KEYS = ["loss", "grad_norm", "log_ratio/negative", "weight/negative", "gradient_share/positive"]


def read_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = (folder / "out/training/runs").iterdir()
    events = EventAccumulator(str(place))
    events.Reload()
    return {key: {e.step: e.value for e in events.Scalars(f"train/{key}")} for key in KEYS}


def read_trackio(_folder: Path) -> dict[str, dict[int, float]]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("topr-test")
    lines = SQLiteStorage.get_logs("topr-test", run_id=run.id)
    return {
        key: {n["train/global_step"]: n[f"train/{key}"] for n in lines if f"train/{key}" in n}
        for key in KEYS
    }


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Records of wandb's offline file: LevelDB's log format after a header of 7 bytes."""
    whole, position, block = b"", 7, 32768
    while position + 7 <= len(data):
        if block - position % block < 7:  # no room for a header: filled with zeros
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, or the last part
            yield whole
            whole = b""


def read_wandb(folder: Path) -> dict[str, dict[int, float]]:
    from wandb.proto import wandb_internal_pb2

    (place,) = folder.glob("tracked/wandb/offline-run-*/run-*.wandb")
    found: dict[str, dict[int, float]] = {key: {} for key in KEYS}
    for data in wandb_records(place.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        items = {
            ".".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for key in KEYS:
            if f"train/{key}" in items:
                found[key][items["train/global_step"]] = items[f"train/{key}"]
    return found


def read_mlflow(folder: Path) -> dict[str, dict[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {
        key: {m.step: m.value for m in client.get_metric_history(run.info.run_id, key)}
        for key in KEYS
    }


READERS = {
    "tensorboard": read_tensorboard,
    "trackio": read_trackio,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
}


@pytest.mark.parametrize("tracker", READERS)
def test_a_tracker_has_what_the_log_has(tmp_path, monkeypatch, tracker):
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    kept = tmp_path / "tracked"
    kept.mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(kept))
    monkeypatch.setenv("TRACKIO_DIR", str(kept))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    save_tiny(tmp_path / "model")
    rows = [
        {"prompt": "The answer is", "completion": f" {k} = 2", "reward": 1.0 if k % 2 else -1.0}
        for k in range(8)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    topr(
        tmp_path, "train", "rows.jsonl", "-m", "model", "-o", "out",
        "train.behavior_logprobs=recompute", f"train.max_steps={STEPS}",
        "train.global_batch_size=8", "train.learning_rate=1e-3", f"train.report_to=[{tracker}]",
        "train.training_arguments.project=topr-test",
    )  # fmt: skip
    log = {line["step"]: line for line in read_jsonl(tmp_path / "out/training/log.jsonl")}
    assert list(log) == [1, 2, 3]
    assert log[3]["log_ratio/negative"] != log[2]["log_ratio/negative"]
    found = READERS[tracker](tmp_path)
    for key in KEYS:
        assert list(found[key]) == list(log), key
        for step, value in found[key].items():
            assert math.isclose(value, log[step][key], rel_tol=1e-5, abs_tol=1e-7), (key, step)
