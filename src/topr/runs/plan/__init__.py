"""What a run will do and take, before it does anything: `topr run --dry-run`.

recipe and sizes -> counts of each stage -> with what a few completions took: hours, disk, memory

Nothing is written where a run writes.
"""

from topr.runs.plan.dry_run import DryRun, dry_run, sizes_of
from topr.runs.plan.text import brief, lines

__all__ = ["DryRun", "brief", "dry_run", "lines", "sizes_of"]
