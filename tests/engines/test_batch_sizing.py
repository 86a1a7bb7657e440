"""Rows side by side, chosen by memory."""

from pathlib import Path

import psutil
import pytest
import torch
from test_transformers import TOKENIZER, draw, ending_model, ids

from topr.engines import batch_sizing, decoding, kv_cache
from topr.engines.batch_sizing import MOST, rows_that_fit
from topr.engines.transformers import TransformersEngine

CPU = torch.device("cpu")


@pytest.mark.parametrize(("free", "expected"), [(2000, 10), (150, 1), (10**9, MOST)])
def test_half_of_what_is_free_is_used(
    free: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batch_sizing._FREE, "cpu", lambda _: free)
    assert rows_that_fit(CPU, row_bytes=100) == expected


def test_a_container_has_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = psutil.virtual_memory().available
    monkeypatch.setattr(batch_sizing, "CGROUP", tmp_path)
    assert batch_sizing._free_cpu(CPU) == pytest.approx(machine, rel=0.2)
    (tmp_path / "memory.current").write_text("2900000\n")  # 1,900,000 of it files that were read
    (tmp_path / "memory.stat").write_text("anon 1000000\ninactive_file 1900000\n")
    for limit, free in (("max", machine), ("3000000", 2000000)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert batch_sizing._free_cpu(CPU) == pytest.approx(free, rel=0.2)


def test_memory_decides_how_many_rows_lie_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = ending_model(), []

    def noted(self, prefixes, places, size, run):  # type: ignore[no-untyped-def]
        sizes.append(size)
        return entered(self, prefixes, places, size, run)

    entered = kv_cache.SlotKVCache.enter
    expected = draw(model)
    monkeypatch.setattr(decoding.SlotKVCache, "enter", noted)
    opened = TransformersEngine(model, TOKENIZER, model_name="tiny", batch_size="auto")
    draw(model, opened=opened)  # the model is tried
    for free, most in ((10**9, 12), (160_000, 6)):
        sizes.clear()
        monkeypatch.setitem(batch_sizing._FREE, "cpu", lambda _, free=free: free)
        assert ids(draw(model, opened=opened)) == ids(expected)
        assert 1 < max(sizes) <= most, sizes
