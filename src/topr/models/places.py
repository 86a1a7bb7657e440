"""Where a model lies, a directory or a name on the hub, and what it is known by. No weights."""

import logging
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from topr.config.sections import ModelConfig
from topr.errors import ModelError
from topr.models.files import CONFIG_FILES, fingerprint, removed

logger = logging.getLogger(__name__)


def identity(config: ModelConfig) -> str | None:
    """Return what rollouts of a model carry as its `revision`, without loading its weights.

    The fingerprint of a local directory; the commit of a model on the hub.

    Raises:
        ModelError: there is no such model.

    """
    directory = Path(config.path).expanduser()
    if config.gguf_file is None and directory.is_dir():
        if removed(directory) is None:  # weights that are gone have their name still
            checked_path(config)
        return fingerprint(config.path)
    return getattr(read_config(config), "_commit_hash", None) or config.revision


def read_config(config: ModelConfig) -> PreTrainedConfig:
    """Return a model's own config.

    Raises:
        ModelError: there is no such model.

    """
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(
            checked_path(config),
            revision=config.revision or "main",
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(cannot_load("model", config, error)) from error
    return found


def checked_path(config: ModelConfig, *, weights: bool = True) -> str:
    """Return what transformers is given: a model directory, or a name that may be the hub's.

    Without `weights` they may have been deleted: the tokenizer stays (`topr.runs.retention`).
    """
    path = config.path
    directory = Path(path).expanduser()
    if config.gguf_file is not None:
        raise ModelError(
            f"model.gguf_file={config.gguf_file} of {path} is not converted yet: from Python, give "
            "what topr.models.gguf.plain_model returns"
        )
    if path == "builtin":
        raise ModelError(
            "the path is `builtin`, which only the arithmetic task makes; "
            "give `model.path` a directory or a hub name"
        )
    if directory.is_dir():
        if not any((directory / name).is_file() for name in CONFIG_FILES):
            raise ModelError(f"{directory} {_what_is_missing(directory)}")
        if weights and (gone := removed(directory)) is not None:
            raise ModelError(
                f"the weights of {directory} were deleted ({gone['why']}): give a model that the "
                "run kept, or make this one again with loop.keep_models=all in another directory"
            )
        return str(directory)
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise ModelError(
            f"there is no directory {directory} (seen from {Path.cwd()}); "
            "check `model.path`, or give a hub name such as owner/name"
        )
    if "/" in path and directory.parent.is_dir():
        logger.warning(
            "there is no directory %s in %s: it is looked for on the hub", directory, Path.cwd()
        )
    return path


def _what_is_missing(directory: Path) -> str:
    files = sorted(file.name for file in directory.glob("*.gguf"))
    if files:
        return (
            f"has no config.json, but GGUF files ({', '.join(files)}): set "
            f"model.gguf_file={files[0]}, or give the path of the file, {directory / files[0]}"
        )
    return (
        "is a directory without config.json, so it holds no Hugging Face model; give the "
        "directory that `save_pretrained` wrote"
    )


def cannot_load(what: str, config: ModelConfig, error: Exception) -> str:
    """Say what could not be loaded, and what to check."""
    at = f" at revision {config.revision}" if config.revision else ""
    local = Path(config.path).expanduser().is_dir()
    where = "" if local else f" (no directory of that name is in {Path.cwd()})"
    return (
        f"cannot load the {what} {config.path!r}{at}{where}: {error}\n"
        "Expected a directory with config, tokenizer and safetensors, or the name of a causal "
        "language model on the hub (a GGUF file in it is named by model.gguf_file). Check the name "
        "and your access to it, or download it and give its path"
    )
