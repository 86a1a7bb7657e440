"""`--overwrite`: remove what topr made in a directory, and nothing else.

A file of another name than those that topr gives is somebody's own: then nothing is removed. Not
here: who may write into a directory (`topr.runs.directory`), and asking.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from topr.errors import RunDirectoryError
from topr.store import locked
from topr.store.lock import LOCK_FILE
from topr.store.manifest import is_begun, read_manifest

_MADE = re.compile(
    r"""
    recipe\.yaml | environment\.json | summary\.json | metrics\.jsonl? | report\.html   # a run
    | cell\.json | results\.(json|md) | (final|training|axis|iterations)\.png            # a study
    | manifest\.json | started\.json | \.lock | \..+\.tmp | removed\.json               # a stage
    | part-\d+\.parquet | \.part-\d+\.partial\.jsonl | evaluation\.json
    | log\.jsonl | probes\.jsonl | examples\.parquet | last-good\.safetensors           # training
    | diverged\.json
    """,
    re.VERBOSE,
)
"""Names of files that topr writes, anywhere in a run's, a study's or a training's directory."""
_OF_MODEL = re.compile(
    r"""
    (adapter_)?model(-\d+-of-\d+)?\.safetensors | (adapter_)?model\.safetensors\.index\.json
    | (\w+_)?config\.json | topr\.json | tokenizer\.(json|model) | special_tokens_map\.json
    | chat_template\.jinja | added_tokens\.json | vocab\.(json|txt) | merges\.txt | README\.md
    """,
    re.VERBOSE,
)
"""Names of files in a model's own directory, beside those."""
_MODELS = re.compile(r"model|adapter(-step-\d+)?|step-\d+")
_WHOLE = re.compile(r"checkpoint-\d+|\..+\.tmp")
"""Directories that are topr's with all that is in them."""


def removable(directory: Path, reads: Iterable[str] = ()) -> list[Path]:
    """Return the files that `--overwrite` removes: all of a directory, if topr made all of it.

    Args:
        directory: of a run, a study or a training; one that is empty or not there holds none.
        reads: paths and names that what is started now reads: none may be among them.

    Raises:
        RunDirectoryError: no run, study or training is there, or something else is, too.

    """
    if not directory.is_dir() or not any(directory.iterdir()):
        return []
    training = directory / "training"
    is_run = (directory / "recipe.yaml").is_file() and (directory / "environment.json").is_file()
    if not (is_run or is_begun(training) or read_manifest(training)):
        raise RunDirectoryError(
            f"{directory} holds nothing that topr knows as its own (a run has recipe.yaml and "
            "environment.json), so that --overwrite removes nothing there: give a new directory"
        )
    files = [path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir()]
    foreign = sorted(str(p.relative_to(directory)) for p in files if not _is_made(p, directory))
    if foreign:
        raise RunDirectoryError(
            f"{directory} holds what topr did not make ({', '.join(foreign[:5])}), and --overwrite "
            "removes nothing then: move it elsewhere, or give a new directory"
        )
    for name in reads:
        if Path(name).exists() and Path(name).resolve().is_relative_to(directory.resolve()):
            raise RunDirectoryError(
                f"{name} is read by what you start, and --overwrite would remove it with "
                f"{directory}: copy it elsewhere, or give a new directory"
            )
    return [path for path in files if path != directory / LOCK_FILE]


def remove(directory: Path, files: Iterable[Path]) -> None:
    """Remove what `removable` returned, and the directories that are empty then.

    Raises:
        RunDirectoryError: another process is writing there.

    """
    with locked(directory):
        for path in files:
            path.unlink()
        folders = sorted((p for p in directory.rglob("*") if p.is_dir()), reverse=True)
        for folder in folders:  # the deepest first
            folder.rmdir()


def names_in(values: Any) -> Iterator[str]:
    """Yield every text in the nested values of a recipe: some are paths."""
    if isinstance(values, str) and values:
        yield values
    inner = values.values() if isinstance(values, Mapping) else values
    if isinstance(inner, Iterable) and not isinstance(inner, str):
        for value in inner:
            yield from names_in(value)


def _is_made(path: Path, directory: Path) -> bool:
    *folders, name = path.relative_to(directory).parts
    if path.is_symlink():
        return False
    if any(_WHOLE.fullmatch(folder) for folder in folders) or _MADE.fullmatch(name):
        return True
    of_model = bool(folders) and _MODELS.fullmatch(folders[-1])
    return bool(of_model) and _OF_MODEL.fullmatch(name) is not None
