"""A study of two arms on a tiny base model, from the command line's function to its files."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from topr.config.study import Claim, Study
from topr.errors import ConfigError, DataError, DivergedError, RunDirectoryError
from topr.progress import Silent
from topr.studies import Results, add_objectives, read_results, run_study
from topr.studies import run as study_run
from topr.studies.cells import Job, work
from topr.studies.page import claim_lines, markdown, short, write_page

STUDY = Study.model_validate(
    {
        "name": "tiny",
        "description": "two objectives & <one> task",
        "recipe": {
            "task": {
                "name": "arithmetic", "train_problems": 4, "validation_problems": 3,
                "test_problems": 3,
                "warmup": {"steps": 3, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16},
            },
            "generate": {"n": 4, "max_tokens": 12},
            "grade": {"workers": 1, "none_right": "warn"},
            "evaluate": {"n": 4, "bootstrap": 100},
            "train": {
                "baseline": -0.3, "max_steps": 4, "batch_size": 8, "snapshots": [2],
                "optim": "adamw_torch",
            },
        },
        "arms": {
            "topr": {"label": "TOPR"},
            "tis": {"label": "TIS", "rate": "topr", "changes": {"train": {"objective": "tis"}}},
            "wide": {
                "label": "wide base", "train": False,
                "changes": {"task": {"warmup": {"hidden_size": 32}}},
            },
        },
        "claims": [
            {"says": "TOPR is above TIS", "arm": "topr", "than": "tis"},
            {"says": "also by vote", "arm": "topr", "than": "tis", "metric": "maj@16"},  # of 4
        ],
        "seeds": [0, 1],
        "rates": [1e-3, 1e-2],
        "tuning_seed": 2,
    }
)  # fmt: skip


OWN_OBJECTIVE = """
from dataclasses import dataclass

import torch

from topr.objectives import Uses


@dataclass(frozen=True)
class Halved:
    needs_group = None
    uses = Uses(ratio=False)
    normalization = "length"

    def weights(self, batch):
        return torch.where(batch.mask, 0.5 * batch.advantage[:, None], 0.0)
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPR_CACHE", str(folder / "cache"))
        return folder / "out", run_study(STUDY, folder / "out", jobs=1, progress=Silent())


def test_every_arm_has_a_cell_per_seed(done: tuple[Path, Results]) -> None:
    _, results = done
    cells = {(cell.arm, cell.seed) for cell in results.cells}
    assert cells == {(arm, seed) for arm in ("base", "topr", "tis", "wide") for seed in (0, 1)}
    for cell in results.of("topr") + results.of("tis"):
        assert [point.step for point in cell.points] == [2, None]
        assert cell.final.tokens > 0
        assert cell.log["step"] == (1.0, 2.0, 3.0, 4.0)


def test_the_rate_is_swept_once_and_passed_on(done: tuple[Path, Results]) -> None:
    _, results = done
    (swept,) = results.sweep.values()
    assert {"0.001", "0.01"} < set(swept.pass_at_1)  # two rates: the best is always at an end
    best = max(swept.pass_at_1.values())
    assert best - swept.pass_at_1[f"{swept.chosen:g}"] <= max(swept.standard_error.values())
    rates = {cell.rate for cell in results.cells if cell.arm in ("topr", "tis")}
    assert rates == {swept.chosen}


@pytest.mark.parametrize(
    ("scores", "tried_next"),
    [
        ({1e-4: 0.1, 3e-4: 0.3, 9e-4: 0.2}, None),
        ({3e-5: 0.3, 1e-4: 0.2, 3e-4: 0.1}, 9e-6),
        ({3e-5: 0.1, 1e-4: 0.2, 3e-4: 0.3}, 9e-4),
        ({1e-4: 0.3}, None),
        ({1e-4: 0.3, 1.001e-4: 0.4}, None),  # further on there is nothing new
    ],
)
def test_a_best_rate_at_an_end_is_looked_beyond(
    scores: dict[float, float], tried_next: float | None
) -> None:
    assert study_run.beyond(scores) == tried_next


def test_of_rates_that_cannot_be_told_apart_the_lowest_is_chosen() -> None:
    found = {1e-4: (0.453, 0.013), 3e-4: (0.454, 0.013), 1e-3: (0.30, 0.01)}
    assert study_run.chosen(found) == 1e-4
    assert study_run.chosen(found | {3e-5: (0.43, 0.013)}) == 1e-4


