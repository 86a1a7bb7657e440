"""Where rows come from: files, the hub (replaced here), and messages that name what is wrong."""

import gzip
import json

import datasets
import pytest

from topr.errors import DataError
from topr.tasks.sources import SourceRow, read_file, read_file_or_hub, read_hub, read_hub_subsets

ROWS = [{"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?", "answer": "4"}]


@pytest.fixture
def hub(monkeypatch):
    """Replaces the hub by datasets made here; records what was asked for."""
    asked = []

    def load_dataset(path, name=None, *, split):
        asked.append((path, name, split))
        if path.endswith("missing"):
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset {path!r} doesn't exist")
        if split not in ("train", "test"):
            raise ValueError(f"Unknown split {split!r}. Should be one of ['train']")
        if name not in (None, "main", "a", "b"):
            raise ValueError(f"BuilderConfig {name!r} not found")
        rows = [{**row, "subset": name or "-"} for row in ROWS]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    configurations = {"org/maths": ["b", "a"], "org/several": ["y", "x"]}

    def names(path):
        if path.endswith("missing"):
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset {path!r} doesn't exist")
        return configurations.get(path, ["default"])

    monkeypatch.setattr(datasets, "get_dataset_config_names", names)
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda path, name=None: ["train", "test"]
    )
    return asked


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".parquet"])
def test_files_of_each_kind_give_the_same_rows(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    match suffix:
        case ".jsonl":
            path.write_text(lines)
        case ".json":
            path.write_text(json.dumps(ROWS))
        case ".jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case ".parquet":
            datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    assert list(read_file(str(path)).rows) == ROWS


def test_a_hub_dataset_gives_its_rows_and_is_named_with_its_split(hub):
    source = read_hub("openai/gsm8k", "main", "train", instead="train_file")
    assert [row["question"] for row in source.rows] == ["1 + 1?", "2 + 2?"]
    assert source.name == "hub dataset openai/gsm8k (main, train)"
    assert hub == [("openai/gsm8k", "main", "train")]


def test_all_configurations_are_read_in_the_order_of_their_names(hub):
    source = read_hub_subsets("org/maths", "train", instead="train_file")
    assert [row["subset"] for row in source.rows] == ["a", "a", "b", "b"]


def test_hub_failures_offer_a_local_file(hub):
    with pytest.raises(DataError, match=r"doesn't exist.*local JSONL or parquet.*task.train_file"):
        read_hub("org/missing", None, "train", instead="train_file")


def test_a_split_or_configuration_that_is_not_there_is_answered_with_those_that_are(hub):
    with pytest.raises(DataError, match=r"org/one has no split 'dev', but test, train: .*task.spl"):
        read_hub("org/one", None, "dev", instead="test_file")
    with pytest.raises(DataError, match=r"org/maths has no configuration 'c', but a, b: .*subset"):
        read_hub("org/maths", "c", "train", instead="test_file")
    with pytest.raises(DataError, match=r"org/several has several configurations, x, y: name one"):
        read_hub("org/several", None, "dev", instead="test_file")


@pytest.mark.parametrize(
    "path", ["rows.jsonl", "./rows", "../rows", "/no/rows", "~/rows", "a/b/c", "org/rows.parquet"]
)
def test_what_looks_like_a_path_is_never_tried_as_a_hub_name(hub, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="there is no such file"):
        read_file_or_hub(path, "train", key="train_file")
    assert hub == []


def test_a_hub_name_works_where_a_path_does(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(read_file_or_hub("org/maths", "test", key="test_file").rows) == 2
    assert hub == [("org/maths", None, "test")]


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match="has no rows"):
        read_file(str(path))


def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "1 + 1?"}\n{"question": oops}\n')
    with pytest.raises(DataError, match=r"rows.jsonl, line 2"):
        read_file(str(path))


def test_a_bad_cell_is_named_by_source_row_and_columns():
    row = row_of(question=7, answer=None)
    with pytest.raises(DataError, match=r"f.jsonl, row 3: column 'question' holds 7 \(int\)"):
        row.text("question", "Do this.")
    with pytest.raises(DataError, match=r"row 3: column 'answer' is empty"):
        row.text("answer", "Do this.")
    with pytest.raises(DataError, match=r"'id' is not there.*question, answer.*Do this\."):
        row.identifier("id", "Do this.")
    with pytest.raises(DataError, match=r"holds True \(bool\), expected a name"):
        row_of(id=True).identifier("id", "")
    assert row_of(id=0).identifier("id", "") == "0"


def row_of(**cells):
    return SourceRow(source="f.jsonl", index=2, cells=cells)
