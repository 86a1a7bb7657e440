"""How good a model is on held-out problems: graded rollouts, turned into numbers.

`score` needs graded rollouts only, whoever made them; `compare` sets two models side by side.
Drawing and grading them is the stage `topr.stages.evaluate`. The formulas are in `topr.metrics`,
the keys are explained in docs/metrics.md. Nothing here prints or draws a chart.
"""

from topr.evaluation.results import (
    RESULT_FILE,
    compare,
    headline,
    read_evaluation,
    write_evaluation,
)
from topr.evaluation.scoring import SCORED_COLUMNS, score

__all__ = [
    "RESULT_FILE",
    "SCORED_COLUMNS",
    "compare",
    "headline",
    "read_evaluation",
    "score",
    "write_evaluation",
]
