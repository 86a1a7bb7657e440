"""Rows side by side, chosen by memory."""

from pathlib import Path

import psutil
import pytest
import torch
from test_transformers import TOKENIZER, draw, ending_model, ids

from topr.engines import columns, decoding, room
from topr.engines.room import MOST, rows_that_fit
from topr.engines.transformers import TransformersEngine

CPU = torch.device("cpu")


@pytest.mark.parametrize(("free", "expected"), [(2000, 10), (150, 1), (10**9, MOST)])
def test_half_of_what_is_free_is_used(
    free: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(room._FREE, "cpu", lambda _: free)
    assert rows_that_fit(CPU, row_bytes=100) == expected


def test_a_container_has_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = psutil.virtual_memory().available
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    assert room._free_cpu(CPU) == pytest.approx(machine, rel=0.2)
    for limit, free in (("max", machine), ("3000000", 2000000)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("1000000\n")
        assert room._free_cpu(CPU) == pytest.approx(free, rel=0.2)


def test_memory_decides_how_many_rows_lie_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = ending_model(), []

    def noted(self, prefixes, places, size, run):  # type: ignore[no-untyped-def]
        sizes.append(size)
        return entered(self, prefixes, places, size, run)

    entered = columns.Columns.enter
    expected = draw(model)
    monkeypatch.setattr(decoding.Columns, "enter", noted)
    opened = TransformersEngine(model, TOKENIZER, model_name="tiny", batch_size="auto")
    draw(model, opened=opened)  # the model is tried
    for free, most in ((10**9, 12), (160_000, 6)):
        sizes.clear()
        monkeypatch.setitem(room._FREE, "cpu", lambda _, free=free: free)
        assert ids(draw(model, opened=opened)) == ids(expected)
        assert 1 < max(sizes) <= most, sizes
