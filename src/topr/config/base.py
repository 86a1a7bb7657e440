"""What all sections of a recipe share. The sections themselves are elsewhere."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, true and false are not numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    SHOWN: ClassVar[tuple[str, ...]] = ("description", "needs")
    """Dotted keys, `*` for any, that no number depends on."""
    ADDED: ClassVar[Mapping[str, Any]] = {}
    """Keys that came when runs were there already, and the value at which all is as it was without
    them. There they are left out of hashes: such a run resumes."""
    FLOATS: ClassVar[frozenset[str]] = frozenset()
    """Keys of mappings whose numbers were all read as floats once, and are hashed as such still."""

    def without_effect(self) -> frozenset[str]:
        """Return the keys that change no number next to the values of others."""
        return frozenset()

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Refuse what pydantic would read as 0 or 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            among = value if isinstance(value, list | tuple) else (value,)
            if any(isinstance(each, bool) for each in among) and _is_number(cls, name):
                raise ValueError(f"{name}={value}: expected a number, which true and false are not")
        return values

    def fixed(self) -> dict[str, Any]:
        """Return the values that numbers depend on, for a hash of them."""
        kept: dict[str, Any] = _fixed(self, self.model_dump(mode="json"), self.SHOWN)
        return kept


RENAMED: dict[str, str] = {"normalization": "loss_normalization", "batch_size": "global_batch_size"}
"""Old names of keys of `train`, and what they are called. Old ones are understood, and hashes have
them: runs that were begun under them resume."""
_HASHED_AS = {new: old for old, new in RENAMED.items()}


def present_name(dotted: str) -> str:
    """Return what the key of a hashed value is called in recipes."""
    above, _, name = dotted.rpartition(".")
    of_train = above == "train" or above.endswith(".train")
    return f"{above}.{RENAMED.get(name, name)}" if of_train else dotted


def _fixed(held: Any, dumped: Any, shown: tuple[str, ...], prefix: str = "") -> Any:
    """Return `dumped`, the plain values of `held`, without what no number depends on."""
    if not isinstance(dumped, dict):
        return dumped
    section, kept = isinstance(held, Section), {}
    idle = held.without_effect() if section else ()
    for name, value in dumped.items():
        dotted = f"{prefix}{name}"
        as_before = section and name in held.ADDED and value == held.ADDED[name]
        if as_before or name in idle or any(fnmatch(dotted, key) for key in shown):
            continue
        inner = getattr(held, name) if section else None
        if isinstance(held, dict):
            inner = held.get(name)
        there = _fixed(inner, value, shown, f"{dotted}.")
        if section and name in held.FLOATS:
            there = {k: float(v) if isinstance(v, int) else v for k, v in there.items()}
        kept[_HASHED_AS.get(name, name)] = there
    return kept


@cache
def _is_number(section: type[Section], name: str) -> bool:
    field = section.model_fields.get(name)
    types = set(_types(field.annotation)) if field else set()
    return bool(types & {int, float}) and not types & {bool, Any}


def _types(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation is made of."""
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for each in inner:
        yield from _types(each)
