"""What of a directory is published, and its card. Files are chosen by name: what is not on the
list (a pickle, a log, a key) stays here.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from topr.errors import DataError
from topr.hub import CARD
from topr.publish.cards import ModelFacts, RolloutFacts, model_card, rollouts_card
from topr.runs.lineage import describe_gguf, read_lineage
from topr.store import copy_shard, read_manifest, refers, shard_paths, stream_tables

PUBLISHED: Mapping[str, tuple[str, ...]] = {
    "model": (
        "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
        "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
        "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
        "chat_template.jinja", "chat_template.json", "topr.json",
    ),
    "dataset": ("part-*.parquet", "manifest.json"),
}  # fmt: skip
"""Names of files that are uploaded, by kind of repository. Nothing else is."""

SETTINGS = ("optimizer", "learning_rate", "lr_scheduler_type")
"""Keys of topr.json that a card without a recipe shows one by one."""
_RUN_IS_ABOVE = 3
"""A model is at most so deep in its run: compare/NAME/model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """What an upload holds."""

    kind: str
    """`model` or `dataset`."""
    folder: Path
    files: Mapping[str, Path]
    """Name in the repository -> file, but for the card."""
    card: str
    """Text of README.md: the folder's own if it has one."""


def pack(directory: Path) -> Parcel:
    """Return what is published of a run (its kept model), a training, a model or rollouts.

    Raises:
        DataError: the directory holds none of these.

    """
    if shard_paths(directory):
        kind, folder = "dataset", directory
    else:
        kind, folder = "model", _model_folder(directory)
    files = {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_file() and any(fnmatch(path.name, name) for name in PUBLISHED[kind])
    }
    _refuse_adapter_of_a_path(folder)
    own = folder / CARD
    if own.is_file():
        card = own.read_text(encoding="utf-8")
    else:
        card = rollouts_card(_of_rollouts(folder)) if kind == "dataset" else model_card(_of(folder))
    return Parcel(kind=kind, folder=folder, files=files, card=card)


def with_whole_shards(parcel: Parcel, folder: Path) -> Parcel:
    """Return what is uploaded, with shards that hold all columns of their rows.

    Args:
        parcel: of a model, which stays as it is, or of rollouts.
        folder: an empty one, for shards that refer to the rows of another directory.

    """
    files = dict(parcel.files)
    for name, path in files.items():
        if refers(path):
            copy_shard(path, folder / name)
            files[name] = folder / name
    return replace(parcel, files=files)


def _refuse_adapter_of_a_path(folder: Path) -> None:
    config = folder / "adapter_config.json"
    if (folder / "config.json").is_file() or not config.is_file():
        return
    base = str(_json(config).get("base_model_name_or_path"))
    if Path(base).is_absolute():
        raise DataError(
            f"{config} names the base of the adapter by its path here, {base}, where nobody else "
            "finds it: write its name on the hub there (base_model_name_or_path), or publish the "
            "merged model"
        )


def _model_folder(directory: Path) -> Path:
    for folder in (directory, *_kept(directory), directory / "model"):
        configs = [folder / "config.json", folder / "adapter_config.json"]
        if any(path.is_file() for path in configs) and any(folder.glob("*.safetensors")):
            return folder
    raise DataError(
        f"{directory} holds nothing to publish: give a finished run, what `topr train` wrote, a "
        "model (config and *.safetensors) or rollouts (part-*.parquet)"
    )


def _kept(directory: Path) -> Iterator[Path]:
    kept = _json(directory / "summary.json").get("kept")
    if kept is None:
        return
    if kept["iteration"] == 0:
        raise DataError(
            f"{directory} kept the model that it started from, so there is nothing new to publish; "
            "give one of its iterations: iteration-01/model"
        )
    yield directory / f"iteration-{kept['iteration']:02d}" / "model"


def _of(folder: Path) -> ModelFacts:
    """Return what the files in and around a model say of it."""
    made = _json(folder / "topr.json")
    run = _run(folder)
    if run is None:
        base = _base(made.get("model"), made.get("revision"), made.get("gguf"))
        return ModelFacts(**base, lineage=_steps(made))
    lineage = read_lineage(run)
    first = lineage.rollouts[0]
    summary, recipe = _json(run / "summary.json"), (run / "recipe.yaml").read_text("utf-8")
    place = folder.resolve().parent.relative_to(run)
    iteration = int(place.name.removeprefix("iteration-")) if len(place.parts) == 1 else 1
    settings = yaml.safe_load(recipe)
    name = settings.get("train", {}).get("objective") if len(place.parts) == 1 else place.name
    measured = _json(folder.parent / "evaluation.json")
    return ModelFacts(
        **_base(first.model, first.revision, first.gguf),
        lineage=lineage.steps(),
        results=summary.get("models", ()),
        comparisons=summary.get("comparisons", ()),
        measured_on=_where(measured),
        this=(name, iteration),
        recipe=recipe,
    )


def _base(name: Any, revision: Any, gguf: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a card says of the model that everything started from."""
    if gguf is not None:  # Its directory here is a cache.
        local = gguf["revision"] is None
        return {
            "base": gguf["path"], "base_is_local": local, "base_file": describe_gguf(gguf)
        }  # fmt: skip
    # The revision of a directory is its fingerprint, that of a hub model a commit.
    return {"base": name, "base_is_local": str(revision).startswith("sha256:")}


def _of_rollouts(folder: Path) -> RolloutFacts:
    writers: Counter[str] = Counter()
    grades: Counter[str] = Counter()
    problems: set[str] = set()
    columns = ("model", "revision", "grade", "problem_id")
    for table in stream_tables(shard_paths(folder), columns):
        for row in table.to_pylist():
            revision = "" if row["revision"] is None else f" ({row['revision']})"
            writers[row["model"] + revision] += 1
            grades[row["grade"] or "not graded"] += 1
            problems.add(row["problem_id"])
    manifest, run = read_manifest(folder), _run(folder)
    return RolloutFacts(
        rows=sum(writers.values()),
        problems=len(problems),
        writers=writers,
        grades=grades,
        details={} if manifest is None else manifest.details,
        recipe=None if run is None else (run / "recipe.yaml").read_text("utf-8"),
    )


def _run(folder: Path) -> Path | None:
    above = folder.resolve().parents[:_RUN_IS_ABOVE]
    return next((path for path in above if (path / "recipe.yaml").is_file()), None)


def _steps(made: Mapping[str, Any]) -> list[list[str]]:
    """Return the one training that is known of a model without a run around it."""
    if not made:
        return []
    share, baseline = made.get("positive_share", 0.0), made.get("baseline", 0.0)
    line = (
        f"from {made.get('model')} ({made.get('revision')}), {made.get('steps')} steps of "
        f"{made.get('objective')}, on {made.get('rows')} completions; {share:.1%} positive, "
        f"baseline {baseline:+.2f}"
    )
    settings = [f"{key}: {made[key]}" for key in SETTINGS if key in made]
    lora = [f"{key} {value}" for key, value in made.get("lora", {}).items()]
    adapter = [f"lora: {', '.join(lora)}"] if lora else []
    return [[f"model {made.get('made')}", line, *settings, *adapter]]


def _where(measured: Mapping[str, Any]) -> str | None:
    if not measured:
        return None
    return f"{measured.get('problems')} problems of the split {measured.get('split')}"


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): was it cut short? Make it again") from error
    return found
