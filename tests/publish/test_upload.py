"""Cards and what goes with them: chosen files alone, strangers' text escaped. The hub is replaced:
nothing of this was run against the real one.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from test_hub import FakeHub
from tiny_rollouts import tiny_grade, tiny_rollout
from topr.cli import app
from topr.errors import DataError
from topr.publish.cards import CITATION, ModelFacts, fenced, inline, model_card
from topr.publish.upload import pack
from topr.records import Rollout
from topr.store import (
    Manifest,
    rollouts_to_table,
    write_json_atomic,
    write_manifest,
    write_shard,
)

HOSTILE = "</script><img src=x onerror=alert(1)> | [x](http://evil) `a`\n# no \u202egnp"
SECRETS = ("training_args.bin", "optimizer.pt", "rng_state.pth", "model.pkl", ".env", "token",
           "log.jsonl", "events.out.tfevents.1", "pytorch_model.bin", "modeling.py")  # fmt: skip


def write_model(folder: Path, **details: Any) -> Path:
    """Files as `topr train` leaves them, and others that have no place on the hub."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "generation_config.json", *SECRETS):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "model.safetensors").write_bytes(b"old")
    made = {
        "model": "meta-llama/Meta-Llama-3-8B-Instruct", "revision": "abc", "objective": "topr",
        "steps": 207, "rows": 2200, "positive_share": 0.38, "baseline": 0.0, "made": "sha256:1",
    }  # fmt: skip
    write_json_atomic(folder / "topr.json", made | details)
    return folder


def write_rollouts(folder: Path, model: str = "base", graded: bool = True) -> Path:
    def one(sample: int) -> Rollout:
        grade = tiny_grade(1.0 if sample else -1.0) if graded else None
        return tiny_rollout(
            sample=sample, completion=HOSTILE, model=model, revision="r0", grade=grade
        )

    write_shard(folder, 0, rollouts_to_table([one(0), one(1)]))
    manifest = Manifest(stage="import", fingerprint="f", rows=2, files=("part-00000.parquet",),
                        details={"tokens": 2, "source": HOSTILE})  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def write_run(run: Path, kept: int = 1, base: str = "owner/base") -> Path:
    """The files of a run that a card is made of."""
    iteration = run / "iteration-01"
    write_rollouts(iteration / "rollouts", base)
    write_model(iteration / "model")
    details = {
        "revision": "r0", "made": "sha256:1", "datasets": ["../dataset"], "written_by": {"r0": 2},
        "objective": "topr", "steps": 3, "optimizer": "adafactor", "optimizer_state": "fresh",
        "learning_rate": 5e-7, "lr_scheduler_type": "constant", "positive_share": 0.5,
        "baseline": 0.0,
    }  # fmt: skip
    (iteration / "training").mkdir()
    write_manifest(
        iteration / "training",
        Manifest(stage="train", fingerprint="f", rows=2, files=(), details=details),
    )
    write_json_atomic(iteration / "evaluation.json", {"problems": 200, "split": "test"})
    (run / "recipe.yaml").write_text(
        f"description: '{'`' * 3} {base}'\ntrain: {{objective: topr}}\n"
    )
    models = [
        {"name": name, "iteration": number, "path": "p", "pass@1": share, "pass@1_ci": [0.2, 0.4],
         "maj@16": 0.5, "maj@16_ci": [0.4, 0.6], "invalid": 0.0}
        for name, number, share in (("base", 0, 0.25), ("topr", 1, 0.325))
    ]  # fmt: skip
    comparison = {"a": "topr", "b": "base", "metric": "pass@1", "difference": 0.075}
    summary = {
        "models": models,
        "kept": {"iteration": kept, "path": "elsewhere", "by": "last"},
        "comparisons": [comparison | {"ci": [-0.01, 0.15]}],
    }
    write_json_atomic(run / "summary.json", summary)
    return run