def test_arms_share_base_and_rollouts(done: tuple[Path, Results]) -> None:
    folder, results = done
    draws = list((folder / "seed-0").glob("draws-*/iteration-01/rollouts/manifest.json"))
    assert len(draws) == 1  # none for the arm that is not trained, whose base is another one
    assert len(list((folder / "seed-0").glob("draws-*/iteration-00/evaluation.json"))) == 2
    made = draws[0].parent / "part-00000.parquet"  # every cell has the same file, not a copy
    cells = list((folder / "seed-0").glob("t*/iteration-01/rollouts/part-00000.parquet"))
    assert len(cells) == 2
    assert all(cell.samefile(made) for cell in cells)
    assert not list((folder / "seed-0").glob("t*/report.html"))
    tokens = {cell.final.tokens for cell in results.cells if cell.seed == 0 and cell.rate}
    assert len(tokens) == 1


def test_a_lost_cell_is_computed_again_and_nothing_else(
    done: tuple[Path, Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = done
    monkeypatch.setenv("TOPR_CACHE", str(folder.parent / "cache"))
    (cell,) = (folder / "seed-1").glob("tis-*/cell.json")
    cell.unlink()
    worked: list[str] = []

    def counted(job: Job) -> None:
        worked.append(job.title)
        work(job)

    monkeypatch.setattr(study_run, "work", counted)
    after = run_study(STUDY, folder, jobs=1, progress=Silent())
    assert len(worked) == 1
    assert after.cells == before.cells


def test_another_study_is_refused_there(done: tuple[Path, Results]) -> None:
    other = STUDY.model_copy(update={"rates": (1e-4,)})
    with pytest.raises(RunDirectoryError, match="differs in rates"):
        run_study(other, done[0], jobs=1, progress=Silent())


def test_a_seed_can_be_added_or_left_out(done: tuple[Path, Results]) -> None:
    folder, before = done
    fewer = run_study(STUDY.model_copy(update={"seeds": (1,)}), folder, jobs=1, progress=Silent())
    assert fewer.cells == tuple(cell for cell in before.cells if cell.seed == 1)
    assert run_study(STUDY, folder, jobs=1, progress=Silent()).cells == before.cells


def test_a_cell_of_other_settings_is_refused(done: tuple[Path, Results]) -> None:
    folder, _ = done
    path = folder / "seed-0" / "base" / "cell.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"recipe": "other"}))
    with pytest.raises(RunDirectoryError, match="computed from another recipe"):
        run_study(STUDY, folder, jobs=1, progress=Silent())
    path.write_text(before)


def test_a_training_that_diverges_counts_as_nothing_right(
    done: tuple[Path, Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = done
    (path,) = (folder / "seed-1").glob("tis-*/cell.json")
    kept = path.read_text()
    path.unlink()

    def falls(*_: object, **__: object) -> None:
        raise DivergedError("step 3: the loss is nan")

    with monkeypatch.context() as patch:
        patch.setenv("TOPR_CACHE", str(folder.parent / "cache"))
        patch.setattr("topr.runs.loop.run", falls)
        after = run_study(STUDY, folder, jobs=1, progress=Silent())
    cell = after.of("tis")[1]
    assert cell.diverged == "step 3: the loss is nan"
    assert (cell.final.metrics["pass@1"], cell.final.metrics["invalid"]) == (0.0, 1.0)
    assert cell.final.tokens == before.of("tis")[1].final.tokens
    assert "training diverged with 1 of 2 seeds" in (folder / "results.md").read_text()
    path.write_text(kept)
    run_study(STUDY, folder, jobs=1, progress=Silent())


def test_another_claim_costs_no_cell(done: tuple[Path, Results]) -> None:
    folder, before = done
    more = {"says": "TIS is above TOPR", "arm": "tis", "than": "topr"}
    arms = STUDY.arms | {"topr": STUDY.arms["topr"].model_copy(update={"label": "TOPR itself"})}
    claims = (*STUDY.claims, Claim.model_validate(more))
    other = STUDY.model_copy(update={"claims": claims, "arms": arms})
    after = run_study(other, folder, jobs=1, progress=Silent())
    assert after.cells == before.cells
    assert [found.claim.says for found in after.claims()][-1] == "TIS is above TOPR"
    *earlier, line = claim_lines(after)[:-1]
    assert line.endswith("This claim was added when the cells were there")
    assert not any("was added" in each for each in earlier)
    run_study(STUDY, folder, jobs=1, progress=Silent())  # as the other tests expect it


def test_a_users_objective_becomes_an_arm_on_the_same_rollouts(
    done: tuple[Path, Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = done
    (tmp_path / "mine.py").write_text(OWN_OBJECTIVE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOPR_CACHE", str(folder.parent / "cache"))
    together = tmp_path / "study"
    shutil.copytree(folder, together)
    after = run_study(add_objectives(STUDY, ["mine:Halved"]), together, jobs=1, progress=Silent())
    assert [cell for cell in after.cells if cell.arm != "Halved"] == list(before.cells)
    assert [cell.seed for cell in after.of("Halved")] == [cell.seed for cell in before.of("topr")]
    assert f"{after.of('Halved')[0].rate:g}" in after.sweep["Halved"].pass_at_1
    tokens = {cell.final.tokens for arm in ("topr", "Halved") for cell in after.of(arm)}
    assert len(tokens) == len({cell.final.tokens for cell in before.of("topr")})
    claims = {found.claim.says: found for found in after.claims()}
    assert "Halved is above TOPR" in claims
    again = run_study(STUDY, together, jobs=1, progress=Silent())  # without it, it stays
    assert again.cells == after.cells
    (tmp_path / "mine.py").write_text(OWN_OBJECTIVE.replace("0.5", "-7.0"))
    with pytest.raises(RunDirectoryError, match=r"Halved.*cell\.json"):
        run_study(STUDY, together, jobs=1, progress=Silent())


def test_an_added_objective_that_is_there_or_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="arm 'topr' already"):
        add_objectives(STUDY, ["topr"])
    with pytest.raises(ConfigError, match="no objective 'toppr'"):
        add_objectives(STUDY, ["toppr"])
    arm = add_objectives(STUDY, ["nft"]).arms["nft"]
    assert arm.changes == {"train": {"objective": "nft", "baseline": 0.0}}


def test_killed_it_leaves_no_process_and_goes_on(
    done: tuple[Path, Results], tmp_path: Path
) -> None:
    folder, before = done
    script = tmp_path / "study.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from topr.config.study import Study\nfrom topr.progress import Silent\n"
        "from topr.studies import run_study\n"
        "if __name__ == '__main__':\n"
        "    study = Study.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "    run_study(study, Path(sys.argv[2]), jobs=2, progress=Silent())\n"
    )
    (tmp_path / "study.json").write_text(STUDY.model_dump_json())
    killed = tmp_path / "killed"
    command = [sys.executable, str(script), str(tmp_path / "study.json"), str(killed)]
    environment = {**os.environ, "TOPR_CACHE": str(folder.parent / "cache")}
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while not list(killed.glob("sweep/*/iteration-01")):
        assert process.poll() is None, "ended before a cell was begun"
        assert time.monotonic() < deadline, "no cell was begun"
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.kill()
    process.wait(timeout=30)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    subprocess.run(command, env=environment, check=True)
    assert read_results(killed).cells == before.cells


def test_results_are_read_back_as_they_were(done: tuple[Path, Results]) -> None:
    folder, results = done
    found = read_results(folder)
    assert found.cells == results.cells
    assert found.claims() == results.claims()
    # Another test may have resumed the study since, which adds up other seconds.
    found = dataclasses.replace(found, seconds=results.seconds)
    assert markdown(found, []) == markdown(results, [])
    (claim,) = json.loads((folder / "results.json").read_text())["claims"]
    assert claim["says"] == "TOPR is above TIS"


def test_the_files_say_what_was_found(done: tuple[Path, Results]) -> None:
    folder, results = done
    report = (folder / "report.html").read_text()
    assert "two objectives &amp; &lt;one&gt; task" in report
    assert report.count("data:image/png;base64,") == len(list(folder.glob("*.png"))) == 2
    page = (folder / "results.md").read_text()
    accuracy = results.final("topr", "pass@1")
    assert accuracy is not None
    assert f"{100 * accuracy.mean:.1f} [" in page
    assert results.claims()[0].verdict.value in page
    for text in (page, report):
        assert "maj@16 was not measured" in text


@pytest.mark.parametrize(
    ("rate", "text"), [(1e-4, "1e-4"), (2.7e-6, "2.7e-6"), (9e-4, "9e-4"), (0.01, "1e-2")]
)
def test_rates_are_written_as_people_do(rate: float, text: str) -> None:
    assert short(rate) == text


def test_a_page_of_several_studies(done: tuple[Path, Results], tmp_path: Path) -> None:
    (done[0] / "notes.md").write_text("**Reading.** Nothing to see.\n")
    write_page([done[0], done[0]], tmp_path / "results.md", Path("assets"))
    text = (tmp_path / "results.md").read_text()
    assert text.count("## tiny") == 2
    assert text.count("**Reading.** Nothing to see.") == 2
    assert "](assets/tiny-final.png)" in text
    assert (tmp_path / "assets" / "tiny-training.png").is_file()
    write_page([done[0]], tmp_path / "results.md", Path("assets"))  # made anew
    assert (tmp_path / "results.md").read_text().count("## tiny") == 1
    (tmp_path / "mine.md").write_text("# Mine\n")
    with pytest.raises(DataError, match=r"mine\.md is there and was not made by"):
        write_page([done[0]], tmp_path / "mine.md", Path("assets"))
    with pytest.raises(DataError, match=r"holds no results\.json"):
        write_page([tmp_path], tmp_path / "x.md", Path("assets"))
