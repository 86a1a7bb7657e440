"""Where topr writes what in the directory of a run, a study or a training: paths, as patterns.

Rather too narrow than too wide: what is not named here, `--overwrite` does not remove. What a
recipe names (comparisons, arms) is taken from the recipe that lies in the directory.

    run: iteration-01/rollouts/part-00000.parquet  made    data/part-00000.parquet  somebody's own
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from topr.evaluation.results import RESULT_FILE
from topr.models.files import ADAPTER, REMOVED_FILE
from topr.runs.directory import iterations
from topr.stages.callbacks import COMPLETE
from topr.stages.probe import PROBES_FILE
from topr.stages.train import LOG_FILE
from topr.stages.verify import METRICS_FILE, VOTES_FILE
from topr.store.lock import LOCK_FILE
from topr.store.manifest import STARTED_FILE, is_begun, read_manifest
from topr.training.last_good import LAST_GOOD
from topr.training.ordering import ORDER_FILE
from topr.training.watch import WATCH_FILE
from topr.verifier.task import PROMPT_FILE

CELL = "cell.json"
CARD = "README.md"


def _any(*patterns: str) -> str:
    return f"(?:{'|'.join(patterns)})"


def _files(*names: str) -> str:
    return _any(*map(re.escape, names))


_STAGE = _any(
    r"part-\d{5}\.parquet", r"\.part-\d{5}\.partial\.jsonl",
    _files("manifest.json", STARTED_FILE, LOCK_FILE),
)  # fmt: skip
_MODEL = _any(
    r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?",
    r"(spiece|tokenizer|sentencepiece(\.bpe)?)\.model",
    _files(
        "config.json", "generation_config.json", ADAPTER, "topr.json", PROMPT_FILE, REMOVED_FILE,
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
    ),
)  # fmt: skip
_CHECKPOINT = _any(
    _MODEL, r"rng_state(_\d+)?\.pth", r"optimizer\.(pt|bin)", r"global_step\d+/[^/]+\.pt",
    r"(pytorch_model_fsdp|optimizer)_\d+/(\.metadata|__\d+_\d+\.distcp)",
    _files(
        "trainer_state.json", "training_args.bin", "scheduler.pt", "scaler.pt", "latest",
        "zero_to_fp32.py", "pytorch_model_fsdp.bin", COMPLETE, ORDER_FILE, WATCH_FILE, CARD,
    ),
)  # fmt: skip
_TRAINING = _any(
    _files(
        "manifest.json", STARTED_FILE, LOCK_FILE, LOG_FILE, PROBES_FILE, "examples.parquet",
        "diverged.json", LAST_GOOD,
    ),
    r"behavior-logprobs-[0-9a-f]{16}\.(arrow|parquet)",
    r"runs/([^/]+/)+events\.out\.tfevents\.[^/]+",
    rf"checkpoint-\d+/{_CHECKPOINT}",
)  # fmt: skip
_EVALUATION = rf"(?:{re.escape(RESULT_FILE)}|evaluation/(drawn/(greedy|sampled)/)?{_STAGE})"
_TRAINED = _any(
    rf"training/{_TRAINING}", rf"(model|adapter|snapshots/(adapter-)?step-\d+)/{_MODEL}",
    rf"(adapter|snapshots/adapter-step-\d+)/{re.escape(CARD)}",
    rf"snapshots/step-\d+/{_EVALUATION}",
)  # fmt: skip
_ITERATION = _any(rf"(rollouts|graded|dataset)/{_STAGE}", _TRAINED, rf"(validation/)?{_EVALUATION}")
_VOTES = _any(
    re.escape(VOTES_FILE),
    rf"scored/{re.escape(METRICS_FILE)}",
    rf"scored/((drawn|checks)/)?{_STAGE}",
)
_OF_RUN = _files(
    "recipe.yaml", "environment.json", LOCK_FILE, "metrics.jsonl", "summary.json", "report.html"
)
_OF_STUDY = _any(
    _files("recipe.yaml", "environment.json", LOCK_FILE, "results.json", "results.md"),
    "report.html", r"(final|training|axis|iterations)\.png",
)  # fmt: skip


def is_known(directory: Path) -> bool:
    """Return whether the directory is that of a run, a study or a training."""
    training = directory / "training"
    is_run = (directory / "environment.json").is_file() and bool(_recipe(directory))
    return is_run or is_begun(training) or read_manifest(training) is not None


def made_files(directory: Path) -> set[Path]:
    """Return the files that topr made in the directory of a run, a study or a training."""
    recipe = _recipe(directory)
    if "arms" in recipe:
        patterns = dict(_study(directory, recipe))
    elif recipe:
        patterns = dict(_run(directory))
    else:
        patterns = {directory: _any(_TRAINED, _files("report.html", LOCK_FILE))}
    return {
        path
        for home, pattern in patterns.items()
        for path in home.rglob("*")
        if not path.is_symlink() and path.is_file() and _matches(path, home, pattern)
    }


def _matches(path: Path, home: Path, pattern: str) -> bool:
    """Return whether a path fits; what a killed writer left counts as what it would have become."""
    parts = [re.sub(r"^\.(.+)\.tmp$", r"\1", part) for part in path.relative_to(home).parts]
    if not re.fullmatch(pattern, "/".join(parts)):
        return False
    if path.name != CARD:
        return True
    # peft writes a card into an adapter, before the adapter's config: a later one is somebody's.
    config = path.with_name(ADAPTER)
    return config.is_file() and path.stat().st_mtime_ns <= config.stat().st_mtime_ns


def _run(directory: Path, further: str = "") -> Iterator[tuple[Path, str]]:
    """Yield the directories of a run, its own and its verifier's, and what lies there."""
    recipe = _recipe(directory)
    last = int(recipe.get("iterations", 1))
    places = [f.name for f in iterations(directory) if int(f.name.partition("-")[2]) <= last]
    places += [f"compare/{re.escape(str(name))}" for name in recipe.get("compare") or ()]
    patterns = [_OF_RUN, rf"{_any(*places)}/{_ITERATION}", further]
    if recipe.get("verifier"):
        patterns.append(rf"candidates/(rollouts|graded)/{_STAGE}")
        yield from _run(directory / "verifier", rf"(base/)?{_VOTES}")
    yield directory, _any(*filter(None, patterns))


def _study(directory: Path, study: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield the directories of a study, its own and its cells', and what lies there."""
    yield directory, _OF_STUDY
    arms = _any("base", r"draws-[0-9a-f]{8}", *map(re.escape, study["arms"]))
    for folder in [*directory.glob("seed-*/*"), *directory.glob("sweep/*")]:
        home = folder.parent.name
        is_arm = re.fullmatch(rf"{arms}(-[-+.\de]+)?", folder.name) or _names_itself(folder)
        if is_arm and re.fullmatch(r"seed-\d+|sweep", home):
            yield from _run(folder, re.escape(CELL))


def _names_itself(folder: Path) -> bool:
    """Return whether a cell says that it is this folder's: of an arm that was added later."""
    try:
        cell = json.loads((folder / CELL).read_text(encoding="utf-8"))["cell"]
        arm, rate = cell["arm"], cell["rate"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return folder.name == (arm if rate is None else f"{arm}-{rate:g}")


def _recipe(directory: Path) -> dict[str, Any]:
    """Return the recipe or study in a directory; empty where none is that can be read."""
    try:
        found = yaml.safe_load((directory / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
