"""What to train graded completions with, and what to mend first, each line with its reason.

rows -> facts -> advice. No model is loaded, nothing is trained.
"""

from topr.advice.facts import Facts, read_facts
from topr.advice.rules import Advice, advise

__all__ = ["Advice", "Facts", "advise", "read_facts"]
