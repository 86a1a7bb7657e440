"""What of the vllm engine needs no vLLM: settings. Drawing is tested in tests/on_vllm."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from topr.config import GenerateConfig, ModelConfig
from topr.config.engines import VllmConfig
from topr.engines import check_engine, vllm
from topr.errors import ConfigError
from topr.records import SamplingParams


@pytest.mark.parametrize("name", [None, "vllm"])
def test_without_vllm_it_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | None
) -> None:
    """A folder that happens to be named vllm is no package."""
    if name:
        (tmp_path / name).mkdir()
        monkeypatch.setattr("sys.path", [str(tmp_path)])
    else:
        monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install '.\[vllm\]'.*engine=transformers"):
        check_engine(ModelConfig(path="m"), GenerateConfig(engine="vllm"))


def test_the_sections_become_arguments_of_the_llm() -> None:
    model = ModelConfig(path="owner/name", revision="abc", dtype="bfloat16")
    settings = {"tensor_parallel_size": 4, "max_model_len": 99, "args": {"max_num_seqs": 8}}
    arguments = vllm.llm_arguments(model, GenerateConfig(engine="vllm", vllm=settings))
    assert arguments == {
        "model": "owner/name",
        "revision": "abc",
        "tokenizer_revision": "abc",
        "dtype": "bfloat16",
        "trust_remote_code": False,
        "load_format": "safetensors",
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "tensor_parallel_size": 4,
        "gpu_memory_utilization": 0.9,
        "max_model_len": 99,
        "enforce_eager": False,
        "max_num_seqs": 8,
    }


def test_sampling_parameters_are_translated() -> None:
    sampling = SamplingParams(temperature=0.7, top_p=0.9, top_k=5, max_tokens=7, stop=("\n",))
    assert vllm.sampling_arguments(sampling, frozenset({9, 2})) == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "max_tokens": 7,
        "stop": ["\n"],
        "stop_token_ids": [2, 9],
        "logprobs": 0,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "detokenize": True,
    }


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("dtype", "model.dtype"),
        ("max_model_len", "generate.vllm.max_model_len"),
        ("load_format", "safetensors only"),
        ("data_parallel_size", "generate.ray.engine=vllm"),
    ],
)
def test_an_argument_that_topr_sets_is_refused_with_what_sets_it(name: str, instead: str) -> None:
    with pytest.raises(ValidationError, match=rf"args\.{name} is set by topr.*{instead}"):
        VllmConfig(args={name: 1})
