"""A dry run in lines of text: will it fit, how long will it take, and what is it made of."""

from collections import Counter
from collections.abc import Iterator, Sequence

from topr.config import Recipe
from topr.records import FinishReason, Outcome
from topr.report.text import visible
from topr.runs.plan.costs import Cost, Measured, Total, total
from topr.runs.plan.counts import NONE, Kind, Sizes, Span, Stage, planned
from topr.runs.plan.curating import Bounds
from topr.runs.plan.dry_run import DryRun
from topr.runs.plan.quantities import count, data_size, duration


def brief(recipe: Recipe, sizes: Sizes) -> str:
    """Return what a run says when it begins: what is known without drawing anything."""
    stages = planned(
        recipe,
        sizes,
        lambda curations: Bounds(problems=sizes.train, n=recipe.generate.n, curations=curations),
    )
    drawn = _sum(stage.completions for stage in stages if stage.kind is Kind.GENERATE)
    evaluated = _sum(stage.completions for stage in stages if stage.kind is Kind.EVALUATE)
    steps = _sum(stage.steps for stage in stages)
    models = sum(stage.models for stage in stages)
    return (
        f"the whole run: {span(drawn)} completions to draw and grade, {span(steps)} optimizer "
        f"steps, {span(evaluated)} completions to evaluate, {models} models to write "
        "(--dry-run says how long that takes)"
    )


def lines(found: DryRun) -> list[str]:
    """Return everything that was found, the answers first."""
    left = [stage for stage in found.stages if stage.folder not in found.done]
    if not left:
        return ["all stages are done: the run would read their results", "", *_setting(found)]
    return [
        *_answers(found),
        "",
        *_setting(found),
        "",
        *_table(found, left),
        *_speeds(found),
        "",
        *_prompt(found),
        *_examples(found),
    ]


def span(value: Span, *, about: bool = False) -> str:
    """Return a count, or the two that it lies between.

    >>> span(Span.of(4800)), span(Span(low=10, high=20)), span(Span.of(7), about=True)
    ('4,800', '10 to 20', 'about 7')
    """
    if value.low == value.high:
        return f"about {count(value.high)}" if about else count(value.high)
    return f"{count(value.low)} to {count(value.high)}"


def _answers(found: DryRun) -> Iterator[str]:
    """Yield how long, how much disk, how much memory, and whether there is as much."""
    recipe, measured = found.recipe, found.measured
    if measured is None:
        yield "time    not measured (--no-measure)"
        yield f"disk    not measured; {data_size(found.free_disk)} are free"
        yield f"memory  not measured; {found.device} has {data_size(found.memory)}"
        return
    whole = _total(found)
    low, high = duration(whole.seconds.low), duration(whole.seconds.high)
    middle = duration((whole.seconds.low + whole.seconds.high) / 2)
    rest = ", for what is left" if found.done else ""
    yield f"time    about {middle} ({low} to {high}){rest}{_not_counted(recipe)}"
    fits = _fits(whole.peak_disk, found.free_disk)
    stays, peak = data_size(whole.disk), data_size(whole.peak_disk)
    yield (
        f"disk    about {stays}{'' if stays == peak else f', {peak} at most on the way'}; "
        f"{data_size(found.free_disk)} free: {fits}"
    )
    drawn, at_a_time = len(measured.drawing.lengths), measured.drawing.side_by_side
    seen = ""
    if drawn < at_a_time:
        seen = f" as far as was seen, with {drawn} completions side by side of {at_a_time}"
    peak_memory = max(measured.drawing_memory, measured.training_memory)
    has, fits = data_size(found.memory), _fits(peak_memory, found.memory)
    yield f"memory  about {data_size(peak_memory)}; {found.device} has {has}: {fits}{seen}"
    share = measured.training.processor_share
    if share is not None and share < BUSY:
        alone = duration(share * (whole.seconds.low + whole.seconds.high) / 2)
        yield (
            f"but     other programs take much of this machine: topr had {share:.0%} of the cores "
            f"that it uses. With all of them it would be {alone}"
        )
    if found.survey is not None and found.survey.concerns:
        yield f"but     {found.survey.concerns[0].value}, of the {drawn} that were drawn: see below"


