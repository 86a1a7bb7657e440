"""Which logged quantities of a training are drawn, and how to read them. No drawing here."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve of a panel."""

    key: str
    """In a row of the training log."""
    color: str | None = None
    """Named colour; defaults to the series' own."""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of the training diagnostics."""

    title: str
    caption: str
    curves: tuple[Curve, ...]
    tickformat: str = ""
    from_zero: bool = False
    """Fix the axis at zero: plotly draws a constant curve on a scale from -1 to 1 otherwise."""


SIGNED = (("positive", "--positive", "positives"), ("negative", "--negative", "negatives"))

PANELS = (
    Panel(
        "Loss",
        "The surrogate whose gradient is the update; its level means little, a jump means trouble.",
        (Curve("loss"),),
    ),
    Panel(
        "Mean log-ratio, log ρ",
        "How much likelier the model makes a whole completion than the model that wrote it: "
        "positives should rise or hold, negatives should fall, without plunging.",
        tuple(Curve(f"log_ratio/{key}", color, name) for key, color, name in SIGNED),
    ),
    Panel(
        "Mean weight",
        "The tapered ratio that multiplies an update (advantage left out): it closes on negatives "
        "as the model leaves them.",
        tuple(Curve(f"weight/{key}", color, name) for key, color, name in SIGNED),
    ),
    Panel(
        "Negatives with weight below 0.01",
        "Share of the negatives that the model has already left behind and that teach it no more.",
        (Curve("weight/negative_below_0.01", "--negative", "negatives"),),
        ".0%",
    ),
    Panel(
        "Probe: correct answers",
        "Share of a few validation questions that the model on its way answers correctly; few, so "
        "only large changes mean something.",
        (Curve("probe/accuracy"),),
        ".0%",
        from_zero=True,
    ),
    Panel(
        "Probe: completions that end",
        "Share of the same completions that ended before the token limit; a fall means that the "
        "model forgets to stop.",
        (Curve("probe/ended"),),
        ".0%",
        from_zero=True,
    ),
    Panel(
        "Effective sample size",
        "How many equally weighted completions the batch is worth; a fall means that few "
        "completions make the update.",
        (Curve("effective_sample_size"),),
    ),
    Panel(
        "Positives’ signed share of the gradient",
        "Positives’ part of the summed weights: near 1 means that positives alone drive the "
        "update.",
        (Curve("gradient_share/positive", "--positive", "positives"),),
        ".0%",
    ),
    Panel(
        "Learning rate",
        "The schedule as it was applied.",
        (Curve("learning_rate"),),
        from_zero=True,
    ),
    Panel(
        "Gradient norm",
        "Before clipping; sustained growth announces collapse.",
        (Curve("grad_norm"),),
    ),
    Panel(
        "Tokens per second",
        "Completion tokens trained on per second of wall time.",
        (Curve("tokens_per_second"),),
        "~s",
    ),
)
