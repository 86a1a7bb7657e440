"""The Hugging Face hub, wherever a path does: names to local files, rows of data sets, uploads.

The one place that talks to it for data. Models are loaded by name in `topr.models.loading`; what
is uploaded is chosen in `topr.publish.upload`. The token is the hub client's own affair
(`HF_TOKEN`, or what `hf auth login` stored): none is read, passed or written here.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topr.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from datasets import Dataset

CARD = "README.md"
SCHEME = "hf://datasets/"
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".gz")
_BARE = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOCAL_FILE = "a local JSONL or parquet file"
_SHARDS = "part-*.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubName:
    """A data set on the hub, or something in it.

    >>> parse("hf://datasets/openai/gsm8k/main/train.parquet@v1")
    HubName(repo='openai/gsm8k', file='main/train.parquet', revision='v1')
    """

    repo: str
    """`owner/name`."""
    file: str
    """Path of a file or folder in it; "" for the whole."""
    revision: str | None
    """Branch, tag or commit; None: the default branch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Uploaded:
    """What an upload left."""

    url: str
    """Of the commit."""
    kept_card: bool
    """The repository had a README.md, which was left alone."""


def parse(name: str) -> HubName | None:
    """Return what a name says: `hf://datasets/owner/name[/file][@revision]`, or `owner/name`.

    None for everything else, which is a path. Whether something of that name is on this machine is
    not looked at. (huggingface_hub's own parser wants the revision before the path.)

    Raises:
        ConfigError: `hf://` and something that is not a data set.

    """
    if name.startswith("hf:"):
        rest, _, revision = name.removeprefix(SCHEME).partition("@")
        parts = rest.strip("/").split("/")
        if not name.startswith(SCHEME) or len(parts) < 2 or not all(parts):
            raise ConfigError(
                f"{name!r} names no data set on the hub: write "
                f"{SCHEME}owner/name, with /file and @revision where they are needed"
            )
        return HubName(
            repo="/".join(parts[:2]), file="/".join(parts[2:]), revision=revision or None
        )
    if looks_like_path(name) or not _BARE.fullmatch(name):
        return None
    return HubName(repo=name, file="", revision=None)


def looks_like_path(name: str) -> bool:
    """Return whether no name on the hub is written like this."""
    return (
        name.endswith(SUFFIXES)
        or name.startswith(("/", "./", "../", "~"))
        or (name.count("/") > 1 and not name.startswith("hf:"))
    )


def local(name: str) -> Path:
    """Return the path of data: as it is, or of the hub's copy on this machine, downloaded if need
    be. A data set of topr's shards, or with one file of rows, needs no file in its name.

    Raises:
        ConfigError: as in `parse`.
        DataError: the hub cannot be reached, has no such data set or file, or has several files
            and the name does not say which.

    """
    found = parse(name)
    here = not name.startswith("hf:") and Path(name).exists()
    if found is None or here:
        return Path(name)
    if found.file:
        return _download(found, [found.file, f"{found.file}/*"]) / found.file
    files = [file for file in _files(found) if file.endswith(SUFFIXES)]
    folders = {str(Path(file).parent) for file in files if Path(file).match(_SHARDS)}
    if len(folders) == 1:
        folder = folders.pop()
        inside = "" if folder == "." else f"{folder}/"
        root = _download(found, [f"{inside}{_SHARDS}", f"{inside}manifest.json"])
        return root / folder
    if len(files) == 1:
        return _download(found, files) / files[0]
    listed = ", ".join(files[:10]) + (" ..." if len(files) > 10 else "")
    raise DataError(
        f"hub dataset {found.repo} has {len(files)} files of rows ({listed or 'none'}), expected "
        f"one: name a file or folder of it, {SCHEME}{found.repo}/FILE; `topr import` takes "
        "--subset and --split as well"
    )


def place_of(path: Path) -> tuple[str, str, str] | None:
    """Return repository, commit and name of a file in the hub's cache here; None for another."""
    for parent in path.parents:
        cache = parent.parent
        if cache.name == "snapshots" and cache.parent.name.startswith("datasets--"):
            return cache.parent.name, parent.name, path.relative_to(parent).as_posix()
    return None


def table(
    dataset: str,
    subset: str | None,
    split: str,
    *,
    revision: str | None = None,
    instead: str = _LOCAL_FILE,
) -> "Dataset":
    """Return one split of a data set, its rows on disk.

    Args:
        dataset: hub name.
        subset: one of its configurations; None where it has one only.
        split: name of the split on the hub.
        revision: branch, tag or commit; None: the default branch.
        instead: what a user could give in its place, for messages.

    Raises:
        DataError: the hub cannot be reached, or has no such data set, configuration or split.

    """
    import datasets

    at = {} if revision is None else {"revision": revision}
    name = f"{dataset} ({subset}, {split})" if subset else f"{dataset} ({split})"
    with _reached(name, instead, datasets.exceptions.DatasetsError):
        try:
            loaded: Dataset = datasets.load_dataset(dataset, subset, split=split, **at)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            if missing := _not_there(dataset, subset, split, at):
                raise DataError(f"hub dataset {dataset} {missing}") from error
            raise
        return loaded


