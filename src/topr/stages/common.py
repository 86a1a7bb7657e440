"""What stages share: the mark that tells results apart, and a task as a model is asked."""

import hashlib
import json
from pathlib import Path
from typing import Any

from topr.config import ModelConfig, PromptConfig, Section, TaskConfig
from topr.progress import Progress
from topr.records import Split
from topr.store import read_manifest, shard_paths
from topr.tasks import Task, load_task
from topr.tasks.prompts import check_prompts, resolve_prompt


def fingerprint(*parts: Any) -> str:
    """Return a hash of everything that fixes a stage's result: sections, names, numbers."""
    values = [part.fixed() if isinstance(part, Section) else part for part in parts]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def content(path: Path) -> list[Any]:
    """Return what tells the content of a file or a directory of shards from another's, cheaply."""
    if path.is_dir():
        manifest = read_manifest(path)
        mark = manifest.fingerprint if manifest else None
        return [str(path.resolve()), mark, *((p.name, p.stat().st_size) for p in shard_paths(path))]
    stat = path.stat() if path.is_file() else None
    return [str(path.resolve()), (stat.st_size, stat.st_mtime_ns) if stat else None]


def task_for(
    model: ModelConfig, section: TaskConfig, split: Split, progress: Progress
) -> tuple[TaskConfig, Task]:
    """Return a task's section with `prompt: auto` decided by a model's tokenizer, and the task.

    Raises:
        ConfigError: prompts become plain text, and there is a system prompt.
        ModelError: there is no such tokenizer, or it has no way to render the prompts.
        DataError: the problems cannot be read.

    """
    if not isinstance(section, PromptConfig):
        return section, load_task(section)
    from topr.models.loading import load_tokenizer  # torch, which curation has no need of

    tokenizer = load_tokenizer(model)
    section = resolve_prompt(section, tokenizer, progress.say)
    task = load_task(section)
    check_prompts(task.problems(split), tokenizer)
    return section, task
