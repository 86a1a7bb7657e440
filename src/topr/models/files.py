"""What lies in a model directory, and the name that its content has. Nothing is loaded here."""

import hashlib
import json
from pathlib import Path
from typing import Any

from topr.errors import ModelError

ADAPTER = "adapter_config.json"
REMOVED_FILE = "removed.json"
"""In a model directory whose weights were deleted: their fingerprint, and why."""
CONFIG_FILES = ("config.json", "generation_config.json", ADAPTER)
# Weights up to this size are hashed whole; of larger files, this much is spread over the file.
# 64 MiB takes a tenth of a second, and no training leaves all of it as it was.
_HASHED_BYTES = 64 * 2**20
_BLOCK_BYTES = 2**20


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter alone."""
    return (directory / ADAPTER).is_file() and not (directory / "config.json").is_file()


def base_of(directory: Path) -> dict[str, Any]:
    """Return `path` and `revision` of the model that an adapter belongs to."""
    found = json.loads((directory / ADAPTER).read_text(encoding="utf-8"))
    return {"path": found["base_model_name_or_path"], "revision": found.get("revision")}


def fingerprint(path: str | Path) -> str:
    """Name the weights and config of a local model directory by their content.

    sha256 over names, sizes and content of its config files and weights, as `sha256:` and 16 hex
    digits. Files above 64 MiB are sampled: 64 blocks of 1 MiB, evenly spread, the first and the
    last included. It tells one training's result from another's; it is not safe from forgery.
    Two directories with the same files have the same fingerprint, wherever they are. Where weights
    were deleted (`topr.runs.retention`), it is the one that they had.

    Raises:
        ModelError: the directory holds no model.

    """
    directory = Path(path).expanduser()
    if (gone := removed(directory)) is not None:
        return str(gone["fingerprint"])
    configs = [directory / name for name in CONFIG_FILES if (directory / name).is_file()]
    weights = sorted(directory.glob("*.safetensors"))
    if not configs or not weights:
        raise ModelError(
            f"{directory} holds no model: expected config.json and *.safetensors; "
            "save one there with `model.save_pretrained`"
        )
    digest = hashlib.sha256()
    for file in (*configs, *weights):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        _hash_content(file, digest)
    return f"sha256:{digest.hexdigest()[:16]}"


def removed(directory: Path) -> dict[str, Any] | None:
    """Return what is noted of weights that were deleted; None where none were."""
    path = directory / REMOVED_FILE
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _hash_content(file: Path, digest: Any) -> None:
    """Feed a file to the digest: the whole, or evenly spread blocks of a large one."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _HASHED_BYTES:
            for block in iter(lambda: stream.read(_BLOCK_BYTES), b""):
                digest.update(block)
            return
        blocks = _HASHED_BYTES // _BLOCK_BYTES
        for number in range(blocks):
            stream.seek(number * (size - _BLOCK_BYTES) // (blocks - 1))
            digest.update(stream.read(_BLOCK_BYTES))
