"""Cards: README.md of a model or of rollouts, in Markdown with the hub's metadata on top.

Facts come in, text goes out: nothing is read, computed or uploaded here. What a card says is in
`templates`; whatever is put into one is escaped, since a stranger or a model may have written it.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from topr import hub
from topr._version import __version__
from topr.report.text import clip, visible

if TYPE_CHECKING:
    from huggingface_hub import CardData

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

    @property
    def keys(self) -> list[str]:
        """Metrics that a card shows, in its order."""
        found = [key for key in self.results[-1] if not key.endswith("_ci")]
        return [key for wanted in _MANY for key in found if key.startswith(wanted)]


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
    from huggingface_hub import ModelCardData

    base = facts.base
    on_hub = base is not None and not facts.base_is_local and hub.parse(base) is not None
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["topr", "reinforcement-learning", "arxiv:2503.14286"],
        base_model=base if on_hub else None,
    )
    return _render("model.md.j2", metadata, facts)


def rollouts_card(facts: RolloutFacts) -> str:
    """Return the card of rollouts. No completion is quoted in it."""
    from huggingface_hub import DatasetCardData

    metadata = DatasetCardData(
        task_categories=["text-generation"],
        tags=["topr", "rollouts", "arxiv:2503.14286"],
        configs=[{"config_name": "default", "data_files": "part-*.parquet"}],
    )
    return _render("rollouts.md.j2", metadata, facts)


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
    return Markup(f"{fence}{kind}\n{visible(text).strip()}\n{fence}")  # noqa: S704  fenced


def _render(template: str, metadata: "CardData", facts: ModelFacts | RolloutFacts) -> str:
    # Every value that a template shows goes through `finalize`; only Markup is left as it is.
    environment = Environment(  # noqa: S701  Markdown: HTML's escapes would not do
        loader=PackageLoader("topr.publish"),
        finalize=lambda value: value if isinstance(value, Markup) else inline(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "difference": _difference,
        "fenced": fenced,
        "share": _share,
        "yaml": lambda value: yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True),
    }
    return environment.get_template(template).render(
        metadata=Markup(metadata.to_yaml()),  # noqa: S704  YAML, which escapes what it quotes
        version=__version__,
        facts=facts,
        citation=CITATION,
    )


def _share(model: Mapping[str, Any], key: str) -> str:
    value, interval = model.get(key), model.get(f"{key}_ci")
    if value is None:
        return "-"
    shown = f"{100 * value:.1f}"
    if interval:
        shown += f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    return Markup(shown)  # noqa: S704  numbers


def _difference(entry: Mapping[str, Any]) -> str:
    low, high = entry["ci"]
    sure = "" if low > 0 or high < 0 else "; not beyond chance"
    shown = f"{100 * entry['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}{sure})"
    return Markup(shown)  # noqa: S704  numbers
