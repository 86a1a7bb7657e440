"""RowStream of any file: every format says the same, and a broken file says where it is broken."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from topr.errors import DataError, RunDirectoryError
from topr.interop import read_rows, write_rows

HOSTILE = 'a "b",\r\nc\u2028d\0 <script> \\boxed{é🙂} \ufeff'
ROWS = [
    {"id": 1, "completion": HOSTILE, "ids": [1, 2], "reward": 1.0, "ok": True},
    {"id": 2, "completion": "", "ids": [], "reward": None, "ok": False},
    {"id": 3, "completion": None, "ids": None, "reward": -0.5, "ok": None},
]
TABLE = pa.Table.from_pylist(ROWS)


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet", "A.JSONL"]
)
def test_typed_formats_give_back_what_was_written(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, TABLE)
    assert read_rows(tmp_path / name).equals(TABLE)
    write_rows(tmp_path / f"empty-{name}", TABLE.slice(0, 0))
    assert read_rows(tmp_path / f"empty-{name}").num_rows == 0


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_gives_everything_back_as_text(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, TABLE)
    assert read_rows(tmp_path / name).to_pylist() == [
        {"id": "1", "completion": HOSTILE, "ids": "[1, 2]", "reward": "1.0", "ok": "True"},
        {"id": "2", "completion": "", "ids": "[]", "reward": "", "ok": "False"},
        {"id": "3", "completion": "", "ids": "", "reward": "-0.5", "ok": ""},
    ]


def test_gzipped_files_are_really_gzipped_and_reproducible(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_rows(tmp_path / name, TABLE)
    lines = gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == ROWS
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "mine")
    with pytest.raises(RunDirectoryError, match="exists already"):
        write_rows(path, TABLE)
    assert path.read_text(encoding="utf-8") == "mine"


def test_nan_and_infinity_become_null_in_json(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", pa.table({"x": [[1.5, float("nan")], [float("-inf"), 0.0]]}))
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines == ['{"x": [1.5, null]}', '{"x": [null, 0.0]}']


def test_differing_keys_give_the_union_of_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"b": "x", "a": 2}\r\n{"b": "y"}')
    assert read_rows(path).to_pydict() == {"a": [1, 2, None], "b": [None, "x", "y"]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([18, 2.5], [18.0, 2.5]),
        ([18, "x + 1", None], ["18", "x + 1", None]),
        ([18, 2.5, "x"], ["18", "2.5", "x"]),  # not 18.0
        ([True, 1], ["true", "1"]),
        ([[1], "a"], ["[1]", "a"]),
        ([{"a": 1}, {"a": "x"}], ['{"a": 1}', '{"a": "x"}']),
        ([2**70, 1], [str(2**70), "1"]),
        ([{}, {}], ["{}", "{}"]),
        (["half \ud83d"], ["half \ufffd"]),
    ],
)
def test_a_column_of_no_common_type_becomes_text(
    tmp_path: Path, values: list[object], expected: list[object]
) -> None:
    lines = "\n".join(json.dumps({"gold": value}) for value in values)
    table = read_rows(write(tmp_path / "a.jsonl", lines))
    assert table.column("gold").to_pylist() == expected
    write_rows(tmp_path / "a.parquet", table)
    assert read_rows(tmp_path / "a.parquet").equals(table)


@pytest.mark.parametrize("text", ['\ufeff [{"a": 1},\n {"a": 2}]', '{"a": 1}\n{"a": 2}'])
def test_a_json_file_may_hold_a_list_or_lines(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.json", text)
    assert read_rows(str(path)).to_pylist() == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": }\n', r"a.jsonl, line 2: not JSON \(Expecting value"),
        ("a.jsonl", '{"a": 1}\n{"a": \n{"a": 3}\n', "line 2: not JSON"),
        ("a.jsonl", '{"a": 1}\n\n[1]\n', "line 3: found list, expected a JSON object"),
        ("a.jsonl", '{"a": ' + "[" * 100_000, "line 1: cannot be read as JSON"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "line 1: cannot be read as JSON"),
        ("a.json", '[{"a": 1},\n\n {"a" 2}]', "line 3: not JSON"),
        ("a.json", '[{"a": 1}, 2]', "item 2: found int, expected a JSON object"),
        ("a.csv", "a,b\n1,2\n\n3\n", r"line 4: found 1 cells, expected 2 \(a, b\)"),
        ("a.csv", 'a,b\n1,"2', "line 2: not CSV"),
        ("a.csv", "a,a\n1,2\n", "line 1: expected distinct column names"),
        ("a.txt", "x", r"expected a name that ends in .jsonl, .json, .csv, .parquet"),
        ("a.parquet.gz", "x", "all but .parquet may be gzipped"),
        ("a.parquet", "x", "cannot be read as parquet"),
    ],
)
def test_a_broken_file_says_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path / name, text))


def test_broken_bytes_say_where(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_rows(tmp_path / "a.jsonl")
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    (tmp_path / "b.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(DataError, match="broken gzip after line"):
        read_rows(tmp_path / "b.jsonl.gz")
    (tmp_path / "c.jsonl.gz").write_bytes(b'{"a": 1}\n')
    with pytest.raises(DataError, match="broken gzip after line 0"):
        read_rows(tmp_path / "c.jsonl.gz")
    for missing in ("none.jsonl", "a-directory"):
        with pytest.raises(DataError, match=f"{missing} is not there"):
            read_rows(tmp_path / missing)


def test_categories_in_parquet_become_values(tmp_path: Path) -> None:
    words = pa.array(["stop", "length", None]).dictionary_encode()
    pq.write_table(pa.table({"why": words}), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet").column("why").type == pa.string()


def test_real_questions_make_the_round_trip(shared_data: Path, tmp_path: Path) -> None:
    table = read_rows(shared_data / "math_test.jsonl.gz")
    assert table.num_rows == 5000
    for name in ("a.jsonl.gz", "a.parquet", "a.json"):
        write_rows(tmp_path / name, table)
        assert read_rows(tmp_path / name).equals(table)