def metadata(card: str) -> dict[str, Any]:
    front = card.split("---\n")[1]
    return dict(yaml.safe_load(front))


def test_a_run_publishes_its_kept_model_and_nothing_that_could_run_or_leak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parcel = pack(write_run(tmp_path / "run"))
    assert parcel.kind == "model"
    assert sorted(parcel.files) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "topr.json",
    ]  # fmt: skip
    assert parcel.files["model.safetensors"].read_bytes() == b"weights"
    assert pack(tmp_path / "run" / "iteration-01").card == parcel.card
    assert pack(tmp_path / "run" / "iteration-01" / "model").card == parcel.card
    monkeypatch.chdir(tmp_path)
    assert pack(Path("run")).card == parcel.card


def test_a_models_card_has_base_lineage_results_recipe_and_citation(tmp_path: Path) -> None:
    card = pack(write_run(tmp_path / "run")).card
    assert metadata(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["topr", "reinforcement-learning", "arxiv:2503.14286"],
        "base_model": "owner/base",
    }
    assert "license" not in metadata(card)
    assert "## Licence\n\nNot said yet." in card
    assert "over problems on 200 problems of the split test" in card
    rows = [line for line in card.splitlines() if line.startswith("| topr")]
    assert rows == [
        "| topr **(this model)** | 1 | 32.5 (20.0 to 40.0) | 50.0 (40.0 to 60.0) | 0.0 |"
    ]
    assert "topr minus base, pass@1: +7.5 (-1.0 to +15.0; not beyond chance)" in card
    assert "3 steps of topr, adafactor" in card
    assert "````yaml\ndescription: '``` owner/base'" in card
    assert CITATION in card
    assert CITATION in (Path(__file__).parents[2] / "docs/paper-map.md").read_text(encoding="utf-8")


def test_a_training_alone_has_its_own_line_of_descent(tmp_path: Path) -> None:
    write_model(tmp_path / "out" / "model")
    card = pack(tmp_path / "out").card
    assert metadata(card)["base_model"] == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert "207 steps of topr, on 2200 completions; 38.0% positive" in card
    assert "lora" not in card
    assert "There is no evaluation of this model." in card


def test_a_training_alone_says_what_it_was_set_to(tmp_path: Path) -> None:
    settings = {
        "optimizer": "adamw_torch", "learning_rate": 1e-5, "lr_scheduler_type": "constant",
        "lora": {"r": 16, "alpha": 32.0, "target_modules": "all-linear", "quantize": None},
    }  # fmt: skip
    write_model(tmp_path / "out" / "model", **settings)
    card = pack(tmp_path / "out").card.replace("\\", "")
    for line in (
        "optimizer: adamw_torch",
        "learning_rate: 1e-05",
        "lr_scheduler_type: constant",
        "lora: r 16, alpha 32.0, target_modules all-linear, quantize None",
    ):
        assert f"\n  - {line}\n" in card


def test_rollouts_are_published_with_counts_and_no_text_of_theirs(tmp_path: Path) -> None:
    parcel = pack(write_rollouts(tmp_path / "graded"))
    assert (parcel.kind, sorted(parcel.files)) == (
        "dataset",
        ["manifest.json", "part-00000.parquet"],
    )
    assert "2 completions of 1 problems" in parcel.card
    assert "| base (r0) | 2 |" in parcel.card.replace("\\", "")
    assert "| correct | 1 |" in parcel.card
    assert metadata(parcel.card)["configs"][0]["data_files"] == "part-*.parquet"
    plain = pack(write_rollouts(tmp_path / "rollouts", graded=False)).card
    assert "| not graded | 2 |" in plain


