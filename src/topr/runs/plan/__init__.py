"""What a run will do and take, before it does anything: `topr run --dry-run`.

recipe and task -> counts of each stage -> with what a few completions took: hours, disk, memory

Nothing is written where a run writes.
"""

from topr.runs.plan.dry_run import brief, dry_run

__all__ = ["brief", "dry_run"]
