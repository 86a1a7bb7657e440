"""A stage is opened here: the inputs that determine its result, whose directory it is, and whether
it is done.

The one place where fingerprints of results are computed. A stage's is a hash of its name and the
version of its data, its own sections, the fingerprints of what it reads, and the seed:

    with open_stage(directory, "grade", data_fingerprint(rollouts), grader, config) as stage:
        if stage.done is not None:
            return stage.done
        ...
        return stage.finish(rows=64, details={"grader": grader})
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from topr import hub
from topr.config import ModelConfig, PromptConfig, TaskConfig
from topr.progress import Progress
from topr.records import Split
from topr.store import Manifest, begin, read_manifest, shard_paths, write_manifest
from topr.tasks import Task, load_task
from topr.tasks.prompts import check_prompts, resolve_prompt
from topr.user_code import code_digest

DATA_VERSIONS = {
    "generate": 2, "grade": 2, "curate": 2, "train": 2, "evaluate": 2, "verify": 2, "import": 1,
}  # fmt: skip
"""Of each stage. Raised when its code makes other data of the same inputs: what an earlier version
began is then refused, not mixed with."""


def fingerprint(*parts: Any) -> str:
    """Return a hash of sections, records, names and numbers."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(part: Any) -> Any:
    if hasattr(part, "fixed"):  # a section of a recipe, a plan
        return part.fixed()
    if is_dataclass(part):
        return {field.name: getattr(part, field.name) for field in fields(part)}
    raise TypeError(f"{type(part).__name__} has no fingerprint")


def data_fingerprint(path: Path) -> Any:
    """Return what tells the data in a file or a directory of shards from other data, cheaply.

    Of what a stage made it is the stage's fingerprint; of files, size and time, or the commit of
    those from the hub (downloaded again, they have another time). Where they lie on this machine
    plays no part.
    """
    if path.is_dir() and (manifest := read_manifest(path)) is not None:
        return manifest.fingerprint
    files = shard_paths(path) if path.is_dir() else [path]
    return [_file_fingerprint(file, path.is_dir()) for file in files if file.is_file()] or None


def _file_fingerprint(file: Path, named: bool) -> list[Any]:
    if (place := hub.place_of(file)) is not None:
        return list(place)
    stat = file.stat()
    return [file.name if named else None, stat.st_size, stat.st_mtime_ns]


def grading_version(grader: str) -> str | None:
    """Return the version of the package that a grader comes from, or the hash of a user's file.

    None: it is topr's own.
    """
    if ":" in grader:
        return code_digest(grader)
    if grader != "reasoning_gym":
        return None
    from topr.grading.gym_datasets import version

    return version()


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenStage:
    """A stage's directory, held by this process until the stage is finished or given up."""

    name: str
    directory: Path
    fingerprint: str
    done: Manifest | None
    """What an earlier call left; None: the stage is still to be done."""

    def finish(
        self,
        *,
        rows: int,
        details: Mapping[str, Any] | None = None,
        files: Sequence[str] | None = None,
    ) -> Manifest:
        """Declare the stage done. Its files default to the shards in the directory."""
        names = files or [path.name for path in shard_paths(self.directory)]
        manifest = Manifest(
            stage=self.name,
            fingerprint=self.fingerprint,
            rows=rows,
            files=tuple(names),
            details=dict(details or {}),
        )
        write_manifest(self.directory, manifest)
        return manifest


def stage_fingerprint(name: str, *parts: Any) -> str:
    """Return what a stage's result is known by, with the version of its data in front."""
    return f"v{DATA_VERSIONS[name]}:{fingerprint(name, *parts)}"


@contextmanager
def open_stage(directory: Path, name: str, *parts: Any) -> Iterator[OpenStage]:
    """Open a stage: `parts` fix its result, together with its name and the version of its data.

    Raises:
        RunDirectoryError: what is there, finished or not, was made of other parts or by another
            version, or another process is making it.

    """
    found = stage_fingerprint(name, *parts)
    with begin(directory, name, found) as done:
        yield OpenStage(name=name, directory=directory, fingerprint=found, done=done)


def task_for(model: ModelConfig, section: TaskConfig, split: Split, progress: Progress) -> Task:
    """Return a task, with `prompt: auto` of its section decided by a model's tokenizer.

    Raises:
        ConfigError: prompts become plain text, and there is a system prompt.
        ModelError: there is no such tokenizer, or it has no way to render the prompts.
        DataError: the problems cannot be read.

    """
    if not isinstance(section, PromptConfig):
        return load_task(section)
    from topr.models.loading import load_tokenizer  # torch, which curation has no need of

    tokenizer = load_tokenizer(model)
    section = resolve_prompt(section, tokenizer, progress.say)
    task = load_task(section)
    check_prompts(task.problems(split), tokenizer)
    return task
