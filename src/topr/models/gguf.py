"""GGUF files to ordinary model directories: dequantized once, saved as safetensors, cached.

`plain_model` is called where a model is named (a recipe, the command line), so that engines,
training, servers and cards know directories and hub names alone. Not here: loading those
(`topr.models.loading`).
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from topr.config.sections import ModelConfig
from topr.errors import ModelError
from topr.models.facts import eos_ids
from topr.models.loading import refuse_incomplete
from topr.progress import Progress, Silent

SUFFIX = ".gguf"
SOURCE_FILE = "gguf.json"
"""Beside the weights: which file they are from, and what it held."""
PLAIN_TYPES = frozenset({"F32", "F16", "BF16"})
"""Tensor types that are not quantized."""
SAME_MATRIX = 0.15
"""Largest relative distance of two quantized matrices that are roundings of one: 4-bit types reach
0.05 to 0.1, and matrices that were trained apart lie about 1 apart."""
END_TOKENS = (
    "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>",
    "<eos>", "</s>",
)  # fmt: skip
"""Tokens that end a text or a turn, by the names that model families give them."""
LAYOUT = "layout 1"
"""Changes when something else is written for the same file, so that old results are not taken."""


def plain_model(config: ModelConfig, progress: Progress | None = None) -> ModelConfig:
    """Return the section with a GGUF file replaced by the directory that it is converted to.

    A section that names no GGUF file is returned as it is. The file is named by `gguf_file`, or by
    a path that ends in it: `models/smollm2/model.gguf`, `owner/name/model.gguf` on the hub.

    Raises:
        ModelError: as `unpack`.

    """
    folder, file = _named_file(config)
    if file is None:
        return config
    directory = unpack(folder, file, config.revision, progress)
    return config.at(str(directory))


def _named_file(config: ModelConfig) -> tuple[str, str | None]:
    """Return the directory or hub name, and the name of the GGUF file in it, if one is named."""
    if config.gguf_file is not None:
        return config.path, config.gguf_file
    folder, _, name = config.path.rpartition("/")
    is_file = Path(config.path).expanduser().is_file()
    # A hub name has one slash, so with two the last part is a file in it.
    if name.endswith(SUFFIX) and (is_file or "/" in folder):
        return folder or ".", name
    return config.path, None


def unpack(
    path: str, gguf_file: str, revision: str | None = None, progress: Progress | None = None
) -> Path:
    """Return a model directory with the content of a GGUF file; it is made unless it is there.

    Quantised weights are dequantized as transformers does it and kept in bfloat16; a file that
    holds no quantized weights is kept in float32. Where the embeddings and the output matrix are
    two roundings of one matrix, as quantizers make them of a model that ties them, they are tied
    again, to the output matrix. The generation config names every token that ends a text. The
    directory lies in `$TOPR_CACHE/gguf` (by default `~/.cache/topr/gguf`) under a hash of the
    file's place and content, and appears there whole or not at all.

    Args:
        path: a directory, or a hub name.
        gguf_file: name of the file in it.
        revision: of a hub model.
        progress: where the conversion is announced.

    Raises:
        ModelError: there is no such file, the package gguf is missing, or transformers cannot
            dequantize what is in it.

    """
    if find_spec("gguf") is None:
        raise ModelError(
            f"{gguf_file} is a GGUF file, and the package gguf, which reads it, is not installed: "
            "pip install 'topr[gguf]' (or: pip install gguf)"
        )
    file = _local(path, gguf_file, revision)
    root = Path(os.environ.get("TOPR_CACHE", "~/.cache/topr")).expanduser() / "gguf"
    source = {"path": _place(path), "file": gguf_file, "revision": _commit(file)}
    source["sha256"] = _sha256(file)
    name = hashlib.sha256(json.dumps([LAYOUT, source]).encode()).hexdigest()[:16]
    directory = root / f"{file.stem}-{name}"
    if (directory / "config.json").is_file():
        return directory
    size = file.stat().st_size / 2**20
    (progress or Silent()).say(f"converting {file} ({size:.0f} MiB), once, to {directory}")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{directory.name}-") as made:
        target = Path(made) / "model"
        found = _convert(file, target)
        text = json.dumps(source | found, indent=2) + "\n"
        (target / SOURCE_FILE).write_text(text, encoding="utf-8")
        try:
            target.rename(directory)
        except OSError:  # another process was first
            if not (directory / "config.json").is_file():
                raise
    return directory


def gguf_details(directory: str | Path) -> dict[str, Any]:
    """Return what manifests say of a model that was converted here; nothing of any other.

    It is one key, `gguf`, with `path`, `file`, `revision` and `sha256` of the file, `tensors` (how
    many it has of each type) and `dtype` (of the converted weights).
    """
    path = Path(directory).expanduser() / SOURCE_FILE
    return {"gguf": json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else {}


def _local(path: str, gguf_file: str, revision: str | None) -> Path:
    directory = Path(path).expanduser()
    if directory.is_dir():
        file = directory / gguf_file
        if not file.is_file():
            there = ", ".join(sorted(each.name for each in directory.glob(f"*{SUFFIX}"))) or "none"
            raise ModelError(
                f"{directory} has no file {gguf_file}; GGUF files there: {there}. "
                "Correct model.gguf_file"
            )
        return file
    try:
        return Path(str(cached_file(path, gguf_file, revision=revision or "main")))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot get {gguf_file} of {path!r} (no directory of that name is in {Path.cwd()}): "
            f"{error}\nExpected a directory with that file, or a hub name. Check model.path and "
            "model.gguf_file"
        ) from error


def _place(path: str) -> str:
    directory = Path(path).expanduser()
    return str(directory.absolute()) if directory.is_dir() else path


def _commit(file: Path) -> str | None:
    """Return the commit of a file in the hub's cache; None for another file."""
    return file.parent.name if file.parent.parent.name == "snapshots" else None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _convert(file: Path, target: Path) -> dict[str, Any]:
    """Write the model directory; return what the file held and what was made of it."""
    types: Counter[str] = Counter()
    try:
        types += _tensor_types(file)
        quantized = not set(types) <= PLAIN_TYPES
        dtype = torch.bfloat16 if quantized else torch.float32
        model, tokenizer = _load(file, dtype)
    except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"transformers cannot make a plain model of {file} (tensor types: "
            f"{', '.join(sorted(types)) or 'unknown'}): {error}. Take another file of this model "
            "(Q8_0, Q6_K, Q4_K_M and F16 can be read), or its safetensors"
        ) from error
    _make_plain(model, quantized)
    model.generation_config.eos_token_id = _ends(model, tokenizer)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    _drop_tokens(target, _vocabulary(model))
    return {"tensors": dict(sorted(types.items())), "dtype": str(dtype).removeprefix("torch.")}


