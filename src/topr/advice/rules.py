"""What follows from the facts of a dataset: settings, reasons, and where these were found.

A rule is a function from facts to advice or nothing; they are asked in the order of `RULES`. What
was measured on the built-in task with completions of 25 tokens is said as such.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from topr.advice.facts import MANY_VALUES, Facts
from topr.objectives import GOOD_SHARES, baseline_for_share

AIM = 0.2
"""The effective share of positives that is proposed: the upper end of the paper's best."""
OFTEN = 0.1
"""A share of truncated completions above this is said; of unreadable or repeated ones, twice it."""
LONG = 512
"""Tokens, above which one completion in twenty is called long."""


class Kind(StrEnum):
    """What a line of advice is about."""

    MEND = "mend first"
    SETTING = "setting"
    KNOW = "good to know"


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """One line."""

    kind: Kind
    what: str
    """A setting as the command line takes it, or what to do."""
    why: str
    source: str
    """Page of the documents, with an anchor."""


Rule = Callable[[Facts], Advice | None]


def advise(facts: Facts) -> Iterator[Advice]:
    """Yield advice in the order in which it is to be followed."""
    found = [advice for rule in RULES if (advice := rule(facts)) is not None]
    yield from sorted(found, key=lambda advice: list(Kind).index(advice.kind))


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _unscored(facts: Facts) -> Advice | None:
    if facts.unscored <= 0.01:
        return None
    return Advice(
        kind=Kind.MEND,
        what=f"{_percent(facts.unscored)} of the completions have no reward",
        why="they are left out of training: a grader that gave up, or rows that were not graded",
        source="grading.md",
    )


def _truncated(facts: Facts) -> Advice | None:
    if facts.truncated <= OFTEN:
        return None
    return Advice(
        kind=Kind.MEND,
        what=f"{_percent(facts.truncated)} reached the token limit: raise generate.max_tokens",
        why="an answer that was cut off counts as wrong, and its end is never learnt",
        source="troubleshooting.md#answers-are-truncated-or-unreadable",
    )


def _unreadable(facts: Facts) -> Advice | None:
    if facts.unreadable <= 2 * OFTEN:
        return None
    return Advice(
        kind=Kind.MEND,
        what=f"{_percent(facts.unreadable)} have no answer that the grader reads: look at some",
        why="a wrong answer format or chat template is learnt from faster by mending the prompt",
        source="troubleshooting.md#answers-are-truncated-or-unreadable",
    )


def _one_sided(facts: Facts) -> Advice | None:
    if 0 < facts.right < 1:
        return None
    kind = "right" if facts.right else "wrong"
    return Advice(
        kind=Kind.MEND,
        what=f"all completions are {kind}",
        why="there is nothing to tell apart; look at the grader, or take other problems",
        source="troubleshooting.md#nothing-is-learned",
    )


def _repeated(facts: Facts) -> Advice | None:
    if facts.repeated <= 2 * OFTEN:
        return None
    return Advice(
        kind=Kind.KNOW,
        what=f"{_percent(facts.repeated)} are there already for their problem",
        why="samples count as often as they were drawn, so they stay; were they merged from files "
        "that overlap, curate.steps=[drop_duplicates] takes them out",
        source="curation.md",
    )


def _no_signal(facts: Facts) -> Advice | None:
    if facts.mixed >= 0.5 or facts.completions < 2:
        return None
    return Advice(
        kind=Kind.KNOW,
        what=f"only {_percent(facts.mixed)} of {facts.problems:,} problems have right and wrong "
        f"completions; {_percent(facts.none_right)} have no right one",
        why="TOPR learns from the others too; objectives that compare a prompt's completions "
        "(grpo, dpo, nft, oapl) do not. More completions of hard problems: generate in rounds",
        source="curation.md",
    )


def _without_ratio(facts: Facts) -> bool:
    """Whether log mu can be had neither from the rows nor from one model."""
    return facts.recorded == 0 and len(facts.writers) > 1 and facts.completions >= 2


def _numbers(facts: Facts) -> bool:
    """Whether rewards are numbers, which a prompt's others give a mean for."""
    return facts.values > MANY_VALUES and facts.completions >= 2


def _objective(facts: Facts) -> Advice | None:
    if _without_ratio(facts):
        return Advice(
            kind=Kind.SETTING,
            what="train.objective=asymre",
            why=f"{len(facts.writers)} models wrote them and no log-probabilities are recorded: "
            "this one needs none. Or recompute them with --behavior-model for each",
            source="objectives.md#all-objectives",
        )
    if _numbers(facts):
        return Advice(
            kind=Kind.SETTING,
            what="train.objective=opmd",
            why="rewards are numbers: it goes by their difference from the prompt's mean (that is "
            "what it is made for; no study here has such rewards)",
            source="objectives.md#all-objectives",
        )
    return Advice(
        kind=Kind.SETTING,
        what="train.objective=topr",
        why="it stays stable at the highest rates. With completions of 25 tokens truncated IS "
        "(tis), at a rate of its own, was 4.6 points above it",
        source="results.md#leaderboard",
    )


