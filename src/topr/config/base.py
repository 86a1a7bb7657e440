"""What all sections of a recipe share. The sections themselves are elsewhere."""

from fnmatch import fnmatch
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    SHOWN: ClassVar[tuple[str, ...]] = ("description", "needs")
    """Dotted keys, `*` for any, that no number depends on."""

    def fixed(self) -> dict[str, Any]:
        """Return the values that numbers depend on, for a hash of them."""
        return _without(self.model_dump(mode="json"), self.SHOWN)


ADDED: dict[str, Any] = {"mask_truncated": False}
"""Keys that came when runs were there already, and the value at which all is as it was without
them. There they are left out of hashes: such a run goes on."""

RENAMED: dict[str, str] = {"normalization": "loss_normalization", "batch_size": "global_batch_size"}
"""Old names of keys of `train`, and what they are called. Old ones are understood, and hashes have
them: runs that were begun under them go on."""
_HASHED_AS = {new: old for old, new in RENAMED.items()}


def _without(values: dict[str, Any], keys: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    kept = {}
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        as_before = name in ADDED and value == ADDED[name]
        if as_before or any(fnmatch(dotted, key) for key in keys):
            continue
        kept[_HASHED_AS.get(name, name)] = (
            _without(value, keys, f"{dotted}.") if isinstance(value, dict) else value
        )
    return kept
