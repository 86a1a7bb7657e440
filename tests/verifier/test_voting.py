"""Tables of scored candidates to votes."""

import json

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from topr.cli import app
from topr.errors import DataError
from topr.interop import write_rows
from topr.verifier.voting import vote


def table(rows: list[tuple[str, str, str, float | None]], **columns: list) -> pa.Table:
    names = ("problem_id", "grade", "answer", "verifier_score")
    values = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return pa.table(values | columns)


ROWS: list[tuple[str, str, str, float | None]] = [
    ("a", "correct", "4", 0.9), ("a", "wrong", "5", 0.2), ("a", "wrong", "5", 0.3),
    ("b", "wrong", "1", 0.1), ("b", "correct", "2", 0.0), ("b", "unparseable", "", 0.5),
]  # fmt: skip


def test_votes_of_all_candidates_by_hand() -> None:
    votes = vote(table(ROWS), resamples=100)
    assert (votes.problems, votes.left_out, votes.at) == (2, 0, (1, 2, 3))
    found = {method: by_k[3][0] for method, by_k in votes.values.items()}
    # a: 5 has two votes, 4 the larger weight. b: one vote each; all the weight is with 1.
    assert found == {"majority": 0.25, "weighted": 0.5, "best": 0.5, "oracle": 1.0}
    assert votes.differences["weighted"][3][0] == 0.25
    assert votes.as_json()["weighted@3 - majority"] == 0.25
    assert votes.as_json()["auc_within"] == 0.5  # a: above both wrong ones; b: below both


def test_scores_of_candidates_that_are_all_right_order_nothing() -> None:
    all_right = [("a", "correct", "4", 0.9), ("a", "correct", "4", 0.2)]
    found = vote(table(all_right), resamples=100)
    assert found.auc_within is None
    assert "auc_within" not in found.as_json()


def test_a_problem_with_fewer_candidates_is_left_out_and_said() -> None:
    votes = vote(table([*ROWS, ("c", "correct", "7", 1.0)]), resamples=100)
    assert (votes.problems, votes.left_out, votes.at[-1]) == (2, 1, 3)
    one = vote(table([*ROWS, ("c", "correct", "7", 1.0)]), candidates=1, resamples=100)
    assert (one.problems, one.at) == (3, (1,))
    with pytest.raises(DataError, match="no problem has 9 candidates; they have 3 to 3"):
        vote(table(ROWS), candidates=9)


def test_the_command_lets_as_many_vote_as_it_is_told(tmp_path) -> None:
    write_rows(tmp_path / "scored.parquet", table(ROWS))
    asked = ["vote", str(tmp_path / "scored.parquet"), "-o", str(tmp_path / "votes.json")]
    done = CliRunner().invoke(app, [*asked, "--candidates", "2"], catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads((tmp_path / "votes.json").read_text())["at"] == [1, 2]


def test_of_more_candidates_a_random_choice_votes_not_the_first() -> None:
    rows = [("a", "correct" if i < 2 else "wrong", str(i < 2), 1.0) for i in range(40)]
    found = {vote(table(rows), candidates=2, seed=s, resamples=100).values["oracle"][2][0]
             for s in range(20)}  # fmt: skip
    assert 0.0 in found  # the first two are right


def test_a_candidate_without_a_score_weighs_nothing() -> None:
    votes = vote(table([("a", "correct", "4", None), ("a", "wrong", "5", 0.1)]), resamples=100)
    assert votes.unscored == 1
    assert votes.values["weighted"][2][0] == 0.0


def test_a_dropped_completion_is_wrong_as_in_an_evaluation() -> None:
    rows = [
        (name, "truncated" if i == 0 else outcome, *more)
        for i, (name, outcome, *more) in enumerate(ROWS)
    ]
    votes = vote(table(rows), resamples=100)
    assert votes.values["oracle"][3][0] == 0.5


@pytest.mark.parametrize(("score", "message"), [(-0.1, "holds -0.1"), (float("inf"), "holds inf")])
def test_what_cannot_weigh_is_refused(score: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        vote(table([("a", "correct", "4", score), ("a", "wrong", "5", 0.1)]))


def test_rewards_and_labels_are_scores() -> None:
    rows = table(ROWS).append_column("label", pa.array([True, False, False, False, True, False]))
    votes = vote(rows, score="label", resamples=100)
    assert votes.values["best"][3][0] == votes.values["oracle"][3][0] == 1.0
    rewards = [1.0, -1.0, -1.0, -1.0, 1.0, -1.0]
    by_reward = vote(table(ROWS, reward=rewards), score="reward", resamples=100)
    assert by_reward.values["best"] == votes.values["best"]
    with pytest.raises(DataError, match="no column 'nothing'"):
        vote(rows, score="nothing")