def _not_there(dataset: str, subset: str | None, split: str, at: dict[str, str]) -> str | None:
    """Return what a data set lacks, with what it has instead; None where that is not the fault."""
    import datasets

    try:
        names = sorted(datasets.get_dataset_config_names(dataset, **at))
        if subset is None and len(names) > 1 and "default" not in names:
            return f"has several configurations, {', '.join(names)}: name one (task.subset)"
        if subset is not None and subset not in names:
            return (
                f"has no configuration {subset!r}, but {', '.join(names)}: name one of them "
                "(task.subset)"
            )
        splits = sorted(datasets.get_dataset_split_names(dataset, subset, **at))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError):
        return None
    if split in splits:
        return None
    return (
        f"has no split {split!r}, but {', '.join(splits)}: name one of them (task.split for "
        "training, task.test_split for the test)"
    )


def subsets(dataset: str, *, instead: str = _LOCAL_FILE) -> Sequence[str]:
    """Return the names of a data set's configurations, sorted.

    Raises:
        DataError: as in `table`.

    """
    import datasets

    with _reached(dataset, instead, datasets.exceptions.DatasetsError):
        return sorted(datasets.get_dataset_config_names(dataset))


def upload(
    repo: str,
    kind: str,
    files: Mapping[str, Path],
    card: str,
    *,
    private: bool,
    revision: str | None,
    replace_card: bool,
    message: str,
) -> Uploaded:
    """Put files and a card into a repository in one commit (`upload_folder` takes no text); the
    repository is made if it is not there.

    A card that the repository has stays, unless told otherwise: somebody may have written it.

    Args:
        repo: `owner/name`.
        kind: `model` or `dataset`.
        files: path in the repository -> file here.
        card: text of README.md.
        private: whether a repository that is made now is.
        revision: branch; made if it is not there. None: the default one.
        replace_card: overwrite a README.md that is there.
        message: of the commit.

    Raises:
        ConfigError: `repo` is not a name.
        ModelError: the hub cannot be reached or refuses (DataError where these are data).

    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if not _BARE.fullmatch(repo):
        raise ConfigError(f"{repo!r} is not a name on the hub: write owner/name")
    api = HfApi()
    at: dict[str, Any] = {"repo_type": kind, "revision": revision}
    try:
        api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, repo_type=kind, exist_ok=True)
        keep = not replace_card and api.file_exists(repo, CARD, **at)
        added = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        if not keep:
            added.append(CommitOperationAdd(CARD, card.encode("utf-8")))
        commit = api.create_commit(repo, added, commit_message=message, **at)
    except (OSError, ValueError) as error:
        failed = ModelError if kind == "model" else DataError
        raise failed(
            f"the hub did not take {repo}: {type(error).__name__}: {error}. Check the name, the "
            "connection, and that HF_TOKEN (or `hf auth login`) may write there"
        ) from error
    return Uploaded(url=str(commit.commit_url), kept_card=keep)


def _files(name: HubName) -> list[str]:
    from huggingface_hub import HfApi

    with _reached(name.repo):
        return sorted(
            HfApi().list_repo_files(name.repo, repo_type="dataset", revision=name.revision)
        )


def _download(name: HubName, patterns: list[str]) -> Path:
    """Return the folder of a copy that has the files of these patterns."""
    from huggingface_hub import snapshot_download

    with _reached(name.repo):
        copy = snapshot_download(
            name.repo, repo_type="dataset", revision=name.revision, allow_patterns=patterns
        )
    if not any(any(Path(copy).glob(pattern)) for pattern in patterns):
        raise DataError(
            f"hub dataset {name.repo} has no {patterns[0]} at "
            f"{name.revision or 'its default branch'}: look at its files"
        )
    return Path(copy)


@contextmanager
def _reached(
    name: str, instead: str = _LOCAL_FILE, also: type[Exception] = OSError
) -> Iterator[None]:
    """Turn what the hub's clients raise (an HTTP error is an OSError) into a DataError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, also) as error:
        raise DataError(
            f"hub dataset {name} cannot be loaded: {type(error).__name__}: {error}. Nothing of "
            f"that name is in {Path.cwd()} either: check the name, your access and the connection, "
            f"or give {instead}"
        ) from error
