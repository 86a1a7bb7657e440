"""Adapters: what wrote the rows, what is saved, and what loads again."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from command_line import write_jsonl
from rollouts_for_training import made_rows, plain_logprobs
from tiny import save_tiny, tiny_model, tiny_tokenizer
from topr.config import ModelConfig, Recipe, TrainConfig
from topr.errors import ConfigError, ModelError
from topr.models.adapters import check_adapter, put_adapter
from topr.models.files import fingerprint
from topr.models.loading import load
from topr.progress import Silent
from topr.runs.loop import run
from topr.stages import train_files
from topr.stages.train import train_model
from topr.training import TOPRConfig, TOPRTrainer


def test_mu_is_the_base_with_the_adapter_off(tmp_path):
    rows = made_rows(logprobs=False)
    trainer = TOPRTrainer(
        model=tiny_model(),
        args=TOPRConfig(
            output_dir=str(tmp_path), use_cpu=True, save_strategy="no", learning_rate=1e-30,
            behavior_logprobs="recompute", per_device_train_batch_size=16, disable_tqdm=True,
        ),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
    )  # fmt: skip
    with torch.no_grad():  # as if it had been trained before mu is asked for
        for name, p in trainer.model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    trainer.train()
    moved = 0.0
    for row, found in zip(rows, trainer.rows["behavior_logprobs"], strict=True):
        base = plain_logprobs(tiny_model(), row).detach()
        assert found == pytest.approx(base.tolist(), abs=1e-4)
        moved += (plain_logprobs(trainer.model, row).detach() - base).abs().sum().item()
    assert moved > 1.0  # the adapter is on again, and it matters
    first = trainer.state.log_history[0]
    assert abs(first["log_ratio/negative"]) > 0.01
    assert all(p.requires_grad == ("lora_" in n) for n, p in trainer.model.named_parameters())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a base, rows, and what was trained on them with and without merging."""
    folder = tmp_path_factory.mktemp("adapters")
    save_tiny(folder / "base")
    write_jsonl(folder / "rows.jsonl", made_rows())
    for name, merge in (("merged", True), ("alone", False)):
        train_model(
            ModelConfig(path=str(folder / "base"), device="cpu"),
            [folder / "rows.jsonl"],
            TrainConfig(
                lora={"r": 4, "merge": merge}, batch_size=8, learning_rate=0.1, optim="sgd",
                num_train_epochs=3, snapshots=(2,),
            ),
            folder / name,
            seed=0,
            progress=Silent(),
        )  # fmt: skip
    return folder


def logits(model):
    return model(input_ids=torch.arange(5, 25)[None]).logits.detach()


def test_a_merged_model_is_the_base_with_its_adapter(trained):
    base = logits(AutoModelForCausalLM.from_pretrained(trained / "base"))
    for model, adapter in (
        ("model", "adapter"),
        ("snapshots/step-000002", "snapshots/adapter-step-000002"),
    ):
        plain = AutoModelForCausalLM.from_pretrained(trained / "merged" / model)
        assert not any("lora" in name for name, _ in plain.named_parameters())
        adapted = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(trained / "base"), trained / "merged" / adapter
        )
        assert (logits(plain) - logits(adapted)).abs().max() < 1e-4
        assert (logits(plain) - base).abs().max() > 0.05
    assert (trained / "merged/model/tokenizer.json").is_file()
    assert not list(trained.rglob("*.bin"))


def test_mixed_precision_changes_nothing_of_what_is_merged(trained):
    """Under autocast the trained model gives other logits than its own weights do."""
    manifest = train_model(
        ModelConfig(path=str(trained / "base"), device="cpu"),
        [trained / "rows.jsonl"],
        TrainConfig(
            lora={"r": 4}, bf16=True, batch_size=8, learning_rate=0.1, optim="sgd", max_steps=3
        ),
        trained / "mixed",
        seed=0,
        progress=Silent(),
    )
    assert manifest.details["steps"] == 3
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(trained / "base"), trained / "mixed/adapter"
    )
    plain = AutoModelForCausalLM.from_pretrained(trained / "mixed/model")
    assert (logits(plain) - logits(adapted)).abs().max() < 1e-4


def test_an_adapter_alone_is_loaded_as_the_model_it_makes(trained):
    folder = trained / "alone/model"
    assert not (folder / "model.safetensors").exists()
    assert not (trained / "alone/adapter").exists()
    found = load(ModelConfig(path=str(folder), device="cpu"))
    merged = AutoModelForCausalLM.from_pretrained(trained / "merged/model")
    assert (logits(found.model) - logits(merged)).abs().max() < 1e-4
    assert found.revision == fingerprint(folder) != fingerprint(trained / "base")
    said = json.loads((folder / "topr.json").read_text())
    assert said["lora"]["r"] == 4
    assert said["revision"] == fingerprint(trained / "base")


def further(trained, start, output, **settings):
    return train_model(
        ModelConfig(path=str(trained / start / "model"), device="cpu"),
        [trained / "rows.jsonl"],
        TrainConfig(batch_size=8, learning_rate=0.01, optim="sgd", **settings),
        output,
        seed=0,
        progress=Silent(),
    )


