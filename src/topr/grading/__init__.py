"""Grading: the answer of a completion, read and compared with the gold answer. No rendering.

Graders are pure functions (`GRADERS`, or a user's `module:function`); `grade_all` and
`grade_table` run them in worker processes that can be killed. Importing this package loads
neither sympy nor pyarrow.
"""

from typing import TYPE_CHECKING, Any

from topr.grading.graders import GRADERS, Grader, needs_columns

if TYPE_CHECKING:
    from topr.grading.pool import grade_all
    from topr.grading.tables import counts, grade_table

__all__ = ["GRADERS", "Grader", "counts", "grade_all", "grade_table", "needs_columns"]

_LAZY = {
    "grade_all": "topr.grading.pool",
    "grade_table": "topr.grading.tables",
    "counts": "topr.grading.tables",
}


def __getattr__(name: str) -> Any:
    """Load what needs pydantic or pyarrow when it is asked for: workers need neither."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
