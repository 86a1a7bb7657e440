"""The built-in task: synthetic word problems of several steps. Loads no torch.

The base model that goes with it is made by `topr.tasks.arithmetic.base.base_model`.
"""

from topr.tasks.arithmetic.task import ArithmeticTask

__all__ = ["ArithmeticTask"]