def _fits(needed: float, there: float) -> str:
    return "enough" if needed < 0.9 * there else "NOT ENOUGH"


def _not_counted(recipe: Recipe) -> str:
    return "" if recipe.verifier is None else ", without the verifier"


def _total(found: DryRun) -> Total:
    pairs = zip(found.stages, found.costs, strict=True)
    assert found.measured is not None  # noqa: S101 - where there are costs
    error = found.measured.drawing.error
    return total([each for stage, each in pairs if stage.folder not in found.done], error)


def _setting(found: DryRun) -> Iterator[str]:
    recipe, sizes = found.recipe, found.sizes
    parts = [
        f"{count(sizes.train)} problems to train on",
        f"{count(sizes.evaluation)} of the {recipe.evaluate.split} split to evaluate",
        f"iterations: {recipe.iterations}",
    ]
    if recipe.compare:
        parts.append(f"comparisons: {', '.join(recipe.compare)}")
    yield f"{recipe.name}: {'; '.join(parts)}"
    size = f" of {count(found.measured.training.parameters)} parameters" if found.measured else ""
    yield (
        f"model {recipe.model.path}{size}, engine {recipe.generate.engine}, objective "
        f"{recipe.train.objective}"
    )
    if recipe.verifier is not None:
        yield (
            "The verifier's own run is not counted: its problems are the completions that this "
            "run will draw. Once they are there, a recipe of the task `verifier` can be asked."
        )
    if recipe.loop.keep_models != "all":
        yield (
            f"loop.keep_models={recipe.loop.keep_models} deletes models on the way: disk is "
            "counted with all of them, and will be less"
        )
    if found.done:
        yield f"done already, and not counted: {', '.join(sorted(found.done))}"
    if found.begun:
        yield f"begun, and counted as a whole: {', '.join(sorted(found.begun))}"


BUSY = 0.6
"""Share of the cores below which a machine is called busy: work on several never has all of them.
"""
HEAD = ("stage", "completions", "tokens", "steps", "time", "disk")


def _table(found: DryRun, left: Sequence[Stage]) -> Iterator[str]:
    """Yield a line for each label; stages of several iterations are added up."""
    costs = dict(zip(found.stages, found.costs, strict=True)) if found.costs else {}
    rows: list[tuple[str, ...]] = [HEAD]
    for label in dict.fromkeys(stage.label for stage in left):
        rows.append(_row(label, [stage for stage in left if stage.label == label], costs, found))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    shown = [i for i in range(len(HEAD)) if any(row[i] for row in rows[1:])]
    for row in rows:
        first, *others = (
            f"{row[i]:<{widths[i]}}" if i == 0 else f"{row[i]:>{widths[i]}}" for i in shown
        )
        yield "  ".join([first, *others]).rstrip()
    if any(stage.estimated for stage in left):
        yield "about: what curation keeps is an estimate from the grades below."


def _row(
    label: str, stages: Sequence[Stage], costs: dict[Stage, Cost], found: DryRun
) -> tuple[str, ...]:
    about = any(stage.estimated for stage in stages)
    name = label if len(stages) == 1 else f"{label} (x {len(stages)})"
    completions, steps = _sum(s.completions for s in stages), _sum(s.steps for s in stages)
    own = [costs[stage] for stage in stages if stage in costs]
    tokens, seconds, disk = "", "", ""
    if found.measured is not None:
        passes = _sum(s.passes for s in stages) if stages[0].kind is Kind.TRAIN else completions
        tokens = count(round(passes.high * found.measured.drawing.mean, -2))
        seconds = duration(sum(each.seconds for each in own))
        disk = data_size(sum(each.stays for each in own))
    return (
        name,
        span(completions, about=about),
        tokens,
        "" if steps == NONE else span(steps, about=about and found.recipe.train.max_steps is None),
        seconds,
        disk,
    )


