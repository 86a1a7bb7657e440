"""The algebra of REINFORCE's baseline c and the dataset's effective share of positives.

With rewards +1 and -1, a baseline c in (-1, 1) multiplies positives by (1 - c) and negatives by
(1 + c). That is training with c = 0 on a dataset whose share of positives is

    p~ = p (1 - c) / (1 + c (1 - 2 p))        and back        c = (p - p~) / (p + p~ - 2 p p~).

arXiv 2503.14286, section on the baseline.
"""

from topr.errors import ConfigError

GOOD_SHARES = (0.1, 0.5)
"""Effective shares of positives between which learning was found good: the paper's best are 0.1 to
0.2, with a marked fall above 0.5; on the built-in task of this repository the best is about 0.4,
and 0.05 is clearly worse than 0.1 (study `baseline`)."""


def effective_positive_share(p: float, c: float) -> float:
    """Return p~, the share of positives that baseline `c` makes a dataset with share `p` act like.

    Both ends are defined: c = -1 drops the negatives (p~ = 1 where p > 0), c = 1 the positives.

    Raises:
        ConfigError: p outside [0, 1] or c outside [-1, 1].

    """
    if not 0.0 <= p <= 1.0:
        raise ConfigError(f"share of positives {p}: expected a number from 0 to 1")
    if not -1.0 <= c <= 1.0:
        raise ConfigError(f"baseline {c}: with rewards of +1 and -1 it must lie from -1 to 1")
    positive, negative = p * (1.0 - c), (1.0 - p) * (1.0 + c)
    total = positive + negative
    return positive / total if total > 0 else p


def baseline_for_share(p: float, target: float) -> float:
    """Return the baseline c that makes a dataset with share `p` of positives act like `target`.

    Raises:
        ConfigError: the dataset has no positives or no negatives, so that no baseline can.

    """
    if not 0.0 <= target <= 1.0:
        raise ConfigError(f"effective share of positives {target}: expected a number from 0 to 1")
    if target == p:
        return 0.0
    if not 0.0 < p < 1.0:
        kind = "positives" if p == 0.0 else "negatives"
        raise ConfigError(
            f"the dataset has no {kind}, so no baseline gives it an effective share of positives "
            f"of {target}; curate a dataset with both, or leave effective_positive_share unset"
        )
    return (p - target) / (p + target - 2.0 * p * target)


def resolve_baseline(p: float, baseline: float | None, share: float | None) -> tuple[float, float]:
    """Return (c, p~), each from the other, whichever of the two the user set; c = 0 by default."""
    c = baseline_for_share(p, share) if share is not None else (baseline or 0.0)
    return c, effective_positive_share(p, c)


def share_advice(p: float, c: float, share: float) -> str | None:
    """Return what is to be said of an effective share outside `GOOD_SHARES`, if it is outside.

    Nothing is said where one side is absent: that is another method (supervised fine-tuning on
    positives, for instance), and chosen as such.
    """
    low, high = GOOD_SHARES
    if not 0.0 < share < 1.0 or low <= share <= high:
        return None
    few = (
        " With so few positives the first steps push away from wrong answers almost alone, and may "
        "take right ones along: keep the learning rate low, and warm it up."
    )
    return (
        f"the effective share of positives p~ is {share:.1%} (share p {p:.1%}, baseline c {c:+.2f})"
        f", outside {low:.0%} to {high:.0%}: the paper found accuracy best at 10 to 20 % and "
        "markedly lower above 50 %, and this repository's built-in task is learnt best at about "
        "40 %. Set train.effective_positive_share, or change curate.steps."
        f"{few if share < low else ''}"
    )