def test_training_goes_on_from_a_merged_model_and_whole_from_an_adapter(trained, tmp_path):
    further(trained, "merged", tmp_path / "a", lora={"r": 2})
    assert (tmp_path / "a/adapter/adapter_model.safetensors").is_file()
    further(trained, "alone", tmp_path / "b")
    further(trained, "merged", tmp_path / "c")
    b, c = (AutoModelForCausalLM.from_pretrained(tmp_path / n / "model") for n in "bc")
    assert (logits(b) - logits(c)).abs().max() < 1e-4
    with pytest.raises(ConfigError, match="an adapter on an adapter"):
        further(trained, "alone", tmp_path / "d", lora={"r": 2})


def test_an_adapter_whose_model_is_gone_says_so(trained, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in (trained / "alone/model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "/nowhere/at/all"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"adapter alone, of the model /nowhere/at/all"):
        load(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantized_weights_need_their_package_and_a_gpu(trained, bits):
    with pytest.raises(ModelError, match=rf"lora\.quantize={bits} needs the package bitsandbytes"):
        load(ModelConfig(path=str(trained / "base"), device="cpu"), bits)


TIED = [
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["embed_tokens"]},
    {"target_modules": r".*\.(q_proj|embed_tokens)"},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
]


@pytest.mark.parametrize("layers", TIED, ids=str)
def test_an_adapter_on_a_tied_weight_is_refused(tmp_path, layers):
    def settings():  # peft notes in it what it was put on
        return LoraConfig(task_type="CAUSAL_LM", r=2, **layers)

    with pytest.raises(ModelError, match="whose weights another layer has too"):
        put_adapter(tiny_model(tie_word_embeddings=True), settings())
    put_adapter(tiny_model(), settings())
    for name, tied in (("tied", True), ("apart", False)):
        save_tiny(tmp_path / name, tie_word_embeddings=tied)
    with pytest.raises(ModelError, match="whose weights another layer has too"):
        check_adapter(str(tmp_path / "tied"), None, settings(), trust=False)
    check_adapter(str(tmp_path / "apart"), None, settings(), trust=False)


@pytest.mark.parametrize("known", ["config", "storage"])
def test_a_tie_is_seen_wherever_it_shows(known):
    model = tiny_model()
    if known == "config":  # as after a reload
        model.config.tie_word_embeddings = True
    else:  # another parameter over the same numbers
        shared = model.get_input_embeddings().weight
        model.get_output_embeddings().weight = torch.nn.Parameter(shared.detach())
    with pytest.raises(ModelError, match="tied embeddings"):
        put_adapter(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]))


def test_all_linear_leaves_tied_weights_alone():
    model = tiny_model(tie_word_embeddings=True)
    put_adapter(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))


def test_a_run_is_refused_before_anything_is_drawn(tmp_path):
    save_tiny(tmp_path / "base", tie_word_embeddings=True)
    recipe = Recipe(
        name="tied",
        model={"path": str(tmp_path / "base"), "device": "cpu"},
        task={"name": "arithmetic"},
        train={"lora": {"target_modules": ["lm_head"]}},
    )
    with pytest.raises(ModelError, match=r"'lm_head' of LlamaForCausalLM.*tied embeddings"):
        run(recipe, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.parquet"))


def test_layers_that_are_not_there_are_named(tmp_path):
    save_tiny(tmp_path / "base")
    with pytest.raises(ModelError, match=r"no adapter can be put on LlamaForCausalLM.*all-linear"):
        further_on(tmp_path, target_modules=("query_key_value",))


def further_on(folder, **lora):
    write_jsonl(folder / "rows.jsonl", made_rows())
    return train_model(
        ModelConfig(path=str(folder / "base"), device="cpu"),
        [folder / "rows.jsonl"],
        TrainConfig(batch_size=8, learning_rate=1.0, optim="sgd", lora=lora),
        folder / "out",
        seed=0,
        progress=Silent(),
    )


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")  # as meant
def test_embeddings_of_their_own_can_have_an_adapter(tmp_path):
    save_tiny(tmp_path / "base")
    further_on(tmp_path, r=2, target_modules=("lm_head", "embed_tokens", "q_proj"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "out/adapter"
    )
    assert (logits(merged) - logits(adapted)).abs().max() < 1e-4
    moved = logits(merged) - logits(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    assert moved.abs().max() > 0.05


def test_a_merge_that_changes_the_function_is_an_error(tmp_path, monkeypatch):
    """What a tie that nothing tells of would do."""
    from peft.tuners.lora import Linear

    save_tiny(tmp_path / "base")
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: torch.ones_like(self.weight))
    with pytest.raises(ModelError, match=r"added into its model, and kept apart.*logits differ"):
        further_on(tmp_path, r=2)
    assert not (tmp_path / "out/model").exists()


def test_what_was_written_must_load_as_it_was(tmp_path, monkeypatch):
    save_tiny(tmp_path / "base")
    written = train_files.load_model

    def otherwise(config):
        model = written(config)
        if not (Path(config.path) / "adapter_config.json").exists():
            with torch.no_grad():
                model.get_input_embeddings().weight[7:] = 0
        return model

    monkeypatch.setattr(train_files, "load_model", otherwise)
    with pytest.raises(ModelError, match=r"what loads of its files.*logits differ"):
        further_on(tmp_path, r=2)
    assert not (tmp_path / "out/model").exists()
