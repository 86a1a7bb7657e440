"""Several runs as one: their results side by side, paired where problems are the same."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from topr.errors import DataError
from topr.evaluation import compare
from topr.records import EvalResult
from topr.report.changes import chosen
from topr.report.contents import Difference, Model, Run
from topr.report.rollouts import EVALUATION_PROBLEMS
from topr.report.tables import flat
from topr.report.text import visible


def changed_across(runs: Sequence[Run]) -> set[str]:
    """Return the problems to show of every run: some, and those that changed between results."""
    first, *others = [run.result for run in runs]
    pairs = [(first, other) for other in others if first and other]
    return {problem for pair in pairs for problem in chosen(pair, EVALUATION_PROBLEMS)}


def merge(runs: Sequence[Run], directories: Sequence[Path]) -> Run:
    """Return one record of several runs; everything in it is named after its run."""
    names = _names(runs, directories)
    named = [_renamed(run, name) for run, name in zip(runs, names, strict=True)]
    first = named[0]
    results = [run.end.label for run in named if run.end and run.result]
    pairs = [(results[0], other) for other in results[1:]] if first.result else []
    alike = _alike(runs)  # values of other problems are no change
    return Run(
        name=" and ".join(names),
        recipe={},
        recipe_text="\n".join(
            f"# {name}\n{run.recipe_text}" for name, run in zip(names, named, strict=True)
        ),
        environment={name: r.environment for name, r in zip(names, named, strict=True)},
        started=None,
        models=tuple(model for run in named for model in run.models),
        start=first.end if alike else None,
        end=named[-1].end if alike else None,
        differences=(
            *(d for before, after in pairs for d in _between(named, before, after)),
            *(d for run in named for d in run.differences),
        ),
        kept={},
        evaluations={label: e for run in named for label, e in run.evaluations.items()},
        pairs=(*pairs, *(pair for run in named for pair in run.pairs)),
        trainings=tuple(training for run in named for training in run.trainings),
        datasets=tuple(dataset for run in named for dataset in run.datasets),
        sources=tuple(source for run in named for source in run.sources),
        verifier=None,
        votes={},
        missing=tuple(name for run in named for name in run.missing),
        several=True,
        settings=_settings(runs, names),
    )


def _names(runs: Sequence[Run], directories: Sequence[Path]) -> list[str]:
    """What tells the runs apart: the recipes' names, the directories', or their paths."""
    for names in ([r.name for r in runs], [visible(d.resolve().name) for d in directories]):
        if len(set(names)) == len(names):
            return names
    return [visible(str(directory)) for directory in directories]


def _renamed(run: Run, name: str) -> Run:
    def of(text: str) -> str:
        return f"{name} · {text}"

    def model(found: Model) -> Model:
        return replace(found, name=of(found.name), label=of(found.label), run=name)

    return replace(
        run,
        models=tuple(map(model, run.models)),
        start=run.start and model(run.start),
        end=run.end and model(run.end),
        differences=tuple(replace(d, a=of(d.a), b=of(d.b)) for d in run.differences),
        evaluations={of(label): e for label, e in run.evaluations.items()},
        pairs=tuple((of(before), of(after)) for before, after in run.pairs),
        trainings=tuple(replace(t, label=of(t.label)) for t in run.trainings),
        datasets=tuple(replace(d, label=of(d.label)) for d in run.datasets),
        sources=tuple(replace(s, label=of(s.label)) for s in run.sources),
        missing=tuple(of(missing) for missing in run.missing),
    )


def _between(runs: Sequence[Run], before: str, after: str) -> list[Difference]:
    """The paired differences of two runs' results on the problems that both were asked."""
    found = {label: e for run in runs for label, e in run.evaluations.items()}
    one, two = found[after], found[before]
    shared = _asked(one) & _asked(two)
    if not shared:
        return []

    def only(result: EvalResult) -> EvalResult:
        rows = tuple(row for row in result.per_problem if str(row["problem_id"]) in shared)
        return replace(result, per_problem=rows)

    try:
        differences = compare(only(one), only(two))
    except (DataError, KeyError, TypeError, ValueError):  # none was scored, or not as it is now
        return []
    return [
        Difference(
            a=after, b=before, metric=d.metric, difference=d.difference, ci=d.ci,
            problems=len(shared), across=True,
        )
        for d in differences
    ]  # fmt: skip


def _alike(runs: Sequence[Run]) -> bool:
    """Whether every run has a result, and all are of the same problems."""
    asked = {_asked(run.result) if run.result else None for run in runs}
    return len(asked) == 1 and None not in asked


def _asked(result: EvalResult) -> frozenset[str]:
    return frozenset(str(row["problem_id"]) for row in result.per_problem)


def _settings(runs: Sequence[Run], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """What differs between the runs' recipes."""
    recipes = [dict(flat(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    return {
        key: {name: recipe.get(key, "—") for name, recipe in zip(names, recipes, strict=True)}
        for key in keys
        if len({recipe.get(key) for recipe in recipes}) > 1
    }
