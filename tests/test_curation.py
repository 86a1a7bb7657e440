"""The rules by hand: what each keeps, drops and says, alone and one after the other."""

import typing

import numpy as np
import pytest

from topr.config import (
    AllRule,
    AnnaKareninaRule,
    CapRule,
    CurateConfig,
    DropDuplicatesRule,
    DropNoSignalRule,
    PassRateRule,
    PositiveShareRule,
    PositivesRule,
)
from topr.config.curation import Rule
from topr.curation import (
    REASONS,
    Columns,
    curate,
    finished,
    hash_lists,
    max_candidates,
    most_per_problem,
    whole_draw_rule,
)
from topr.curation.rules import RULES
from topr.errors import DataError

NAN = float("nan")
REWARDS = [1.0, -1.0, NAN, 1.0, -1.0, -1.0, NAN]
PROBLEMS = ["a", "a", "a", "a", "b", "b", "c"]
SAMPLES = [0, 1, 2, 3, 0, 1, 0]
COLUMNS = Columns.of(REWARDS, PROBLEMS, SAMPLES)


def steps(*rules):
    return CurateConfig(steps=rules)


def drawn(text, problem="a"):
    """One problem's draws: + right, - wrong, ? no reward."""
    rewards = [{"+": 1.0, "-": -1.0, "?": NAN}[mark] for mark in text]
    return Columns.of(rewards, [problem] * len(text), range(len(text)))


def random_columns(seed=1, problems=30, samples=20, shuffled=True):
    """Rows of several problems in any order, some alike, some without a reward."""
    generator = np.random.default_rng(seed)
    ids = np.repeat(np.arange(problems), samples)
    numbers = np.tile(np.arange(samples), problems)
    skill = generator.random(problems)[ids]
    rewards = np.where(generator.random(len(ids)) < skill, 1.0, -1.0)
    rewards[generator.random(len(ids)) < 0.05] = NAN
    texts = generator.integers(0, 12, len(ids))
    order = generator.permutation(len(ids)) if shuffled else np.arange(len(ids))
    names = [f"p{i}" for i in ids[order]]
    return Columns.of(rewards[order], names, numbers[order], texts[order].tolist()), order


EVERY = {
    "all": AllRule(),
    "positives": PositivesRule(),
    "cap": CapRule(per_problem=7),
    "anna_karenina": AnnaKareninaRule(per_problem=8, max_positives=3, max_candidates=15, reserve=2),
    "positive_share": PositiveShareRule(share=0.2),
    "drop_no_signal": DropNoSignalRule(),
    "drop_duplicates": DropDuplicatesRule(),
    "pass_rate": PassRateRule(lowest=0.25, highest=0.75),
}


def test_every_configured_rule_has_a_function_and_is_tested():
    configured = {
        rule.model_fields["rule"].default for rule in typing.get_args(typing.get_args(Rule)[0])
    }
    assert set(RULES) == configured == set(EVERY)


def test_all_drops_only_rows_without_a_reward():
    for config in (CurateConfig(), steps(), steps(AllRule())):
        result = curate(COLUMNS, config)
        assert result.keep.tolist() == [True, True, False, True, True, True, False]
        assert result.report == {
            "rows": 7,
            "kept": 5,
            "problems": 2,
            "positives": 2,
            "negatives": 3,
            "positive_share": 0.4,
        }
        assert result.steps[0].dropped == {"no_reward": 2}


def test_positives_keeps_rewards_above_zero():
    columns = Columns.of([*REWARDS, 0.0, 0.25], [*PROBLEMS, "d", "d"], [*SAMPLES, 0, 1])
    result = curate(columns, steps(PositivesRule()))
    assert np.flatnonzero(result.keep).tolist() == [0, 3, 8]
    assert result.steps[1].dropped == {"not_positive": 4}
    assert result.report["positive_share"] == 1.0


def test_cap_counts_rewarded_rows_only():
    # Sample 2 of problem a has no reward, so it does not use up the quota.
    result = curate(drawn("+?-+"), steps(CapRule(per_problem=2)))
    assert result.keep.tolist() == [True, False, True, False]
    assert result.steps[1].dropped == {"over_cap": 1}