def _sum(values: Iterator[Span]) -> Span:
    return sum(values, start=NONE)


def _speeds(found: DryRun) -> Iterator[str]:
    measured = found.measured
    if measured is None:
        return
    yield ""
    yield _drawing_speed(measured)
    grading, training, mean = measured.grading, measured.training, measured.drawing.mean
    each = grading.completion_seconds
    rate = f"{_per_second(each)} completions/s" if each else "too fast to be measured"
    yield f"grading: {rate}, {duration(grading.start_seconds)} to start"
    yield (
        f"training: {_per_second(training.completion_seconds / mean)} completion tokens/s, "
        f"{duration(training.update_seconds)} for each update of {training.trained_parameters:,} "
        f"weights, {duration(training.start_seconds)} to start"
    )
    if training.score_seconds:
        rate = _per_second(training.score_seconds / mean)
        yield f"recomputing log mu: {rate} completion tokens/s"


def _drawing_speed(measured: Measured) -> str:
    drawing = measured.drawing
    step, token = drawing.step_and_token()
    rate = _per_second(step / drawing.side_by_side + token)
    return (
        f"drawing: about {rate} tokens/s with {drawing.side_by_side} completions side by side, "
        f"prompts {_per_second(drawing.prompt_seconds)} tokens/s; "
        f"{duration(measured.open_seconds + drawing.trial_seconds)} to start"
    )


def _per_second(seconds: float) -> str:
    """Return how many there are in a second, by what one takes: two digits."""
    return f"{float(f'{1 / max(seconds, 1e-9):.2g}'):,.0f}"


def _prompt(found: DryRun) -> Iterator[str]:
    prompts = found.prompts
    yield (
        f"prompts: {prompts.mean_tokens:,.0f} tokens on average, {prompts.longest:,} at most "
        f"({prompts.longest_name}); {found.recipe.generate.max_tokens} more for a completion"
    )
    yield f"---- the prompt of {prompts.name}, as the model is given it ----"
    yield visible(prompts.shown)
    yield "---- end of the prompt ----"


def _examples(found: DryRun) -> Iterator[str]:
    """Yield what was seen of grades, then a right completion and another one."""
    if found.graded is None or found.measured is None:
        return
    rows = found.graded.to_pylist()
    counts = Counter(row["grade"] for row in rows)
    cut = sum(row["finish_reason"] == FinishReason.LENGTH for row in rows)
    parts = [f"{n / len(rows):.0%} {name}" for name, n in counts.most_common()]
    yield ""
    yield (
        f"{len(rows)} completions of {len({row['problem_id'] for row in rows})} problems: "
        f"{', '.join(parts)}; {cut / len(rows):.0%} cut off by max_tokens; "
        f"{found.measured.drawing.mean:.0f} tokens on average"
    )
    if found.survey is not None and found.survey.concerns:
        yield visible(str(found.survey))
    right = [i for i, row in enumerate(rows) if row["grade"] == Outcome.CORRECT]
    other = [i for i, row in enumerate(rows) if row["grade"] != Outcome.CORRECT]
    for i in right[:1] + other[:1]:
        row = rows[i]
        how = "cut off" if row["finish_reason"] == FinishReason.LENGTH else "ended by itself"
        answer = "none" if row["answer"] is None else repr(visible(row["answer"]))
        yield (
            f"---- {row['grade']}: a completion of {row['problem_id']} ({how} after "
            f"{len(row['completion_ids'])} tokens; answer read: {answer}, gold: {row['gold']!r}) "
            "----"
        )
        yield visible(found.completions[i])
    yield "---- end of the completion ----"
