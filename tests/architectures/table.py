"""The table of docs/models.md: how each architecture is trained and sampled. No tests here."""

import csv
import re
from importlib.metadata import version
from pathlib import Path

import zoo
from fitness import Outcome, Verdict

DOCS = Path(__file__).parents[2] / "docs"
PAGE, TABLE = DOCS / "models.md", DOCS / "tables/architectures.csv"
HEAD = ("trainer", "engine", "architectures")
_MADE_WITH = re.compile(r"^With transformers .*:$", re.MULTILINE)


REASONS = {
    "that follow, and no sampler": "tokens that follow count",
    "changes its own weights": "changes its weights when run",
    "no gradient passes through it": "no gradient in evaluation mode",
    "the model ends at": "changes beyond its positions",
    "it returns no": "no cache",
    "nats a token at a length": "decoded, it is another function",
}
"""What messages hold, and the table says of them."""


def label(verdict: Verdict) -> str:
    """Return what the table says of a verdict: the way that is right, or why it is refused."""
    if verdict.outcome is not Outcome.REFUSED:
        return verdict.detail if verdict.outcome is Outcome.RIGHT else str(verdict.outcome)
    found = (why for words, why in REASONS.items() if words in verdict.detail)
    return f"refused: {next(found, 'fails')}"


def agrees(verdict: Verdict, said: str) -> bool:
    """Return whether the table says as much: right (the way may be another on other processors, in
    whose rounding a trial ends otherwise), or refused.
    """
    return (verdict.outcome is Outcome.REFUSED) == said.startswith(Outcome.REFUSED)


def write(verdicts: dict[str, tuple[Verdict, Verdict]]) -> None:
    """Write the table, from the verdicts on trainer and engine, and say in the page with what."""
    said = {name: (label(trainer), label(engine)) for name, (trainer, engine) in verdicts.items()}
    said |= {name: (f"not tried: {why}", "not tried") for name, why in zoo.NOT_BUILT.items()}
    names: dict[tuple[str, str], list[str]] = {}
    for name, ways in said.items():
        names.setdefault(ways, []).append(f"`{name}`")
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([HEAD, *((*ways, " ".join(each)) for ways, each in names.items())])
    made = f"transformers {version('transformers')}, torch {version('torch').partition('+')[0]}"
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_MADE_WITH.sub(f"With {made}, float32, on a CPU:", page), encoding="utf-8")


def documented() -> dict[str, tuple[str, str]]:
    """Return what the table says: architecture to trainer and engine."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: (row["trainer"], row["engine"])
        for row in rows
        for name in re.findall(r"`(.+?)`", row["architectures"])
    }
