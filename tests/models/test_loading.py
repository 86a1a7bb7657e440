"""Loading a model directory from disk, and what its fingerprint tells apart."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

import topr.models.files
import topr.models.loading
from tiny import EOS, TURN_END, save_tiny, tiny_model, tiny_tokenizer
from topr.config.sections import ModelConfig
from topr.errors import ModelError
from topr.models.devices import resolve_device
from topr.models.facts import eos_ids, model_facts
from topr.models.files import fingerprint
from topr.models.loading import load, load_tokenizer
from topr.models.places import identity


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", chat_template=True)


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "copy"))


def test_a_saved_model_comes_back(directory: Path) -> None:
    loaded = load(ModelConfig(path=str(directory), device="cpu"))
    original = tiny_model().state_dict()
    assert loaded.model.state_dict().keys() == original.keys()
    assert all(torch.equal(loaded.model.state_dict()[key], original[key]) for key in original)
    assert not loaded.model.training
    assert loaded.name == str(directory)
    assert loaded.revision == fingerprint(directory)
    messages = [{"role": "user", "content": "2 + 2?"}]
    text = loaded.tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>user\n2 + 2?<|im_end|>\n"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("bf16", torch.bfloat16),
        ("avx2", torch.float32),
    ],
)  # fmt: skip
def test_auto_is_bfloat16_where_the_processor_has_units_for_it(
    unit: str, expected: torch.dtype, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"architecture": "x", "avx512_bf16": False, unit: True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    loaded = load(ModelConfig(path=str(directory), dtype="auto", device="cpu"))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {expected}


def test_the_weights_have_the_dtype_asked_for(directory: Path) -> None:
    loaded = load(ModelConfig(path=str(directory), dtype="bfloat16", device="cpu"))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("builtin", "only the arithmetic task makes"),
        ("/no/such/model", "there is no directory /no/such/model"),
        ("./missing", "there is no directory missing"),
    ],
)
def test_what_is_no_model_is_refused(path: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(ModelConfig(path=path, device="cpu"))


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"directory without config\.json"):
        load(ModelConfig(path=str(tmp_path), device="cpu"))


def test_a_config_of_no_known_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(ModelError, match="cannot load the model"):
        load(ModelConfig(path=str(tmp_path), device="cpu"))


def test_a_missing_tokenizer_is_refused(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        load_tokenizer(ModelConfig(path=str(copy), device="cpu"))


def test_weights_that_lack_tensors_are_refused(copy: Path) -> None:
    """transformers would fill them with random numbers and a warning."""
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors .*layers\.1\.mlp\.up_proj"):
        load(ModelConfig(path=str(copy), device="cpu"))


def test_pickled_weights_are_not_loaded(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"(?s)cannot load the model .*model\.safetensors"):
        load(ModelConfig(path=str(copy), device="cpu"))
    with pytest.raises(ModelError, match="holds no model"):
        fingerprint(copy)


def test_every_source_of_eos_ids_counts() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.generation_config.eos_token_id = [TURN_END, 9]
    assert eos_ids(model, tokenizer) == {EOS, TURN_END, 9}
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    tokenizer.eos_token = None
    assert eos_ids(model, tokenizer) == frozenset()


def test_a_fingerprint_is_of_content_not_of_place(directory: Path, copy: Path) -> None:
    assert fingerprint(copy) == fingerprint(str(directory))
    assert fingerprint(copy).startswith("sha256:")


def test_a_fingerprint_changes_with_one_weight_or_setting(copy: Path) -> None:
    before = fingerprint(copy)
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    trained = fingerprint(copy)
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert len({before, trained, fingerprint(copy)}) == 3


def test_large_files_are_sampled_from_end_to_end(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topr.models.files, "_HASHED_BYTES", 4096)
    monkeypatch.setattr(topr.models.files, "_BLOCK_BYTES", 1024)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    assert len(content) > 8 * 4096
    seen = {fingerprint(copy)}
    for position in (0, len(content) // 3 + 100, len(content) - 1):
        changed = content.copy()
        changed[position] ^= 1
        weights.write_bytes(changed)
        seen.add(fingerprint(copy))
    assert len(seen) == 4


def test_a_fingerprint_needs_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds no model"):
        fingerprint(tmp_path)


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in {"cpu", "cuda"}
    with pytest.raises(ModelError, match="'gpu' is not a device's name"):
        resolve_device("gpu")
    with pytest.raises(ModelError, match="'cuda:99' is asked for, but this machine has"):
        resolve_device("cuda:99")


def test_a_hub_model_is_known_by_its_commit(monkeypatch):
    class Found:
        _commit_hash = "5f0b02c7"

    asked = []

    def from_pretrained(path, **settings):
        asked.append((path, settings["revision"]))
        return Found()

    monkeypatch.setattr("topr.models.places.AutoConfig.from_pretrained", from_pretrained)
    config = ModelConfig(path="meta-llama/Meta-Llama-3-8B-Instruct", revision="v1")
    assert identity(config) == "5f0b02c7"
    assert asked == [("meta-llama/Meta-Llama-3-8B-Instruct", "v1")]


def test_facts_are_read_without_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    config = ModelConfig(path=str(copy))
    GenerationConfig(eos_token_id=[TURN_END, 9]).save_pretrained(copy)
    facts = model_facts(config, tiny_tokenizer())
    assert facts.eos_ids == {EOS, TURN_END, 9}
    assert (facts.vocabulary, facts.positions) == (len(tiny_tokenizer()), 256)
    (copy / "generation_config.json").unlink()  # a model need not have one
    assert model_facts(config, tiny_tokenizer()).eos_ids == {EOS}
    with pytest.raises(ModelError, match="there is no directory"):
        model_facts(ModelConfig(path=str(copy / "none")), tiny_tokenizer())
