"""Studies as they are written down."""

from pathlib import Path

import pytest
import yaml

from topr.config.study import load_study, shipped_studies
from topr.errors import ConfigError
from topr.progress import Silent
from topr.studies.run import run_study


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_hold_valid_recipes_and_honest_grids(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert study.description
    assert study.needs
    assert len(study.seeds) >= 3
    assert study.tuning_seed not in study.seeds
    recipes = [study.cell(arm, 0, None, "test") for arm in study.arms]
    # Equal budgets: as many optimizer steps and completions per step for every arm.
    assert len({(r.train.max_steps, r.train.global_batch_size, r.iterations) for r in recipes}) == 1
    assert all(recipe.task.validation_problems > 0 for recipe in recipes)  # type: ignore[union-attr]


def small(path: Path, **changes: object) -> Path:
    values = {
        "description": "two arms",
        "recipe": {"task": {"name": "arithmetic"}, "train": {"max_steps": 3}},
        "arms": {"one": {"label": "One"}, "two": {"label": "Two", "rate": "one"}},
        "claims": [{"says": "one is above two", "arm": "one", "than": "two"}],
    } | changes
    path.write_text(yaml.safe_dump(values))
    return path


def test_an_arm_changes_keys_of_sections_and_leaves_the_others(tmp_path: Path) -> None:
    arms = {"one": {"label": "One", "changes": {"train": {"objective": "tis"}}}}
    study = load_study(small(tmp_path / "mine.yaml", arms=arms, claims=[]))
    recipe = study.cell("one", 7, 2e-5, "validation")
    assert study.name == recipe.name == "mine"
    assert (recipe.train.objective, recipe.train.max_steps) == ("tis", 3)
    assert (recipe.train.learning_rate, recipe.evaluate.split) == (2e-5, "validation")
    assert recipe.seed == recipe.task.seed == recipe.task.warmup.seed == 7  # type: ignore[union-attr]
    assert study.cell(None, 7, None, "test").train.objective == "topr"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"claims": [{"says": "x", "arm": "three"}]},
            r"claim 'x' names 'three'; arms are one, two",
        ),
        ({"arms": {"base": {"label": "B"}}, "claims": []}, "cannot be named 'base'"),
        ({"seeds": [1, 100]}, "tuning_seed=100 is one of seeds"),
        ({"seeds": []}, "seeds: .*at least 1 item"),
        ({"rates": []}, "rates: .*at least 1 item"),
        (
            {"arms": {"one": {"label": "O", "rate": "two"}}, "claims": []},
            "'two' is not an arm with its own sweep",
        ),
        (
            {
                "arms": {"one": {"label": "O", "changes": {"train": {"objectiv": "is"}}}},
                "claims": [],
            },
            r"arms\.one:\n.*unknown key 'train\.objectiv'; did you mean 'train\.objective'",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(small(tmp_path / "mine.yaml", **changes))


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no study 'stabilty'.*Did you mean 'stability'"):
        load_study("stabilty")


def test_what_the_last_arm_would_be_refused_for_is_known_at_once(tmp_path: Path) -> None:
    changes = {"train": {"objective": "dpo", "baseline": -1}}
    study = load_study("negatives", [f"arms.late={{label: late, changes: {changes}}}"])
    with pytest.raises(ConfigError, match=r"arms\.late: .*no gradient would flow"):
        run_study(study, tmp_path / "study", jobs=1, progress=Silent())
    assert not (tmp_path / "study").exists()