@pytest.mark.parametrize(
    ("draws", "options", "kept", "dropped"),
    [
        # Quota 4, two positives: the third positive is too many, the fifth of the kind too late.
        ("+-++--+-", {}, [0, 1, 2, 4], {"over_max_positives": 2, "quota_full": 2}),
        # A hard question fills its quota with negatives, and drawing stops there.
        ("----+-", {}, [0, 1, 2, 3], {"quota_full": 2}),
        # Two places are held for positives: the negatives wait, and the positive is kept.
        ("----+-", {"reserve": 2}, [0, 1, 2, 4], {"quota_full": 2}),
        ("----++", {"reserve": 2}, [0, 1, 4, 5], {"quota_full": 2}),
        # An easy question contributes the positives it may, and what negatives it has.
        ("+++++-", {}, [0, 1, 5], {"over_max_positives": 3}),
        # The eighth candidate is not looked at: the one without a reward was drawn too.
        (
            "++++?+--",
            {"max_candidates": 7},
            [0, 1, 6],
            {"over_max_candidates": 1, "over_max_positives": 3},
        ),
        ("+-", {}, [0, 1], {}),
        ("--++", {"max_positives": 0}, [0, 1], {"over_max_positives": 2}),
    ],
)
def test_anna_karenina_by_hand(draws, options, kept, dropped):
    rule = AnnaKareninaRule(**{"per_problem": 4, "max_positives": 2, "max_candidates": 8} | options)
    result = curate(drawn(draws), steps(rule))
    assert np.flatnonzero(result.keep).tolist() == kept
    assert result.steps[1].dropped == dropped


def sequential(draws, quota, most, candidates):
    """The rule as the paper's prose has it, one candidate after the other."""
    kept, positives = [], 0
    for number, mark in enumerate(draws[:candidates]):
        if len(kept) == quota:
            break
        if mark == "+":
            positives += 1
            if positives > most:
                continue
        kept.append(number)
    return kept


def test_anna_karenina_is_the_sequential_rule():
    generator = np.random.default_rng(0)
    for _ in range(200):
        draws = "".join(generator.choice(["+", "-"], size=20, p=[0.4, 0.6]))
        most = int(generator.integers(0, 6))
        rule = AnnaKareninaRule(per_problem=6, max_positives=most, max_candidates=15)
        expected = sequential(draws, 6, most, 15)
        if expected:
            assert np.flatnonzero(curate(drawn(draws), steps(rule)).keep).tolist() == expected


@pytest.mark.parametrize("reserve", [0, 1, 3])
def test_once_full_a_problem_is_never_changed_by_what_is_drawn_later(reserve):
    config = steps(
        DropDuplicatesRule(),
        AnnaKareninaRule(per_problem=6, max_positives=3, max_candidates=18, reserve=reserve),
    )
    columns, _ = random_columns(shuffled=False)
    whole = curate(columns, config).keep
    stopped_early = 0
    for until in range(1, 21):
        seen = columns.samples_N < until
        part = Columns(
            rewards_N=columns.rewards_N[seen],
            problems_N=columns.problems_N[seen],
            names=columns.names,
            samples_N=columns.samples_N[seen],
            completions_N=columns.completions_N[seen],
        )
        full = finished(part, config)
        stopped_early += int(full.sum()) if until < 18 else 0
        of_full = full[columns.problems_N]
        kept = np.zeros(len(whole), dtype=bool)
        kept[np.flatnonzero(seen)] = curate(part, config).keep
        np.testing.assert_array_equal(kept[of_full], whole[of_full])
        if until >= 18:
            assert full.all()
    assert stopped_early > 0


def test_a_problem_is_full_with_its_quota_or_its_last_candidate():
    config = steps(AnnaKareninaRule(per_problem=4, max_positives=2, max_candidates=8))
    assert not finished(drawn("++-"), config)[0]
    assert not finished(drawn("+++-"), config)[0]
    assert finished(drawn("++--"), config)[0]
    assert finished(drawn("----"), config)[0]
    assert finished(drawn("++++++++"), config)[0]
    assert not finished(drawn("????"), config)[0]
    held = steps(AnnaKareninaRule(per_problem=4, max_positives=2, max_candidates=8, reserve=1))
    assert not finished(drawn("----"), held)[0]
    assert finished(drawn("----+"), held)[0]


