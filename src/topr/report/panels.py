"""Which logged quantities of a training are drawn, and how to read them. No drawing here."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of the training diagnostics."""

    title: str
    caption: str
    unit: str
    """Of the y axis."""
    keys: tuple[str, ...]
    """One curve each, in a row of the training log."""
    percent: bool = False
    from_zero: bool = False
    noisy: bool = True
    """Draw the running mean over the logged values."""


SIGNED = (("positive", "--positive", "positives"), ("negative", "--negative", "negatives"))
"""Ending of a key, colour and name."""


def style_of(key: str) -> tuple[str, str] | None:
    """Return colour and name of a curve of one sign; None: it has the training's own.

    >>> style_of("weight/negative_below_0.01")
    ('--negative', 'negatives')
    """
    end = key.rpartition("/")[2]
    return next(((color, name) for sign, color, name in SIGNED if end.startswith(sign)), None)


PANELS = (
    Panel(
        "Loss",
        "The surrogate whose gradient is the update; its level means little, a jump means trouble.",
        "loss, nats",
        ("loss",),
    ),
    Panel(
        "Mean log-ratio, log ρ",
        "How much likelier the model makes a whole completion than the model that wrote it: "
        "positives should rise or hold, negatives should fall, without plunging.",
        "log ρ, nats per completion",
        ("log_ratio/positive", "log_ratio/negative"),
    ),
    Panel(
        "Mean weight",
        "The tapered ratio that multiplies an update (advantage left out): it closes on negatives "
        "as the model leaves them.",
        "weight",
        ("weight/positive", "weight/negative"),
        from_zero=True,
    ),
    Panel(
        "Negatives with weight below 0.01",
        "Share of the negatives that the model has already left behind and that teach it no more.",
        "% of negatives",
        ("weight/negative_below_0.01",),
        percent=True,
        from_zero=True,
    ),
    Panel(
        "Probe: correct answers",
        "Share of a few validation questions that the model on its way answers correctly; few, so "
        "only large changes mean something.",
        "% of questions",
        ("probe/accuracy",),
        percent=True,
        from_zero=True,
        noisy=False,
    ),
    Panel(
        "Probe: completions that end",
        "Share of the same completions that ended before the token limit; a fall means that the "
        "model forgets to stop.",
        "% of completions",
        ("probe/ended",),
        percent=True,
        from_zero=True,
        noisy=False,
    ),
    Panel(
        "Effective sample size",
        "How many equally weighted completions the batch is worth; a fall means that few "
        "completions make the update.",
        "completions",
        ("effective_sample_size",),
        from_zero=True,
    ),
    Panel(
        "Positives’ signed share of the gradient",
        "Positives’ part of the summed weights: near 1 means that positives alone drive the "
        "update.",
        "% of summed weights",
        ("gradient_share/positive",),
        percent=True,
    ),
    Panel(
        "Learning rate",
        "The schedule as it was applied.",
        "learning rate",
        ("learning_rate",),
        from_zero=True,
        noisy=False,
    ),
    Panel(
        "Gradient norm",
        "Before clipping; sustained growth announces collapse.",
        "L2 norm",
        ("grad_norm",),
        from_zero=True,
    ),
    Panel(
        "Tokens per second",
        "Completion tokens trained on per second of wall time.",
        "tokens/s",
        ("tokens_per_second",),
        from_zero=True,
    ),
)
