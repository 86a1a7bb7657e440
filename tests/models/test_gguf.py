"""GGUF files as models: what is converted, once, to what; and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

import topr.models.gguf
from tiny import EOS, TURN_END, tiny_model, tiny_tokenizer
from tiny_gguf import save_gguf
from topr.cli import app
from topr.config import ModelConfig, load_recipe
from topr.errors import ModelError
from topr.models.files import fingerprint
from topr.models.gguf import gguf_details, plain_model, unpack
from topr.models.loading import load
from topr.publish.upload import pack
from topr.runs.lineage import read_lineage
from topr.runs.loop import run
from topr.store import read_manifest, read_table

TEXT = "The answer is 1\n= what <|im_start|>ein Übel<|im_end|>"
RUN = [
    "task.train_problems=4", "task.validation_problems=0", "task.test_problems=3", "compare={}",
    "generate.n=4", "generate.max_tokens=8", "train.max_steps=2", "train.global_batch_size=8",
    "train.learning_rate=1e-2", "evaluate.n=2", "evaluate.pass_at=[1]", "evaluate.bootstrap=100",
    "grade.workers=1", "grade.truncated=grade", "grade.none_right=warn", "model.device=cpu",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPR_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    return save_gguf(tmp_path_factory.mktemp("models") / "model.gguf", tiny_model(), "Q8_0")


def rounded(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """What is left of a matrix in a quantized type."""
    number = GGMLQuantizationType[kind]
    plain = dequantize(quantize(weight.numpy(), number), number)
    return torch.from_numpy(np.array(plain)).to(torch.bfloat16)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_an_unquantized_file_gives_the_model_that_it_was_written_from(architecture, tmp_path):
    source = tiny_model(architecture)
    file = save_gguf(tmp_path / "plain.gguf", source)
    found = load(plain_model(ModelConfig(path=str(file), device="cpu")))
    ids = torch.arange(5, 90)[None]
    with torch.no_grad():
        assert torch.equal(found.model(ids).logits, source(ids).logits)
    assert found.model.config.dtype == torch.float32


@pytest.mark.parametrize(("architecture", "kind"), [("llama", "Q8_0"), ("qwen2", "Q4_1")])
def test_a_quantized_file_gives_its_rounded_weights_and_no_quantized_model(
    architecture, kind, tmp_path
):
    source = tiny_model(architecture)
    file = save_gguf(tmp_path / "model.gguf", source, kind)
    directory = unpack(str(tmp_path), file.name)
    found = load_file(directory / "model.safetensors")
    for name, weight in source.state_dict().items():
        expected = rounded(weight, kind) if weight.ndim == 2 else weight.to(torch.bfloat16)
        assert torch.equal(found[name], expected), name
    config = json.loads((directory / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    source = gguf_details(directory)["gguf"]
    assert (source["path"], source["file"]) == (str(tmp_path), "model.gguf")
    assert source["tensors"].keys() == {"F32", kind}


def test_the_tokenizer_its_template_and_all_ends_come_along(model_file):
    directory = unpack(str(model_file.parent), model_file.name)
    found, source = AutoTokenizer.from_pretrained(directory), tiny_tokenizer(chat_template=True)
    assert found(TEXT).input_ids == source(TEXT).input_ids
    chat = [{"role": "user", "content": "1 + 1?"}]
    kinds = {"tokenize": False, "add_generation_prompt": True}
    assert found.apply_chat_template(chat, **kinds) == source.apply_chat_template(chat, **kinds)
    # The file names </s> alone; transformers adds <|endoftext|>, which the model does not know.
    config = json.loads((directory / "generation_config.json").read_text())
    assert config["eos_token_id"] == [EOS, TURN_END]
    assert max(found("<|endoftext|>").input_ids) < len(source) == len(found)


def test_two_roundings_of_one_matrix_are_tied_again_to_the_output_matrix(tmp_path):
    source = tiny_model("qwen2", tie_word_embeddings=True)
    save_gguf(tmp_path / "model.gguf", source, "Q4_1", head="Q8_0")
    directory = unpack(str(tmp_path), "model.gguf")
    assert json.loads((directory / "config.json").read_text())["tie_word_embeddings"] is True
    stored = load_file(directory / "model.safetensors")
    assert "lm_head.weight" not in stored
    tied = stored["model.embed_tokens.weight"]
    weight = source.state_dict()["lm_head.weight"]
    assert torch.equal(tied, rounded(weight, "Q8_0"))
    assert not torch.equal(tied, rounded(weight, "Q4_1"))


@pytest.mark.parametrize(("kind", "apart"), [("Q8_0", None), ("F32", 1e-3)])
def test_two_matrices_that_differ_are_not_tied(kind, apart, tmp_path):
    source = tiny_model("llama")
    embeddings, head = source.get_input_embeddings().weight, source.get_output_embeddings().weight
    if apart is not None:  # nothing was rounded, so what differs is another matrix
        head.data = embeddings.data * (1 + apart)
    save_gguf(tmp_path / "model.gguf", source, kind)
    directory = unpack(str(tmp_path), "model.gguf")
    assert json.loads((directory / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in load_file(directory / "model.safetensors")


def test_a_file_is_converted_once_and_anew_when_it_changes(
    model_file, tmp_path, cache, monkeypatch
):
    moved = tmp_path / "models/model.gguf"
    moved.parent.mkdir()
    moved.write_bytes(model_file.read_bytes())
    first = unpack(str(moved.parent), moved.name)
    assert first.parent == cache / "gguf"
    assert not list(first.parent.glob(".*"))
    with monkeypatch.context() as patch:
        patch.setattr(topr.models.gguf, "_convert", None)  # not called
        patch.chdir(tmp_path)
        assert unpack("models", moved.name) == first
    # The same file elsewhere is the same model, and says where it was.
    assert fingerprint(first) == fingerprint(unpack(str(model_file.parent), model_file.name))
    assert gguf_details(first)["gguf"]["path"] == str(moved.parent)
    save_gguf(moved, tiny_model(seed=1), "Q8_0")
    other = unpack(str(moved.parent), moved.name)
    assert fingerprint(other) != fingerprint(first)


def test_a_section_names_the_file_by_its_key_or_in_its_path(model_file, monkeypatch):
    folder, name = str(model_file.parent), model_file.name
    asked = []
    monkeypatch.setattr(
        topr.models.gguf, "unpack", lambda *given: asked.append(given[:3]) or "made"
    )
    monkeypatch.chdir(model_file.parent)
    for section, expected in {
        ModelConfig(path=folder, gguf_file=name): (folder, name, None),
        ModelConfig(path=f"{folder}/{name}"): (folder, name, None),
        ModelConfig(path=name): (".", name, None),
        ModelConfig(path="owner/repo/q4.gguf", revision="v1"): ("owner/repo", "q4.gguf", "v1"),
    }.items():
        assert plain_model(section) == ModelConfig(path="made")
        assert asked.pop() == expected
    for other in ("owner/repo.gguf", "owner/repo", folder):  # a hub name may end like a file
        assert plain_model(ModelConfig(path=other)).path == other
    assert not asked


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: save_gguf(p, tiny_model(), "I8"), r"tensor types: F32, I8"),
        (lambda p: save_gguf(p, tiny_model(), leave_out="blk.1.ffn_up.weight"), "lack 1 tensors"),
        (lambda p: p.write_bytes(b"not a model" * 99), "cannot make a plain model.*unknown"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_leaves_nothing(make, said, tmp_path, cache):
    make(tmp_path / "bad.gguf")
    with pytest.raises(ModelError, match=said):
        unpack(str(tmp_path), "bad.gguf")
    assert not list((cache / "gguf").glob("*bad-*"))


def test_a_file_that_is_not_there_is_an_error_that_names_those_that_are(model_file):
    folder = model_file.parent
    with pytest.raises(ModelError, match=r"no file q4\.gguf; GGUF files there: model\.gguf"):
        unpack(str(folder), "q4.gguf")
    with pytest.raises(ModelError, match=r"set model\.gguf_file=model\.gguf"):
        load(ModelConfig(path=str(folder)))
    with pytest.raises(ModelError, match="plain_model"):
        load(ModelConfig(path=str(folder), gguf_file="model.gguf"))


def test_the_hub_and_the_package_missing_are_errors_that_say_so(model_file, monkeypatch):
    def unreachable(*given, **named):
        raise OSError("offline")

    monkeypatch.setattr(topr.models.gguf, "cached_file", unreachable)
    with pytest.raises(ModelError, match=r"cannot get q4\.gguf of 'owner/repo'.*offline"):
        unpack("owner/repo", "q4.gguf")
    monkeypatch.setattr(topr.models.gguf, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'topr\[gguf\]'"):
        unpack(str(model_file.parent), model_file.name)


def test_recipes_without_the_key_hash_as_they_did():
    assert "gguf_file" not in ModelConfig(path="m").fixed()
    assert ModelConfig(path="m", gguf_file="a.gguf").fixed()["gguf_file"] == "a.gguf"


@pytest.mark.slow
def test_a_run_starts_from_a_file_and_says_where_its_weights_came_from(model_file, tmp_path):
    place = [f"model.path={model_file.parent}", f"model.gguf_file={model_file.name}"]
    recipe = load_recipe("quickstart", [*RUN, *place])
    run(recipe, tmp_path / "run")
    run(recipe, tmp_path / "run")  # finished: nothing is done again, and nothing refused
    source = read_manifest(tmp_path / "run/iteration-01/training").details
    directory = unpack(str(model_file.parent), model_file.name)
    assert source["model"] == str(directory)
    said = "\n".join(line for lines in read_lineage(tmp_path / "run").steps() for line in lines)
    assert f"weights from model.gguf of {model_file.parent} (GGUF, sha256" in said
    card = pack(tmp_path / "run").card
    assert "Its weights are from model.gguf of" in card
    assert str(directory.parent) not in card.split("## Results")[0]


@pytest.mark.slow
def test_commands_take_the_path_of_a_file(model_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def topr(*arguments):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, (done.output, done.exception)

    topr("generate", "quickstart", "-m", model_file, "-o", "drawn", *RUN)
    topr("grade", "drawn", "-t", "arithmetic", "-o", "graded", "grade.truncated=grade")
    topr(
        "train", "graded", "-m", model_file, "-o", "trained", "--device", "cpu",
        "train.behavior_logprobs=recompute", "train.max_steps=1", "train.global_batch_size=8",
        "--behavior-model", model_file,
    )  # fmt: skip
    topr("eval", "quickstart", "-m", model_file, "-o", "measured", *RUN)
    made = json.loads((tmp_path / "trained/model/topr.json").read_text())
    assert made["gguf"]["file"] == "model.gguf"
    # Drawn and scored in float32, both from the bfloat16 weights: the same policy.
    assert made["behavior_gap"]["behavior_gap/sequence_max"] < 1e-3
    assert "Its weights are from model.gguf" in pack(tmp_path / "trained").card
    rows = read_table(tmp_path / "drawn")
    assert set(rows["revision"].to_pylist()) == {
        fingerprint(unpack(str(model_file.parent), model_file.name))
    }
