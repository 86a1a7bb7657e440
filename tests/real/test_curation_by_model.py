"""Real solutions by four language models, graded here and curated by every rule: the counts of
positives and negatives of each model are those that the labels give, counted by hand.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from command_line import read_jsonl
from tiny import tiny_tokenizer
from topr.config import CurateConfig, GradeConfig
from topr.interop import ColumnMap, ImportOptions, import_rollouts, read_rows
from topr.progress import Silent
from topr.stages.curate import curate_rollouts
from topr.stages.grade import grade_rollouts
from topr.store import read_table, rollouts_to_table, write_shard

pytestmark = pytest.mark.slow

Row = dict[str, Any]
Problems = dict[str, list[Row]]
"""The rows of each question, in the order of the file: that is the order of drawing."""


@pytest.fixture(scope="module")
def labelled(shared_data: Path) -> list[Row]:
    return read_jsonl(shared_data / "gsm8k_model_solutions.jsonl.gz")


@pytest.fixture(scope="module")
def graded(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graded")
    rows = read_rows(shared_data / "gsm8k_model_solutions.jsonl.gz")
    rollouts = import_rollouts(
        rows,
        columns=ColumnMap(reward="").resolve(rows),
        tokenizer=tiny_tokenizer(),
        options=ImportOptions(model="unnamed", template="Question: {prompt}\nAnswer:\n"),
    )
    write_shard(folder / "rollouts", 0, rollouts_to_table(rollouts))
    grade_rollouts(
        folder / "rollouts", "numeric", GradeConfig(workers=2), folder / "graded",
        progress=Silent(),
    )  # fmt: skip
    return folder / "graded"


def keep_all(problems: Problems) -> list[Row]:
    return [row for rows in problems.values() for row in rows]


def positives(problems: Problems) -> list[Row]:
    return [row for row in keep_all(problems) if row["is_correct"]]


def cap(problems: Problems) -> list[Row]:
    return [row for rows in problems.values() for row in rows[:3]]


def anna_karenina(problems: Problems) -> list[Row]:
    kept = []
    for rows in problems.values():
        quota: list[Row] = []
        for row in rows:
            right = sum(other["is_correct"] for other in quota)
            if len(quota) < 3 and not (row["is_correct"] and right == 1):
                quota.append(row)
        kept += quota
    return kept


def drop_no_signal(problems: Problems) -> list[Row]:
    mixed = [rows for rows in problems.values() if len({row["is_correct"] for row in rows}) == 2]
    return [row for rows in mixed for row in rows]


def drop_duplicates(problems: Problems) -> list[Row]:
    return [
        row
        for rows in problems.values()
        for place, row in enumerate(rows)
        if row["solution"] not in [other["solution"] for other in rows[:place]]
    ]


def pass_rate(problems: Problems) -> list[Row]:
    hard = [rows for rows in problems.values() if sum(row["is_correct"] for row in rows) in (1, 2)]
    return [row for rows in hard for row in rows]


def composed(problems: Problems) -> list[Row]:
    for rule in (drop_duplicates, drop_no_signal, anna_karenina):
        left: Problems = {}
        for row in rule(problems):
            left.setdefault(row["question_id"], []).append(row)
        problems = left
    return keep_all(problems)


QUOTA = {"rule": "anna_karenina", "per_problem": 3, "max_positives": 1}
BY_HAND = [
    (keep_all, ["all"]),
    (positives, ["positives"]),
    (cap, [{"rule": "cap", "per_problem": 3}]),
    (anna_karenina, [QUOTA]),
    (drop_no_signal, ["drop_no_signal"]),
    (drop_duplicates, ["drop_duplicates"]),
    (pass_rate, [{"rule": "pass_rate", "lowest": 0.25, "highest": 0.5}]),
    (composed, ["drop_duplicates", "drop_no_signal", QUOTA]),
]


def by_question(rows: list[Row]) -> Problems:
    problems: Problems = {}
    for row in rows:
        problems.setdefault(row["question_id"], []).append(row)
    return problems


def counts(folder: Path) -> Counter[tuple[str, bool]]:
    table = read_table(folder, ["model", "reward"])
    right = [reward > 0 for reward in table["reward"].to_pylist()]
    return Counter(zip(table["model"].to_pylist(), right, strict=True))


@pytest.mark.parametrize(("rule", "steps"), BY_HAND, ids=[rule.__name__ for rule, _ in BY_HAND])
def test_each_models_positives_and_negatives_are_those_of_the_labels(
    graded, labelled, tmp_path, rule, steps
):
    config = CurateConfig.model_validate({"steps": steps})
    manifest = curate_rollouts(graded, config, tmp_path)
    expected = rule(by_question(labelled))
    assert counts(tmp_path) == Counter((row["model"], row["is_correct"]) for row in expected)
    kept = read_table(tmp_path, ["completion"])["completion"].to_pylist()
    assert sorted(kept) == sorted(row["solution"] for row in expected)
    assert manifest.details["positives"] == sum(row["is_correct"] for row in expected)


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_a_share_of_positives_leaves_the_scarce_side_of_each_model_alone(
    graded, labelled, tmp_path, share
):
    config = CurateConfig.model_validate({"steps": [{"rule": "positive_share", "share": share}]})
    manifest = curate_rollouts(graded, config, tmp_path)
    assert manifest.details["positive_share"] == pytest.approx(share, abs=1e-3)
    labels = Counter((row["model"], row["is_correct"]) for row in labelled)
    scarce = share > 0.5  # 1037 of 2640 are right
    found = counts(tmp_path)
    for (model, right), count in labels.items():
        if right is scarce:
            assert found[model, right] == count
        else:  # thinned alike in all models, within what chance gives
            fraction = sum(n for (_, r), n in found.items() if r is right) / sum(
                n for (_, r), n in labels.items() if r is right
            )
            assert found[model, right] == pytest.approx(count * fraction, abs=4 * count**0.5 / 2)