def test_a_rule_that_needs_every_candidate_before_the_quota_leaves_no_problem_full():
    quota = AnnaKareninaRule(per_problem=2, max_positives=1, max_candidates=8)
    before = steps(PassRateRule(lowest=0.1), quota)
    assert whole_draw_rule(before) == "pass_rate"
    assert not finished(drawn("+-+-"), before)[0]
    assert finished(drawn("+-+-+-+-"), before)[0]
    after = steps(quota, PassRateRule(lowest=0.1))
    assert whole_draw_rule(after) is None
    assert finished(drawn("+-+-"), after)[0]


def test_what_a_recipe_draws_and_keeps_at_most():
    quota = AnnaKareninaRule(per_problem=16, max_positives=4)
    assert max_candidates(CurateConfig()) is None
    assert max_candidates(steps(DropDuplicatesRule(), quota)) == 64
    assert most_per_problem(CurateConfig(), 32) == 32
    assert most_per_problem(steps(quota), 32) == 16
    assert most_per_problem(steps(quota, CapRule(per_problem=5)), 64) == 5


@pytest.mark.parametrize(
    ("right", "wrong", "share", "kept_right", "kept_wrong"),
    [(50, 50, 0.2, 12, 50), (10, 90, 0.5, 10, 10), (30, 70, 0.3, 30, 70), (99, 1, 0.1, 1, 1)],
)
def test_positive_share_drops_the_surplus_of_the_abundant_side(
    right, wrong, share, kept_right, kept_wrong
):
    ids = [f"p{i % 10}" for i in range(100)]
    columns = Columns.of([1.0] * right + [-1.0] * wrong, ids, [i // 10 for i in range(100)])
    result = curate(columns, steps(PositiveShareRule(share=share)))
    assert (result.report["positives"], result.report["negatives"]) == (kept_right, kept_wrong)
    reasons = {"surplus_positive": right - kept_right, "surplus_negative": wrong - kept_wrong}
    assert result.steps[1].dropped == {reason: n for reason, n in reasons.items() if n}


def test_positive_share_thins_each_problem_alike_and_every_row_over_the_seeds():
    ids = np.repeat(np.arange(40), 9)
    rewards = np.tile([1.0] + [-1.0] * 8, 40)
    columns = Columns.of(rewards, [f"p{i}" for i in ids], np.tile(np.arange(9), 40))
    times = np.zeros(len(ids))
    for seed in range(60):
        keep = curate(columns, steps(PositiveShareRule(share=0.25, seed=seed))).keep
        negatives = np.bincount(ids[keep & (rewards < 0)], minlength=40)
        assert set(negatives) <= {2, 3, 4}  # 3 of 8 each, up to one
        assert negatives.sum() == 120
        times += keep
    assert times[rewards < 0].min() > 5
    assert times[rewards < 0].max() < 45


def test_positive_share_needs_both_sides():
    with pytest.raises(DataError, match="of 3 completions 0 are positive"):
        curate(drawn("---"), steps(PositiveShareRule(share=0.2)))


def test_problems_of_one_reward_have_no_signal():
    columns = Columns.of(
        [1, 1, -1, -1, 1, -1, 0.5, 0.7], ["a", "a", "b", "b", "c", "c", "d", "d"], [0, 1] * 4
    )
    result = curate(columns, steps(DropNoSignalRule()))
    assert np.flatnonzero(result.keep).tolist() == [4, 5, 6, 7]
    assert result.steps[1].dropped == {"all_positive": 2, "all_negative": 2}


def test_the_first_of_equal_completions_of_a_problem_stays():
    columns = Columns.of(
        [1.0] * 6,
        ["a", "a", "a", "b", "b", "a"],
        [3, 1, 2, 0, 1, 0],
        ["x", "x", "y", "x", "x", "z"],
    )
    result = curate(columns, steps(DropDuplicatesRule()))
    assert np.flatnonzero(result.keep).tolist() == [1, 2, 3, 5]
    assert result.steps[1].dropped == {"duplicate": 2}
    with pytest.raises(DataError, match="give them to `Columns`"):
        curate(COLUMNS, steps(DropDuplicatesRule()))


def test_pass_rate_keeps_a_band_with_its_ends():
    texts = {"none": "----", "quarter": "+---", "half": "++--", "most": "+++-", "all": "++++"}
    marks = [(name, mark) for name, text in texts.items() for mark in text]
    columns = Columns.of(
        [1.0 if mark == "+" else -1.0 for _, mark in marks],
        [name for name, _ in marks],
        list(range(4)) * 5,
    )
    result = curate(columns, steps(PassRateRule(lowest=0.25, highest=0.5)))
    assert {marks[i][0] for i in np.flatnonzero(result.keep)} == {"quarter", "half"}
    assert result.steps[1].dropped == {"too_hard": 4, "too_easy": 8}


@pytest.mark.parametrize("rules", [[rule] for rule in EVERY.values()] + [list(EVERY.values())[2:]])
def test_the_choice_does_not_depend_on_the_order_of_rows(rules):
    straight, _ = random_columns(shuffled=False)
    shuffled, order = random_columns()
    chosen, expected = curate(shuffled, steps(*rules)), curate(straight, steps(*rules))
    assert sorted(order[chosen.keep]) == np.flatnonzero(expected.keep).tolist()
    assert chosen.steps == expected.steps
    assert expected.report["kept"] > 0


@pytest.mark.parametrize("rules", [[rule] for rule in EVERY.values()] + [list(EVERY.values())[2:]])
def test_the_counts_add_up(rules):
    columns, _ = random_columns(seed=3)
    result = curate(columns, steps(*rules))
    given = result.report["rows"]
    for step in result.steps:
        assert step.rows == given
        assert step.kept == step.rows - sum(step.dropped.values())
        assert set(step.dropped) <= set(REASONS)
        given = step.kept
    assert result.report["kept"] == result.keep.sum() == given
    assert result.report["positives"] == (columns.rewards_N[result.keep] > 0).sum()


def test_rules_are_applied_in_the_order_given():
    # Two equal first completions: the cap counts them both, or only what is left of them.
    columns = Columns.of([1.0, 1.0, -1.0], ["a"] * 3, [0, 1, 2], ["x", "x", "y"])
    cap, duplicates = CapRule(per_problem=2), DropDuplicatesRule()
    assert curate(columns, steps(cap, duplicates)).keep.tolist() == [True, False, False]
    assert curate(columns, steps(duplicates, cap)).keep.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("columns", "config", "message"),
    [
        (drawn("--"), steps(PositivesRule()), r"'positives' keeps none of 2 .*2 not_positive"),
        (drawn("??"), steps(), r"curation keeps none of 2 completions \(2 no_reward"),
        (drawn(""), steps(), "keeps none of 0 completions"),
        (drawn("++"), steps(AllRule(), PassRateRule(highest=0.5)), "'pass_rate' keeps none of 2"),
    ],
)
def test_keeping_nothing_is_an_error_that_says_why(columns, config, message):
    with pytest.raises(DataError, match=message):
        curate(columns, config)


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(DataError, match="3 rewards, 2 problem ids"):
        Columns.of([1.0, 1.0, 1.0], ["a", "b"], [0, 0, 0])


def test_an_infinite_reward_is_refused():
    with pytest.raises(DataError, match="1 of 2 rewards are infinite"):
        Columns.of([float("inf"), 1.0], ["a", "b"], [0, 0])


def test_lists_have_equal_hashes_only_where_they_are_equal():
    lists = [[], [0], [0, 0], [1, 2], [2, 1], [1, 2], [3], [1, 2, 3], [0]]
    flat = np.array([value for one in lists for value in one], dtype=np.int32)
    hashes = hash_lists(flat, np.array([len(one) for one in lists]))
    for i, one in enumerate(lists):
        for j, other in enumerate(lists):
            assert (hashes[i] == hashes[j]) == (one == other)
