"""Cards: README.md of a model or of rollouts, in Markdown with the hub's metadata on top.

Facts come in, text goes out: nothing is read, computed or uploaded here. Names, paths and whatever
else a stranger or a model may have written is escaped.
"""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from topr import hub
from topr._version import __version__
from topr.report.text import clip, visible

_LONGEST = 300
"""Characters of a name or path that are shown."""
_MARKDOWN = re.compile(r"([\\`*_\[\]{}()|#~!$])")
_MANY = ("pass@1", "maj@", "greedy", "invalid")

CITATION = """\
@article{leroux2025topr,
  title   = {Tapered Off-Policy REINFORCE: Stable and efficient reinforcement learning for LLMs},
  author  = {Le Roux, Nicolas and Bellemare, Marc G. and Lebensold, Jonathan and Bergeron, Arnaud and
             Greaves, Joshua and Fr{\\'e}chette, Alex and Pelletier, Carolyne and
             Thibodeau-Laufer, Eric and Toth, S{\\'a}ndor and Work, Sam},
  journal = {arXiv preprint arXiv:2503.14286},
  year    = {2025}
}"""  # noqa: E501 - as in README.md


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What is known of a model, from the files of its run or of its training alone."""

    base: str | None
    """Name or path of the model that everything started from."""
    base_is_local: bool = False
    """It was a directory: a name on the hub that reads alike is another model."""
    base_file: str | None = None
    """The GGUF file that its weights are from, for people."""
    lineage: Sequence[Sequence[str]] = field(default=())
    """What was made, in order: each a heading and lines, as `Lineage.steps` gives them."""
    results: Sequence[Mapping[str, Any]] = field(default=())
    """Models that were measured: name, iteration, metrics by key with `_ci`."""
    comparisons: Sequence[Mapping[str, Any]] = field(default=())
    """Paired differences, as summary.json has them."""
    measured_on: str | None = None
    """Problems and split, for people."""
    this: tuple[str, int] | None = None
    """Name and iteration of the one that the card is of, among the results."""
    recipe: str | None = None
    """The resolved recipe, YAML."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutFacts:
    """What is known of rollouts."""

    rows: int
    problems: int
    writers: Mapping[str, int]
    """Completions by `model (revision)`."""
    grades: Mapping[str, int]
    """Completions by outcome; those without a grade under `not graded`."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Of the manifest."""
    recipe: str | None = None


def model_card(facts: ModelFacts) -> str:
    """Return the card of a model."""
    base = facts.base
    on_hub = base is not None and not facts.base_is_local and hub.parse(base) is not None
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["topr", "reinforcement-learning", "arxiv:2503.14286"],
    }
    if on_hub:
        metadata["base_model"] = base
    parts = [
        "# Model card",
        f"Trained with topr {inline(__version__)}: offline reinforcement learning on stored, "
        f"graded completions. Base model: {inline(base) if base else 'not recorded'}."
        + (f" Its weights are from {inline(facts.base_file)}." if facts.base_file else ""),
        "## Results",
        *_results(facts),
        "## Lineage",
        *_lineage(facts.lineage),
        *_recipe(facts.recipe),
        *_ending("model", "that of the base model and of the data says what you may choose"),
    ]
    return _page(metadata, parts)


def rollouts_card(facts: RolloutFacts) -> str:
    """Return the card of rollouts. No completion is quoted in it."""
    metadata = {
        "task_categories": ["text-generation"],
        "tags": ["topr", "rollouts", "arxiv:2503.14286"],
        "configs": [{"config_name": "default", "data_files": "part-*.parquet"}],
    }
    written = [[inline(name), str(count)] for name, count in facts.writers.items()]
    graded = [[inline(name), str(count)] for name, count in facts.grades.items()]
    parts = [
        "# Rollouts",
        f"{facts.rows} completions of {facts.problems} problems, with token ids, written by topr "
        f"{inline(__version__)}. Each row is one completion; topr's page on data explains the "
        "columns.",
        "Completions are what a model wrote: treat them as text of a stranger.",
        "## Written by",
        _table(["model", "completions"], written),
        "## Grades",
        _table(["grade", "completions"], graded),
        *_details(facts.details),
        *_recipe(facts.recipe),
        *_ending("data set", "the problems' source and the model have theirs"),
    ]
    return _page(metadata, parts)


def inline(text: object) -> str:
    """Return text that Markdown and HTML show as it is, in one line and of bounded length.

    >>> inline("<b>*a* | b")
    '&lt;b&gt;\\\\*a\\\\* \\\\| b'
    """
    line = " ".join(clip(visible(str(text)), head=_LONGEST).split())
    return _MARKDOWN.sub(r"\\\1", html.escape(line, quote=False))


def fenced(text: str, kind: str) -> str:
    """Return a block of code that its own text cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{kind}\n{visible(text).strip()}\n{fence}"


def _page(metadata: Mapping[str, Any], parts: Iterable[str]) -> str:
    front = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def _results(facts: ModelFacts) -> list[str]:
    if not facts.results:
        return ["No evaluation lies beside this model."]
    keys = [
        key
        for wanted in _MANY
        for key in facts.results[-1]
        if key.startswith(wanted) and not key.endswith("_ci")
    ]
    rows = []
    for model in facts.results:
        here = (model["name"], model["iteration"]) == facts.this
        name = inline(model["name"]) + (" **(this model)**" if here else "")
        rows.append([name, str(model["iteration"]), *(_share(model, key) for key in keys)])
    where = f" on {inline(facts.measured_on)}" if facts.measured_on else ""
    lines = [
        f"Shares in %, with 95 % intervals over problems{where}.",
        _table(["model", "iteration", *map(inline, keys)], rows),
    ]
    if facts.comparisons:
        lines.append("Paired differences, in points:")
        lines.append("\n".join(f"- {_difference(entry)}" for entry in facts.comparisons))
    return lines


def _share(model: Mapping[str, Any], key: str) -> str:
    value, interval = model.get(key), model.get(f"{key}_ci")
    if value is None:
        return "-"
    shown = f"{100 * value:.1f}"
    return (
        shown if not interval else f"{shown} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    )


def _difference(entry: Mapping[str, Any]) -> str:
    low, high = entry["ci"]
    sure = "" if low > 0 or high < 0 else "; not beyond chance"
    return (
        f"{inline(entry['a'])} minus {inline(entry['b'])}, {inline(entry['metric'])}: "
        f"{100 * entry['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}{sure})"
    )


def _lineage(steps: Sequence[Sequence[str]]) -> list[str]:
    if not steps:
        return ["Not recorded."]
    lines = []
    for heading, *rest in steps:
        lines.append(f"- {inline(heading)}")
        lines += [f"  - {inline(line)}" for line in rest]
    return ["\n".join(lines)]


def _details(details: Mapping[str, Any]) -> list[str]:
    if not details:
        return []
    text = yaml.safe_dump(dict(details), sort_keys=False, allow_unicode=True)
    return ["## How they were made", fenced(text, "yaml")]


def _recipe(recipe: str | None) -> list[str]:
    return ["## Recipe", fenced(recipe, "yaml")] if recipe else []


def _ending(what: str, limits: str) -> list[str]:
    return [
        "## Licence",
        f"Not said yet. Say it here and as `license:` at the top of this file before others use "
        f"this {what}: {limits}.",
        "## Citation",
        fenced(CITATION, "bibtex"),
    ]


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
