"""The results of studies as Markdown, and as one HTML file. Every number comes from results."""

import base64
import math
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from topr.config.study import BASE
from topr.errors import DataError
from topr.store import write_text_atomic
from topr.studies.efficiency import Efficiency, efficiencies
from topr.studies.figures import draw_figures
from topr.studies.results import Results, read_results
from topr.studies.summary import Decided, Estimate

TITLES = {
    "final": "Final accuracy: one dot per seed, mean and 95 % interval over seeds",
    "training": "Along training, means over seeds; curves: each seed and the running mean",
    "axis": "Mean and 95 % interval over seeds",
    "iterations": "Mean accuracy over seeds after each iteration",
}

HEAD = (
    "# Results\n\n"
    "Made by `topr results` from the studies' `results.json`: no table and no verdict is typed;\n"
    "readings are people's, from `notes.md` next to it.\n"
    "Intervals are 95 % over seeds (Student's t); claims are decided by differences seed by\n"
    "seed, each on its own: of twenty differences that are nothing, one is expected to look like\n"
    "something. Intervals hold for the rates that were chosen: what another choice would give is\n"
    "not in them. How arms are compared, and what is not equal between them:\n"
    "[Studies](studies.md).\n\n"
)
NOTES = "notes.md"
"""Beside a study's results: what people read in them."""
BUILT_IN = (
    "On the built-in task, which was made so that negatives have something to remove: see\n"
    "[the arithmetic task](arithmetic.md).\n\n"
)


def percent(value: float) -> str:
    """Return a share in percent, with one decimal."""
    return f"{100 * value:.1f}"


def interval(found: Estimate | None) -> str:
    """Return mean and interval of a share in percent; the interval ends where shares do."""
    if found is None:
        return "-"
    if math.isinf(found.low):
        return percent(found.mean)
    low, high = max(0.0, found.low), min(1.0, found.high)
    return f"{percent(found.mean)} [{percent(low)}, {percent(high)}]"


def short(rate: float) -> str:
    """Return a rate as people write it: 1e-4, 2.7e-6."""
    return re.sub(r"(\.0)?e([-+])0", r"e\2", f"{rate:.1e}")


def claim_line(found: Decided, tokens: float | None = None) -> str:
    """Return one sentence: the claim, the verdict, and the difference that decided it.

    Args:
        found: what was decided.
        tokens: sampled by the claim's arm, by those of the other; said where they differ.

    """
    claim, difference = found.claim, found.difference
    spread = "one seed, no interval"
    if not math.isinf(difference.low):
        spread = (
            f"95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f} over "
            f"{difference.seeds} seeds"
        )
    than = claim.than
    if claim.than_metric is not None:
        than = claim.than_metric + (f" of {than}" if than != claim.arm else "")
    bar = "" if claim.margin == 0 else f", asked for {100 * claim.margin:+.1f} or more"
    if tokens is not None and abs(tokens - 1) > 0.02:
        bar += f"; with {tokens:.0%} of its tokens drawn"
    return (
        f"{claim.says}: {found.verdict.value} ({claim.metric} of {claim.arm} less {than}: "
        f"{100 * difference.mean:+.1f} points, {spread}{bar})"
    )


def markdown(results: Results, figures: Sequence[str], notes: str = "") -> str:
    """Return one study's section: claims, table, sweep, figures, how it was made.

    Args:
        results: the study's.
        figures: addresses of its pictures, as the page will use them.
        notes: what people read in them, Markdown.

    """
    study = results.study
    lines = [
        f"## {study.name}",
        "",
        study.description[:1].upper() + study.description[1:] + ".",
        "",
    ]
    lines += [
        f"- **{line.partition(': ')[0]}**: {line.partition(': ')[2]}"
        for line in claim_lines(results)
    ]
    lines += ["", notes.strip(), ""] if notes else []
    lines += ["", *_table(results), "", *_fallen(results), *_sweep(results), ""]
    for address in figures:
        title = TITLES[Path(address).stem.rpartition("-")[2]]
        lines += [f"![{title}]({address})", ""]
    lines += [_made(results), ""]
    return "\n".join(lines)