def _tensor_types(file: Path) -> Counter[str]:
    import gguf

    reader = gguf.GGUFReader(file)
    if (parts := reader.get_field("split.count")) is not None and parts.contents() > 1:
        raise ValueError(
            f"it is one of {parts.contents()} parts (merge them: llama-gguf-split --merge)"
        )
    return Counter(tensor.tensor_type.name for tensor in reader.tensors)


def _load(file: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    place: dict[str, Any] = {"gguf_file": file.name}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        file.parent,
        dtype=dtype,
        quantization_config=GgufConfig(gguf_file=file.name, dequantize=True),
        output_loading_info=True,
        **place,
    )
    model, report = loaded
    refuse_incomplete(str(file), report)
    return model.eval(), AutoTokenizer.from_pretrained(file.parent, **place)


def _make_plain(model: PreTrainedModel, quantized: bool) -> None:
    """Take off what says that the weights are quantized, and tie what was one matrix."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if embeddings.weight is head.weight or embeddings.weight.shape != head.weight.shape:
        return
    one, other = embeddings.weight.data.float(), head.weight.data.float()
    if (one - other).norm() <= (SAME_MATRIX if quantized else 0.0) * other.norm():
        embeddings.weight = head.weight
        model.config.tie_word_embeddings = True


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of every token that ends a text: the file names only one of them."""
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    found = {vocabulary[text] for text in END_TOKENS if text in vocabulary}
    ends = eos_ids(model, tokenizer) | (found & special)
    return sorted(token for token in ends if token < _vocabulary(model))


def _vocabulary(model: PreTrainedModel) -> int:
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def _drop_tokens(folder: Path, vocabulary: int) -> None:
    """Take tokens out of a saved tokenizer that the model has no embeddings for.

    transformers adds those that its tokenizer classes have by default (`<|endoftext|>`).
    """
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["added_tokens"] = [each for each in values["added_tokens"] if each["id"] < vocabulary]
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
