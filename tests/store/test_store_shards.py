"""Shards, manifests and atomic files: whole or not there, also after a kill; others read them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tiny_rollouts import tiny_grade, tiny_rollout
from topr.errors import DataError, RunDirectoryError
from topr.interop import read_rows
from topr.records import Rollout, SamplingParams
from topr.store import (
    ROLLOUT_SCHEMA,
    Manifest,
    atomic_path,
    read_manifest,
    read_table,
    rollouts_to_table,
    shard_paths,
    stream_tables,
    table_to_rollouts,
    write_json_atomic,
    write_manifest,
    write_shard,
    write_text_atomic,
)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def rollout(sample: int) -> Rollout:
    return tiny_rollout(
        sample=sample,
        prompt="2 + 3 =\u2028",
        completion=" 5",
        completion_ids=(9, 2),
        logprobs=(-0.5, -0.25) if sample % 2 else None,
        sampling=SamplingParams(stop=("\n",)),
        gold="5",
        grade=tiny_grade(1.0, "5") if sample % 2 else None,
    )


ROLLOUTS = [rollout(sample) for sample in range(6)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "rollouts"
    for index in (1, 0, 2):
        write_shard(folder, index, rollouts_to_table(ROLLOUTS[2 * index : 2 * index + 2]))
    return folder


def test_shards_are_read_in_order_of_their_number(directory: Path) -> None:
    names = [path.name for path in shard_paths(directory)]
    assert names == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert names_in(directory) == names
    assert list(table_to_rollouts(read_table(directory))) == ROLLOUTS
    assert list(table_to_rollouts(read_table(directory / names[1]))) == ROLLOUTS[2:4]
    assert read_rows(directory).equals(read_table(directory))


def test_some_columns(directory: Path) -> None:
    table = read_table(directory, ["reward", "sample"])
    assert table.column_names == ["reward", "sample"]
    assert table.column("sample").to_pylist() == list(range(6))
    with pytest.raises(DataError, match=r"no column rewards: it has problem_id"):
        read_table(directory, ["rewards"])


def test_columns_beside_the_schema_are_kept(tmp_path: Path) -> None:
    table = rollouts_to_table(ROLLOUTS).append_column("tokens", pa.array([["a", "b"]] * 6))
    write_shard(tmp_path, 0, table)
    assert read_table(tmp_path).column_names == [*ROLLOUT_SCHEMA.names, "tokens"]
    assert list(table_to_rollouts(read_table(tmp_path))) == ROLLOUTS


def test_a_file_from_before_the_question_is_read_with_nulls(tmp_path: Path) -> None:
    table = rollouts_to_table(ROLLOUTS)
    pq.write_table(table.drop_columns(["question"]), tmp_path / "part-00000.parquet")
    assert read_table(tmp_path).column("question").null_count == 6
    streamed = list(stream_tables(shard_paths(tmp_path), ["sample", "question"]))
    assert sum(len(each) for each in streamed) == 6


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    write_shard(tmp_path / "seed=1", 0, rollouts_to_table(ROLLOUTS))
    assert read_table(tmp_path / "seed=1").column_names == ROLLOUT_SCHEMA.names


def test_a_shard_is_never_overwritten(directory: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"part-00001.parquet exists already"):
        write_shard(directory, 1, rollouts_to_table(ROLLOUTS))
    assert list(table_to_rollouts(read_table(directory))) == ROLLOUTS


def test_unreadable_sources_say_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no part-\*.parquet"):
        read_table(tmp_path)
    with pytest.raises(DataError, match="is not there"):
        read_table(tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_table(tmp_path / "broken.parquet")
    newer = pa.table({"new": [1]}).replace_schema_metadata({b"topr.schema": b"7"})
    pq.write_table(newer, tmp_path / "newer.parquet")
    for read in (read_table, read_rows):
        with pytest.raises(DataError, match=r"version 7, .* up to version 2"):
            read(tmp_path / "newer.parquet")


KILLED = """
import os, signal, sys
from pathlib import Path
from topr.store import atomic_path
with atomic_path(Path(sys.argv[1]) / "part-00003.parquet", overwrite=False) as temporary:
    temporary.write_bytes(b"half of a shard")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_ignored_then_replaced(directory: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(directory)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names_in(directory)) == 4  # the half shard is really there
    assert len(shard_paths(directory)) == 3
    assert list(table_to_rollouts(read_table(directory))) == ROLLOUTS
    write_shard(directory, 3, rollouts_to_table([]))
    assert names_in(directory) == [path.name for path in shard_paths(directory)]
    assert len(shard_paths(directory)) == 4


