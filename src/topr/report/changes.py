"""What changed between two evaluations, problem by problem: counts of what is stored."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from topr.records import EvalResult
from topr.report.contents import Run
from topr.report.figures import Figure
from topr.report.svg import Axis, Plane
from topr.report.text import plural

BINS = 10
"""Bars of the figure on either side of zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """How many problems changed from one evaluation to another."""

    before: str
    after: str
    gained: int
    lost: int
    right: int
    """Right both times."""
    wrong: int
    """Wrong both times."""
    moved: float
    """Mean change of the share of right samples."""
    figure: Figure

    def address(self, change: str = "") -> str:
        """Return the address of these problems in the page's browser."""
        found = {"show": self.after, "next": self.before, "change": change}
        return "#" + urlencode({key: value for key, value in found.items() if value})


def changes(run: Run) -> list[Changes]:
    """Return what changed between each pair of evaluations that share problems."""
    found = []
    for before, after in run.pairs:
        one, two = (solved(run.evaluations[label]) for label in (before, after))
        shared = [(one[key], two[key]) for key in one if key in two]
        if shared:
            kinds = [(a[0], b[0]) for a, b in shared]
            moves = [b[1] - a[1] for a, b in shared]
            found.append(
                Changes(
                    before=before,
                    after=after,
                    gained=kinds.count((False, True)),
                    lost=kinds.count((True, False)),
                    right=kinds.count((True, True)),
                    wrong=kinds.count((False, False)),
                    moved=sum(moves) / len(moves),
                    figure=_figure(before, after, moves),
                )
            )
    return found


def solved(result: EvalResult) -> dict[str, tuple[bool, float]]:
    """Return of each scored problem whether it is solved, and the share of right samples.

    Solved: the greedy completion is right; without one, more than half of the samples are.
    """
    found = {}
    for row in result.per_problem:
        name, greedy = str(row["problem_id"]), row.get("greedy")
        if row.get("correct") is not None and row.get("samples"):
            share = row["correct"] / row["samples"]
            found[name] = (share > 0.5 if greedy is None else greedy > 0.5, share)
    return found


def chosen(results: Sequence[EvalResult], count: int, also: Collection[str] = ()) -> list[str]:
    """Return the first problems, and those that became right or wrong; in the problems' order.

    Args:
        results: one evaluation, or the two that matter.
        count: of each of the three kinds; of the changed ones those whose share moved most.
        also: problems that are asked for.

    """
    if not results:
        return []
    order = [str(row["problem_id"]) for row in results[-1].per_problem]
    one, two = (solved(result) for result in (results[0], results[-1]))
    moved = sorted(one.keys() & two.keys(), key=lambda key: (-abs(two[key][1] - one[key][1]), key))
    found = {*order[:count], *also}
    for kind in ((False, True), (True, False)):
        found.update([key for key in moved if (one[key][0], two[key][0]) == kind][:count])
    return [key for key in order if key in found]


def _figure(before: str, after: str, moves: Sequence[float]) -> Figure:
    """Problems by how far their share moved; the middle bar holds moves below 5 points."""
    width = 1 / BINS
    bins = range(-BINS, BINS + 1)
    counts: Mapping[int, int] = {
        place: sum(round(move * BINS) == place for move in moves) for place in bins
    }
    plane = Plane(
        x=Axis(title="change of the share right, points", low=-1.08, high=1.08, percent=True),
        y=Axis.around(counts.values(), zero=True, title="problems", whole=True),
    )
    marks = []
    for place, count in counts.items():
        color = "--positive" if place > 0 else "--negative" if place < 0 else "--other"
        says = f"{plural(count, 'problem')} moved by about {100 * place * width:+.0f} points"
        if count:
            low, high = (place - 0.42) * width, (place + 0.42) * width
            marks.append(plane.bar(low, high, count, says=says, color=color))
    title = f"Share right, {before} → {after}"
    return Figure(title=title, caption="", svg=plane.draw(marks, title=title))
