"""Graded rollouts to a training set: rules over columns, composed; pure, no files.

columns -> rules, one after the other -> which rows are kept, and why the others are not
"""

from topr.curation.columns import Columns, hash_lists
from topr.curation.compose import CurationResult, StepReport, curate
from topr.curation.rules import REASONS
from topr.curation.stopping import finished, max_candidates, most_per_problem, whole_draw_rule

__all__ = [
    "REASONS",
    "Columns",
    "CurationResult",
    "StepReport",
    "curate",
    "finished",
    "hash_lists",
    "max_candidates",
    "most_per_problem",
    "whole_draw_rule",
]
