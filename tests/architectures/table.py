"""The table of docs/models.md: how each architecture is trained and drawn from. No tests here."""

import re
from importlib.metadata import version
from pathlib import Path

import zoo
from fitness import Outcome, Verdict

PAGE = Path(__file__).parents[2] / "docs/models.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
_ROW = re.compile(r"^\| `(.+?)` \| (.+?) \| (.+?) \|$", re.MULTILINE)


REASONS = {
    "that follow, and no sampler": "tokens that follow count",
    "changes its own weights": "changes its weights when run",
    "no backward pass in evaluation mode": "no gradient in evaluation mode",
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


def rendered(verdicts: dict[str, tuple[Verdict, Verdict]]) -> str:
    """Return the table, from the verdicts on trainer and engine."""
    rows = [
        f"| `{name}` | {label(trainer)} | {label(engine)} |"
        for name, (trainer, engine) in verdicts.items()
    ]
    rows += [f"| `{name}` | not tried: {why} | not tried |" for name, why in zoo.NOT_BUILT.items()]
    made = f"transformers {version('transformers')}, torch {version('torch').partition('+')[0]}"
    head = (f"With {made}, float32, on a CPU:", "", "| architecture | trainer | engine |")
    return "\n".join((*head, "| --- | --- | --- |", *rows))


def write(table: str) -> None:
    """Put the table into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def documented() -> dict[str, tuple[str, str]]:
    """Return what the page says: architecture to trainer and engine."""
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition(BEGIN)[2].partition(END)[0]
    return {name: (trainer, engine) for name, trainer, engine in _ROW.findall(table)}
