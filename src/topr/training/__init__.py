"""Training on graded completions: `TOPRTrainer` and its `TOPRConfig`.

No sampling, no grading here.
"""

from topr.training.arguments import TOPRConfig
from topr.training.behavior import BehaviorPolicies
from topr.training.trainer import TOPRTrainer

__all__ = ["BehaviorPolicies", "TOPRConfig", "TOPRTrainer"]