def _baseline(facts: Facts) -> Advice | None:
    signed = facts.values == 2 and (facts.lowest, facts.highest) == (-1.0, 1.0)
    if not signed or not 0 < facts.right < 1 or _without_ratio(facts):
        return None
    low, high = GOOD_SHARES
    if low <= facts.right <= high:
        return Advice(
            kind=Kind.SETTING,
            what="train.baseline=0",
            why=f"{_percent(facts.right)} are right, within what was found to work (20 to 60 % on "
            "the built-in task, 10 to 20 % best in the paper)",
            source="results.md#baseline",
        )
    share = f"train.baseline=null train.effective_positive_share={AIM:g}"
    if facts.right < low:
        c = baseline_for_share(facts.right, AIM)
        return Advice(
            kind=Kind.SETTING,
            what=f"{share} train.lr_scheduler_type=constant_with_warmup train.warmup_steps=10",
            why=f"{_percent(facts.right)} are right: without it the first steps push away from "
            f"wrong answers almost alone and take right ones along (c = {c:+.2f} gives this share)",
            source="real-model.md",
        )
    return Advice(
        kind=Kind.SETTING,
        what=share,
        why=f"{_percent(facts.right)} are right; the paper finds a fall above 50 %, and 10 to 20 % "
        "best. On the built-in task 20 to 60 % were level",
        source="results.md#baseline",
    )


def _signs(facts: Facts) -> Advice | None:
    if facts.lowest < 0 or facts.values > MANY_VALUES or facts.lowest == facts.highest:
        return None
    return Advice(
        kind=Kind.MEND,
        what=f"rewards are {facts.lowest:g} and {facts.highest:g}: write -1 for {facts.lowest:g}",
        why="the paper's are +1 and -1, and its baseline and shares are of those; a wrong "
        "completion with reward 0 has no weight",
        source="objectives.md#baseline-and-effective-share-of-positives",
    )


def _scale(facts: Facts) -> Advice | None:
    spread = facts.highest - facts.lowest
    if facts.values <= MANY_VALUES or spread <= 4:
        return None
    return Advice(
        kind=Kind.MEND,
        what=f"rewards go from {facts.lowest:g} to {facts.highest:g}: divide them by their spread",
        why="a gradient is proportional to them, and rates and limits here are for rewards near 1",
        source="objectives.md#the-baseline-and-each-objective",
    )


def _behavior(facts: Facts) -> Advice | None:
    if facts.recorded == 1 or _without_ratio(facts):
        return None
    missing = "no" if facts.recorded == 0 else f"only {_percent(facts.recorded)} of the"
    return Advice(
        kind=Kind.SETTING,
        what="train.behavior_logprobs=recompute",
        why=f"{missing} completions have log-probabilities; they are computed by the model that is "
        "trained, or by --behavior-model where another one wrote them",
        source="training.md",
    )


def _greedy(facts: Facts) -> Advice | None:
    if facts.greedy == 0:
        return None
    return Advice(
        kind=Kind.MEND if facts.greedy == 1 else Kind.KNOW,
        what=f"{_percent(facts.greedy)} are of temperature 0 and are left out",
        why="nothing was sampled, so there is no log mu to compare with: sample at temperature 1",
        source="objectives.md#the-baseline-and-each-objective",
    )


def _length(facts: Facts) -> Advice | None:
    if facts.longest is None or facts.longest <= LONG:
        return None
    return Advice(
        kind=Kind.KNOW,
        what=f"half have {facts.length:.0f} tokens, one in twenty over {facts.longest:.0f}",
        why="the ratio is of the whole completion: on long ones it moves far in a few steps. Keep "
        "the level sequence (a mean over tokens never closes the taper) and the rate low",
        source="results.md#ratio-level",
    )


def _rate(facts: Facts) -> Advice | None:
    return Advice(
        kind=Kind.SETTING,
        what="train.learning_rate: try three",
        why="it decides more than the objective. 5e-7 for billions of parameters (the paper's); "
        "2e-5 to 5e-5 was best for 135 million (one seed); 1e-5 to 1e-4 for an adapter. Choose on "
        "problems that are not tested on",
        source="real-model.md",
    )


RULES: tuple[Rule, ...] = (
    _unscored, _truncated, _unreadable, _one_sided, _signs, _scale, _greedy,
    _objective, _baseline, _behavior, _rate,
    _no_signal, _repeated, _length,
)  # fmt: skip
