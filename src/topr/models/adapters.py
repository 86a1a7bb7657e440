"""Adapters: which layers cannot have one, and whether an adapter that was added into the weights of
its model is still the same function.

Not here: loading and merging (`topr.models.loading`), training (`topr.training`).
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from topr.errors import ModelError
from topr.models.evaluation_mode import evaluating

SHORT = 16
"""Tokens of the sequence that functions are compared on."""
SAME, ROUNDED = 5e-3, 0.1
"""How far logits may be off, as a share of their spread: in float32, and in shorter types, in which
the sum of weight and adapter is rounded."""


def put_adapter(model: PreTrainedModel, peft_config: Any) -> Any:
    """Return peft's model: the given one with a new adapter.

    Raises:
        ModelError: none of its layers is meant, or one that cannot have an adapter.

    """
    from peft import get_peft_model

    try:
        with warnings.catch_warnings():
            # An error here.
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
            # peft asks by the old name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
            adapted = get_peft_model(model, peft_config)
    except ValueError as error:
        raise ModelError(
            f"no adapter can be put on {type(model).__name__}: {error} Name layers that it has in "
            "target_modules, or use all-linear"
        ) from error
    refuse_tied(adapted)
    return adapted


def keeps_base(peft_config: Any) -> bool:
    """Return whether the model under a new adapter is the one that was given: of some beginnings
    (pissa, olora) it is not.
    """
    init = getattr(peft_config, "init_lora_weights", True)
    return peft_config is not None and init in (True, False, "gaussian")


def refuse_tied(model: nn.Module) -> None:
    """Refuse an adapter on a weight that another layer has too.

    Added into such a weight it would change the other layer as well, and where it is kept apart
    loading it again does.

    Args:
        model: of peft, with its adapter.

    Raises:
        ModelError: the adapter is on a tied weight.

    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    adapted = {
        name.removeprefix("base_model.model."): _original(module)
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
    }
    peft_model: Any = model
    causal = peft_model.get_base_model()
    tied = _tied_layers(causal)
    for name, layer in adapted.items():
        if any(weight in tied for weight in map(_place, layer.parameters(recurse=False))):
            raise ModelError(
                f"the adapter has the layer {name!r} of {type(causal).__name__}, whose weights "
                "another layer has too (tied embeddings): added into them it would change both. "
                "Leave the layer out of target_modules and modules_to_save (all-linear does), or "
                "start from a model whose output layer has its own weights"
            )


def _original(module: Any) -> nn.Module:
    """Return the layer that peft has wrapped."""
    original = getattr(module, "original_module", None)
    found: nn.Module = original if original is not None else module.get_base_layer()
    return found


def _place(weight: Tensor) -> tuple[str, int]:
    """Return what tells whether two tensors are the same: where they lie, or who they are."""
    if weight.device.type == "meta":
        return "meta", id(weight)
    return str(weight.device), weight.untyped_storage().data_ptr()


def _tied_layers(causal: Any) -> set[tuple[str, int]]:
    """Return the weights that two layers have, in memory or by what the config says of a reload."""
    owners: dict[tuple[str, int], int] = {}
    for module in causal.modules():
        for place in {_place(weight) for weight in module.parameters(recurse=False)}:
            owners[place] = owners.get(place, 0) + 1
    tied = {place for place, count in owners.items() if count > 1}
    if getattr(causal.config.get_text_config(decoder=True), "tie_word_embeddings", False):
        for layer in (causal.get_input_embeddings(), causal.get_output_embeddings()):
            tied |= (
                {_place(weight) for weight in layer.parameters()} if layer is not None else set()
            )
    return tied


def check_adapter(path: str, revision: str | None, peft_config: Any, *, trust: bool) -> None:
    """Refuse what `put_adapter` would, from a model's config alone: its weights are not loaded.

    Raises:
        ModelError: as `put_adapter`.

    """
    config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust)
    with torch.device("meta"):
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(config, trust_remote_code=trust)
        model.tie_weights()
        put_adapter(model, peft_config)


@torch.no_grad()
def short_logits(model: PreTrainedModel | nn.Module) -> Tensor:
    """Return a model's logits on a short sequence, always the same, [T, V] float32 on the CPU."""
    causal: Any = model
    size = int(causal.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(size, (1, SHORT), generator=generator)
    with evaluating(model):
        logits: Tensor = causal(input_ids=ids_BT.to(causal.device), use_cache=False).logits[0]
    return logits.float().cpu()


def require_same(expected: Tensor, found: Tensor, dtype: torch.dtype, what: str) -> None:
    """Refuse a model whose short logits are not those expected.

    Args:
        expected: of `short_logits`.
        found: likewise.
        dtype: of the weights.
        what: begins the message: what the two are.

    Raises:
        ModelError: they differ by more than rounding.

    """
    off = float((expected - found).abs().mean() / expected.std().clamp(min=1e-6))
    allowed = SAME if dtype == torch.float32 else ROUNDED
    if not off <= allowed:
        raise ModelError(
            f"{what}: their logits differ by {off:.2g} of their spread on average, where rounding "
            f"explains {allowed:g}. Train without an adapter, or with one on other layers "
            "(train.lora.target_modules); what was trained is in the last checkpoint"
        )
