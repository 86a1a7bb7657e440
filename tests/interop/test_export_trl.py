"""The real TRL trains on what `topr export` writes, where it is installed."""

import math
from pathlib import Path
from typing import Any

import pytest

trl = pytest.importorskip("trl")

import datasets  # noqa: E402
from test_exporters import TABLE, TOKENIZER  # noqa: E402

from tiny import save_tiny  # noqa: E402
from topr.interop import export_rollouts, write_rows  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # TRL's are not ours

TRAINERS = {
    "trl": (trl.SFTConfig, trl.SFTTrainer),
    "trl-kto": (trl.KTOConfig, trl.KTOTrainer),
    "trl-dpo": (trl.DPOConfig, trl.DPOTrainer),
}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("name", TRAINERS)
def test_trl_takes_a_step_on_an_export(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write_rows(path, export_rollouts(TABLE, name).table)
    loader = "parquet" if suffix == ".parquet" else "json"
    rows = datasets.load_dataset(
        loader, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    config_class, trainer_class = TRAINERS[name]
    config: Any = config_class(
        output_dir=str(tmp_path / "out"), max_steps=1, logging_steps=1,
        per_device_train_batch_size=2, report_to="none", use_cpu=True, bf16=False,
    )  # fmt: skip
    save_tiny(tmp_path / "model")  # a path: TRL loads the reference model from it
    trainer = trainer_class(
        model=str(tmp_path / "model"), args=config, train_dataset=rows, processing_class=TOKENIZER
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 1
    assert math.isfinite(losses[0])
