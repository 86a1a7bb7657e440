"""Names on the hub where a path could be, and what an upload asks of it. The hub is replaced here:
nothing of this was run against the real one.
"""

import fnmatch
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
from typer.testing import CliRunner

from tiny import save_tiny
from topr import hub
from topr.cli import app
from topr.cli.sources import hub_or_path
from topr.config import Gsm8kConfig, MathConfig, VerifierConfig, load_recipe
from topr.errors import ConfigError, DataError, ModelError
from topr.hub import HubName
from topr.stages.common import data_fingerprint
from topr.studies.sharing import draws_fingerprint
from topr.tasks import Split, load_task
from topr.tasks.sources import read_file_or_hub
from topr.verifier.task import VerifierTask


class FakeHub:
    """A folder for each repository; records every call."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[Any, ...]] = []
        self.card_there = False

    def put(self, repo: str, **files: str) -> None:
        for name, text in files.items():
            path = self.root / repo / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def list_repo_files(self, repo: str, *, repo_type: str, revision: str | None) -> list[str]:
        assert repo_type == "dataset"
        self.calls.append(("list", repo, revision))
        folder = self.root / repo
        if not folder.is_dir():
            raise huggingface_hub.errors.RepositoryNotFoundError(
                "404", response=SimpleNamespace(headers={}, request=None)
            )
        return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]

    def snapshot_download(
        self, repo: str, *, repo_type: str, revision: str | None, allow_patterns: list[str]
    ) -> str:
        assert repo_type == "dataset"
        wanted = [
            name
            for name in self.list_repo_files(repo, repo_type="dataset", revision=revision)
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
        ]
        self.calls.append(("download", repo, revision, tuple(sorted(wanted))))
        folder = f"datasets--{repo.replace('/', '--')}"
        copy = self.root / "cache" / folder / "snapshots" / (revision or "c0ffee")
        for name in wanted:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((self.root / repo / name).read_bytes())
        return str(copy)

    def create_repo(self, repo: str, **more: Any) -> None:
        self.calls.append(("create_repo", repo, more))

    def create_branch(self, repo: str, **more: Any) -> None:
        self.calls.append(("create_branch", repo, more))

    def file_exists(self, repo: str, name: str, **at: Any) -> bool:
        return self.card_there and name == "README.md"

    def create_commit(self, repo: str, operations: list[Any], **more: Any) -> Any:
        files = {}
        for operation in operations:
            given = operation.path_or_fileobj
            content = given if isinstance(given, bytes) else Path(given).read_bytes()
            files[operation.path_in_repo] = content
        self.calls.append(("create_commit", repo, files, more))
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return fake


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", HubName(repo="owner/name", file="", revision=None)),
        ("hf://datasets/owner/name", HubName(repo="owner/name", file="", revision=None)),
        ("hf://datasets/o/n@v1.2", HubName(repo="o/n", file="", revision="v1.2")),
        ("hf://datasets/o/n/data/a.jsonl", HubName(repo="o/n", file="data/a.jsonl", revision=None)),
        (
            "hf://datasets/o/n/a.parquet@refs/convert/parquet",
            HubName(repo="o/n", file="a.parquet", revision="refs/convert/parquet"),
        ),
        *((path, None) for path in ("a.jsonl", "a/b.jsonl", "./a", "/a/b", "~/a", "a/b/c", "a")),
    ],
)
def test_names(name: str, expected: HubName | None) -> None:
    assert hub.parse(name) == expected


@pytest.mark.parametrize("name", ["hf://owner/name", "hf://datasets/name", "hf://datasets/o//n"])
def test_names_that_say_nothing_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="names no data set on the hub: write hf://datasets/own"):
        hub.parse(name)


def test_a_file_of_a_data_set_is_downloaded_at_its_revision(fake: FakeHub) -> None:
    fake.put("o/n", data__a_dot_jsonl='{"a": 1}\n', data__b_dot_jsonl='{"a": 2}\n')
    path = hub_or_path("hf://datasets/o/n/data/b.jsonl@v1")
    assert json.loads(path.read_text()) == {"a": 2}
    assert fake.calls[-1] == ("download", "o/n", "v1", ("data/b.jsonl",))
    folder = hub.local("hf://datasets/o/n/data")
    assert sorted(p.name for p in folder.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_rollouts_and_single_files_need_no_more_than_the_name(fake: FakeHub) -> None:
    fake.put("o/rollouts", README_dot_md="-", manifest_dot_json="{}")
    for number in range(2):
        fake.put("o/rollouts", **{f"part-0000{number}_dot_parquet": "-"})
    assert {p.name for p in hub.local("o/rollouts").iterdir()} == {
        "part-00000.parquet", "part-00001.parquet", "manifest.json",
    }  # fmt: skip
    fake.put("o/single", README_dot_md="-", data__all_dot_jsonl="-")
    assert hub.local("o/single").name == "all.jsonl"
    fake.put("o/many", train_dot_jsonl="-", test_dot_jsonl="-")
    with pytest.raises(
        DataError, match=r"2 files of rows \(test.jsonl, train.jsonl\), expected on"
    ):
        hub.local("o/many")


def test_what_is_here_is_never_looked_for_there(fake: FakeHub) -> None:
    Path("o").mkdir()
    Path("o/n").mkdir()
    assert hub.local("o/n") == Path("o/n")
    assert hub.local("runs/x/graded") == Path("runs/x/graded")
    assert fake.calls == []


def test_failures_say_that_nothing_is_here_either(fake: FakeHub) -> None:
    with pytest.raises(DataError, match=r"hub dataset o/n cannot be loaded: Repository.* Nothing"):
        hub.local("o/n")
    fake.put("o/n", a_dot_jsonl="-")
    with pytest.raises(DataError, match=r"hub dataset o/n has no b\.jsonl at v9"):
        hub.local("hf://datasets/o/n/b.jsonl@v9")


def test_a_task_takes_the_same_names(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.put("o/n", a_dot_jsonl='{"prompt": "1+1?", "answer": "2"}\n')
    source = read_file_or_hub("hf://datasets/o/n/a.jsonl@v1", "train", key="train_file")
    assert source.rows == [{"prompt": "1+1?", "answer": "2"}]
    asked = []

    def load_dataset(*names: Any, **more: Any) -> datasets.Dataset:
        asked.append((*names, more))
        return datasets.Dataset.from_list([{"a": 1}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    read_file_or_hub("hf://datasets/o/n@v1", "train", key="train_file")
    assert asked == [("o/n", None, {"split": "train", "revision": "v1"})]


def test_an_import_takes_a_split_of_any_name(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(*names: Any, **more: Any) -> datasets.Dataset:
        asked.append((*names, more))
        return datasets.Dataset.from_list([{"problem": "1+1?", "generations": ["2", "3"]}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    save_tiny(Path("model"))
    into = ["-o", "in", "--tokenizer", "model"]
    command = ["import", "o/n", "--subset", "extended", "--split", "held_out", *into]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "2 rollouts in in" in done.output
    assert asked == [("o/n", "extended", {"split": "held_out"})]
    Path("rows.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"of hub datasets, and rows.jsonl is a file"):
        CliRunner().invoke(
            app, ["import", "rows.jsonl", "--split", "x", *into], catch_exceptions=False
        )


def test_every_task_that_reads_problems_takes_them(fake: FakeHub) -> None:
    for split, n in (("train", 1), ("test", 2)):
        row = {"question": f"{n}+1?", "answer": f"#### {n + 1}"}
        fake.put("o/gsm8k", **{f"{split}_dot_jsonl": json.dumps(row)})
        row = {"problem": f"{n}+1?", "solution": f"It is \\boxed{{{n + 1}}}."}
        fake.put("o/math", **{f"{split}_dot_jsonl": json.dumps(row)})
    for config in (Gsm8kConfig(name="gsm8k"), MathConfig(name="math")):
        files = {f"{s}_file": f"hf://datasets/o/{config.name}/{s}.jsonl" for s in ("train", "test")}
        task = load_task(
            config.model_copy(update={**files, "prompt": "plain", "validation_problems": 0})
        )
        assert [problem.answer for problem in task.problems(Split.TRAIN)] == ["2"]
        assert [problem.answer for problem in task.problems(Split.TEST)] == ["3"]


def test_a_verifiers_candidates_may_be_there(fake: FakeHub) -> None:
    rows = [
        {"question": f"{q}?", "solution": s, "is_correct": s == "2"} for q in "ab" for s in "123"
    ]
    fake.put("o/learn", a_dot_jsonl="".join(json.dumps(row) + "\n" for row in rows))
    fake.put("o/report", a_dot_jsonl=json.dumps(rows[0] | {"question": "c?"}) + "\n")
    values = {"name": "verifier", "rollouts": "o/learn", "test_rollouts": "o/report"}
    values["prompt"] = "plain"
    recipe = load_recipe("verifier-arithmetic").model_copy(
        update={"task": VerifierConfig(**values)}
    )
    task = load_task(recipe.task)
    assert len(task.problems(Split.TRAIN)) == 4
    assert len(task.problems(Split.TEST)) == 1
    assert isinstance(task, VerifierTask)
    assert task.test_rollouts is not None
    assert task.test_rollouts.name == "a.jsonl"
    assert data_fingerprint(task.test_rollouts) == [["datasets--o--report", "c0ffee", "a.jsonl"]]
    before = draws_fingerprint(recipe)
    shutil.rmtree(fake.root / "cache")
    assert draws_fingerprint(recipe) == before  # whenever it was downloaded


def test_what_is_scored_may_be_there(fake: FakeHub) -> None:
    rows = [
        {"problem_id": p, "prompt": p, "completion": f"It is {s}.", "answer": str(s), "score": 0.5,
         "grade": "correct" if s == 2 else "wrong", "sample": s, "completion_ids": [1],
         "finish_reason": "stop", "reward": 1.0 if s == 2 else -1.0,
         "sampling": {"temperature": 1.0}}
        for p in "ab" for s in range(3)
    ]  # fmt: skip
    fake.put("o/n", a_dot_jsonl="".join(json.dumps(row) + "\n" for row in rows))
    for command in (["eval", "o/n", "-o", "scored"], ["vote", "o/n", "--score", "score"]):
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert "33.3%" in CliRunner().invoke(app, ["eval", "o/n", "-o", "again"]).output


def test_an_upload_is_one_commit_of_just_these_files(fake: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    options: dict[str, Any] = {"private": True, "revision": "v1", "replace_card": False}
    done = hub.upload("o/n", "model", {"model.safetensors": tmp_path / "w"}, "# Card é",
                      message="Upload", **options)  # fmt: skip
    assert fake.calls == [
        ("create_repo", "o/n", {"repo_type": "model", "private": True, "exist_ok": True}),
        ("create_branch", "o/n", {"branch": "v1", "repo_type": "model", "exist_ok": True}),
        (
            "create_commit",
            "o/n",
            {"model.safetensors": b"weights", "README.md": "# Card é".encode()},
            {"commit_message": "Upload", "repo_type": "model", "revision": "v1"},
        ),
    ]
    assert done == hub.Uploaded(url="https://hub/o/n/commit/1", kept_card=False)


@pytest.mark.parametrize("replace", [False, True])
def test_a_card_that_is_there_stays(fake: FakeHub, replace: bool) -> None:
    fake.card_there = True
    done = hub.upload("o/n", "dataset", {}, "# Mine", private=False, revision=None,
                      replace_card=replace, message="Upload")  # fmt: skip
    assert done.kept_card is not replace
    assert ("README.md" in fake.calls[-1][2]) is replace
    assert fake.calls[0][2]["private"] is None  # the owner's own default


def test_a_refusal_of_the_hub_is_the_users_error(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: Any, **more: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(fake, "create_repo", refuse)
    options: dict[str, Any] = {"private": False, "revision": None, "replace_card": False}
    for kind, error in (("model", ModelError), ("dataset", DataError)):
        with pytest.raises(error, match=r"the hub did not take o/n: OSError: no route .*HF_TOKEN"):
            hub.upload("o/n", kind, {}, "", message="Upload", **options)
    with pytest.raises(ConfigError, match="'name' is not a name on the hub: write owner/name"):
        hub.upload("name", "model", {}, "", message="Upload", **options)
