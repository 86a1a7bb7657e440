"""Studies: a recipe varied in named arms, repeated over seeds, and what follows from the results.

`run_study` computes the cells and writes everything; `read_results` reads what it wrote. Heavy
imports happen in the processes that compute cells.
"""

from topr.studies.adding import add_objectives
from topr.studies.results import Results, read_results
from topr.studies.run import run_study, write_study

__all__ = ["Results", "add_objectives", "read_results", "run_study", "write_study"]