def test_a_manifest_ends_a_stage_and_clears_leftovers(directory: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(directory)], check=False)
    assert read_manifest(directory) is None
    manifest = Manifest(
        stage="generate",
        fingerprint="5f3a",
        rows=6,
        files=tuple(path.name for path in shard_paths(directory)),
        details={"seconds": 1.5, "model": "é"},
    )
    write_manifest(directory, manifest)
    assert read_manifest(directory) == manifest
    assert set(names_in(directory)) == {"manifest.json", *manifest.files}
    assert json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["schema"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"stage": "gen', "is not JSON"),
        ("[]", "is not a manifest: it holds list"),
        ('{"stage": "x"}', "holds the keys stage, expected the keys stage, fingerprint"),
    ],
)
def test_a_broken_manifest_is_an_error_not_an_unfinished_stage(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_of_a_newer_topr_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(stage="x", fingerprint="f", rows=0, files=()))
    values = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    write_json_atomic(tmp_path / "manifest.json", values | {"schema": 2})
    with pytest.raises(RunDirectoryError, match=r"schema 2, this topr knows schema 1"):
        read_manifest(tmp_path)


def test_an_atomic_file_keeps_the_old_text_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.json"
    write_text_atomic(path, "old é\r\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(path, {"pass@1": float("nan")})

    def fail_midway() -> None:
        with atomic_path(path, overwrite=True) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_midway()
    assert path.read_bytes() == "old é\r\n".encode()
    assert names_in(path.parent) == ["summary.json"]
    write_json_atomic(path, {"pass@1": 0.5})
    assert json.loads(path.read_bytes()) == {"pass@1": 0.5}


def test_duckdb_reads_shards_and_we_read_what_it_writes(directory: Path, tmp_path: Path) -> None:
    with duckdb.connect() as db:
        source = f"'{directory}/*.parquet'"
        found = db.sql(
            f"select count(*), avg(reward), list_sum(max(logprobs)), any_value(sampling.stop[1]) "  # noqa: S608
            f"from {source} where grade = 'correct'"
        ).fetchall()
        assert found == [(3, 1.0, -0.75, "\n")]
        db.sql(f"copy (from {source} order by sample) to '{tmp_path}/duck.parquet'")
    assert list(table_to_rollouts(read_table(tmp_path / "duck.parquet"))) == ROLLOUTS


def test_datasets_reads_shards_and_we_read_what_it_writes(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    loaded = datasets.load_dataset(
        "parquet",
        data_files=[str(path) for path in shard_paths(directory)],
        split="train",
        cache_dir=str(tmp_path / "hf"),
    )
    assert loaded["completion_ids"][:] == [[9, 2]] * 6
    assert loaded[1]["logprobs"] == [-0.5, -0.25]
    assert loaded[0]["logprobs"] is None
    loaded.to_parquet(tmp_path / "written.parquet")
    assert list(table_to_rollouts(read_table(tmp_path / "written.parquet"))) == ROLLOUTS


def test_log_probabilities_are_stored_byte_by_byte(directory: Path) -> None:
    (path, *_) = sorted(directory.glob("*.parquet"))
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert "BYTE_STREAM_SPLIT" in columns["logprobs.list.element"].encodings
    assert "RLE_DICTIONARY" in columns["prompt"].encodings
    assert "RLE_DICTIONARY" not in columns["completion_ids.list.element"].encodings