def html(results: Results, figures: Sequence[Path]) -> str:
    """Return the study as one HTML file that needs nothing else."""
    environment = Environment(
        loader=PackageLoader("topr.studies"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    header, _, *rows = [_cells(line) for line in _table(results)]
    return environment.get_template("study.html.j2").render(
        study=results.study,
        claims=claim_lines(results),
        header=header,
        rows=rows,
        sweep=_sweep(results),
        figures=[(TITLES[path.stem], Markup(_data_address(path))) for path in figures],  # noqa: S704
        made=_made(results),
    )


def write_page(directories: Sequence[Path], page: Path, figures: Path) -> None:
    """Write the results of several studies as one Markdown page, with their figures next to it.

    Args:
        directories: of studies, in the page's order.
        page: the file to write.
        figures: directory of the figures, relative to the page's own.

    Raises:
        DataError: a directory holds no results, or the page is there and was not made by this.

    """
    if page.exists() and not page.read_text(encoding="utf-8").startswith(HEAD[:50]):
        raise DataError(
            f"{page} is there and was not made by `topr results`: nothing is overwritten; give "
            "another file"
        )
    found = [read_results(directory) for directory in directories]
    target = page.parent / figures
    target.mkdir(parents=True, exist_ok=True)
    sections = []
    for results, directory in zip(found, directories, strict=True):
        addresses = []
        for path in draw_figures(results, target, prefix=f"{results.study.name}-"):
            addresses.append(str(figures / path.name))
        notes = directory / NOTES
        read = notes.read_text(encoding="utf-8") if notes.is_file() else ""
        sections.append(markdown(results, addresses, read))
    tasks = {results.study.recipe["task"]["name"] for results in found}
    head = HEAD + (BUILT_IN if tasks == {"arithmetic"} else "")
    write_text_atomic(page, head + "\n".join(sections))


def claim_lines(results: Results) -> list[str]:
    """Return one sentence for each claim: what was asked, and what was found."""
    lines = []
    for found in results.claims():
        one, other = (results.tokens(arm) for arm in (found.claim.arm, found.claim.than))
        line = claim_line(found, one / other if one and other else None)
        if results.is_later(found.claim):
            line += ". This claim was added when the cells were there"
        lines.append(line)
    lines += [f"{claim.says}: {claim.metric} was not measured" for claim in results.unmeasured()]
    return lines + [efficiency_line(found) for found in efficiencies(results)]


def efficiency_line(found: Efficiency) -> str:
    """Return one sentence: how many times fewer tokens reach the same accuracy."""
    what = f"its own best accuracy ({percent(found.accuracy)} %, with {found.tokens:,.0f} tokens)"
    factor = found.factor
    if factor is None:
        return f"Tokens of {found.series} for the best of {found.other}: not reached by every seed"
    spread = "one seed"
    if not math.isinf(factor.high):
        spread = f"95 % interval {factor.low:.1f} to {factor.high:.1f} over {factor.seeds} seeds"
    bound = ""
    if found.bounded:
        bound = (
            f"; in {found.bounded} of {factor.seeds} seeds the fewest tokens of {found.series} "
            "were enough, so it may need fewer"
        )
    return (
        f"Tokens to the same accuracy: {found.other} needs {factor.mean:.1f} times those of "
        f"{found.series} for {what} ({spread}{bound})"
    )


def _table(results: Results) -> list[str]:
    metrics = [m for m in results.study.metrics if any(results.final(a, m) for a in results.arms)]
    lines = [
        "| | rate | " + " | ".join(f"{metric}, %" for metric in metrics) + " | tokens drawn |",
        "| --- " * (len(metrics) + 3) + "|",
    ]
    for arm in results.arms:
        cells = results.of(arm)
        rate = "" if cells[0].rate is None else short(cells[0].rate)
        tokens = results.tokens(arm)
        values = " | ".join(interval(results.final(arm, metric)) for metric in metrics)
        shown = "" if arm == BASE else f"{tokens:,.0f}"
        lines.append(f"| {results.label(arm)} | {rate} | {values} | {shown} |")
    return lines


def _fallen(results: Results) -> list[str]:
    """Say which trainings diverged."""
    counts = {arm: sum(c.diverged is not None for c in results.of(arm)) for arm in results.arms}
    lines = [
        f"{results.label(arm)}: training diverged with {count} of {len(results.of(arm))} seeds; "
        "such a model counts as one that gets nothing right."
        for arm, count in counts.items()
        if count
    ]
    return [*lines, ""] if lines else []


def _sweep(results: Results) -> list[str]:
    if not results.sweep:
        return []
    rates = sorted({float(rate) for swept in results.sweep.values() for rate in swept.pass_at_1})
    lines = [
        f"Rates were chosen on validation problems, with seed {results.study.tuning_seed} "
        f"({results.study.metric}, %; in bold the chosen one, the lowest within one standard error "
        "of the best; where the best was at an end, the next was tried):",
        "",
        "| | " + " | ".join(short(rate) for rate in rates) + " |",
        "| --- " * (len(rates) + 1) + "|",
    ]
    for arm, swept in results.sweep.items():
        found = {float(rate): percent(value) for rate, value in swept.pass_at_1.items()}
        found[swept.chosen] = f"**{found[swept.chosen]}**"
        shown = " | ".join(found.get(rate, "") for rate in rates)
        lines.append(f"| {results.label(arm)} | {shown} |")
    open_ended = [results.label(arm) for arm, swept in results.sweep.items() if swept.at_end]
    if open_ended:
        lines += ["", f"Still best at an end, so perhaps better beyond: {', '.join(open_ended)}."]
    return lines


def _made(results: Results) -> str:
    found = results.environment
    packages = found.get("packages", {})
    commits = f" ({', '.join(c[:10] for c in results.commits)})" if results.commits else ""
    return (
        f"`topr study {results.study.name} -o DIR`, seeds "
        f"{', '.join(map(str, results.study.seeds))}; {len(results.cells)} cells, "
        f"{round(results.seconds) / 60:.0f} minutes of work; topr {found.get('topr')}"
        f"{commits}, torch "
        f"{packages.get('torch')}, transformers {packages.get('transformers')}, "
        f"{found.get('cpu', {}).get('count')} CPU cores."
    )


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _data_address(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