def test_what_strangers_wrote_is_shown_and_does_nothing(tmp_path: Path) -> None:
    cards = [
        pack(write_run(tmp_path / "run", base=HOSTILE.replace("\n", " "))).card,
        pack(write_rollouts(tmp_path / "r", model=HOSTILE)).card,
        model_card(
            ModelFacts(
                base=HOSTILE, lineage=[[HOSTILE, HOSTILE]], measured_on=HOSTILE,
                results=[{"name": HOSTILE, "iteration": 1, "pass@1": 0.5}],
                comparisons=[
                    {"a": HOSTILE, "b": "b", "metric": "m", "difference": 0.0, "ci": [0, 0]}
                ],
            )
        ),
    ]  # fmt: skip
    for card in cards:
        shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(card)
        for tag in ("<img", "<script", "</script", '<a href="http://evil'):
            assert tag not in shown
        assert "\u202e" not in card
        assert "onerror=alert" in shown  # it is there, as text
    tables = [line.count("|") - line.count(r"\|") for line in cards[2].splitlines() if "|" in line]
    assert set(tables) <= {0, 4}  # no cell has become two
    assert inline("a\nb") == "a b"
    assert len(inline("x" * 10_000)) < 400


@pytest.mark.parametrize("text", ["```", "a ```` b", "``````"])
def test_no_text_ends_its_own_block(text: str) -> None:
    (token,) = MarkdownIt().parse(fenced(text, "yaml"))
    assert (token.type, token.content.strip()) == ("fence", text)


def test_a_base_that_was_a_directory_is_not_taken_for_a_name_on_the_hub() -> None:
    there = ModelFacts(base="models/tiny", base_is_local=True)
    assert "base_model" not in metadata(model_card(there))
    assert "Base model: models/tiny" in model_card(there)


def test_an_adapter_whose_base_lies_here_alone_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "out" / "model")
    (folder / "config.json").unlink()
    config = folder / "adapter_config.json"
    config.write_text('{"base_model_name_or_path": "owner/base"}')
    assert "adapter_config.json" in pack(folder).files
    config.write_text('{"base_model_name_or_path": "/home/me/base"}')
    with pytest.raises(DataError, match="names the base of the adapter by its path here, /home/me"):
        pack(folder)


def test_what_cannot_be_published_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for directory in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(DataError, match="holds nothing to publish: give a finished run"):
            pack(directory)
    with pytest.raises(DataError, match="kept the model that it started from"):
        pack(write_run(tmp_path / "run", kept=0))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    return fake


def call(*arguments: object) -> SimpleNamespace:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return SimpleNamespace(out=done.output, code=done.exit_code)


def test_push_uploads_exactly_what_a_dry_run_says(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run = write_run(tmp_path / "run")
    said = call("push", run, "owner/name", "--dry-run")
    assert said.code == 0
    assert fake.calls == []
    said = call("push", run, "owner/name", "--private", "--revision", "v1")
    (_, repo, made), (_, _, branch), (_, _, files, more) = fake.calls
    assert (repo, made["repo_type"], made["private"]) == ("owner/name", "model", True)
    assert branch["branch"] == more["revision"] == "v1"
    parcel = pack(run)
    expected = {name: path.read_bytes() for name, path in parcel.files.items()}
    assert files == expected | {"README.md": parcel.card.encode()}
    assert "hf_secret" not in repr(fake.calls) + said.out
    assert said.out.splitlines()[-1] == "model: https://hub/owner/name/commit/1"


def test_a_card_of_ones_own_is_what_goes_up(fake: FakeHub, tmp_path: Path) -> None:
    folder = write_rollouts(tmp_path / "graded")
    said = call("card", folder)
    assert said.out.replace("\n", "").endswith("README.md")
    card = folder / "README.md"
    card.write_text(card.read_text().replace("---\n", "---\nlicense: mit\n", 1))
    call("push", folder, "owner/name")
    assert metadata(fake.calls[-1][2]["README.md"].decode())["license"] == "mit"
    assert fake.calls[0][2]["repo_type"] == "dataset"
    with pytest.raises(Exception, match="is not overwritten"):
        call("card", folder)
