"""What all sections of a recipe share. The sections themselves are elsewhere."""

from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, true and false are not numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset()
    """Keys that change no number, or only how it is rounded: a run resumes with other values."""

    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Old names of keys, which are understood, and what they are called."""

    def without_effect(self) -> frozenset[str]:
        """Return the keys that change no number next to the values of others."""
        return self.NO_EFFECT

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Refuse what pydantic would read as 0 or 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            among = value if isinstance(value, list | tuple) else (value,)
            if any(isinstance(each, bool) for each in among) and _is_number(cls, name):
                raise ValueError(f"{name}={value}: expected a number, which true and false are not")
        return values

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, values: Any) -> Any:
        """Take one value where a list is wanted: `curate.steps=positives`."""
        if not isinstance(values, dict):
            return values
        single = {
            name: (value,)
            for name, value in values.items()
            if isinstance(value, str | int | float) and _is_list(cls, name)
        }
        return values | single

    def fixed(self) -> dict[str, Any]:
        """Return the values that numbers depend on, for a hash of them, without defaults.

        So a key that comes with a later version leaves the hashes of runs that were there as they
        are. A default that changes makes another result: raise the version of the stage's data.
        """
        dumped, idle, kept = self.model_dump(mode="json"), self.without_effect(), {}
        for name, field in type(self).model_fields.items():
            default = field.get_default(call_default_factory=True)
            if name not in idle and (is_tag(field) or not _same(getattr(self, name), default)):
                kept[name] = _fixed(getattr(self, name), dumped[name])
        return kept


def is_tag(field: FieldInfo) -> bool:
    """Return whether a key has one value only, which says what kind of section it is."""
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, Section) and type(value) is type(default):
        return value.fixed() == default.fixed()
    return bool(value == default)


def _fixed(value: Any, dumped: Any) -> Any:
    if isinstance(value, Section):
        return value.fixed()
    if isinstance(value, dict):
        return {name: _fixed(value[name], dumped[name]) for name in value}
    if isinstance(value, tuple | list):
        return [_fixed(*pair) for pair in zip(value, dumped, strict=True)]
    return dumped


def unchecked_fixed(section: type[Section], values: dict[str, Any]) -> dict[str, Any]:
    """Return values as a user wrote them, for a section made later, without what has no effect."""
    kept = {}
    for written, value in values.items():
        name = section.RENAMED.get(written, written)
        field = section.model_fields.get(name)
        inner = field.annotation if field else None
        if name in section.NO_EFFECT:
            continue
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, Section):
            if found := unchecked_fixed(inner, value):
                kept[name] = found
        else:
            kept[name] = value
    return kept


@cache
def _is_number(section: type[Section], name: str) -> bool:
    field = section.model_fields.get(name)
    types = set(_types(field.annotation)) if field else set()
    return bool(types & {int, float}) and not types & {bool, Any}


@cache
def _is_list(section: type[Section], name: str) -> bool:
    """Return whether a key takes a list, of any length, and no single value."""
    field = section.model_fields.get(name)
    kinds = _members(field.annotation) if field else []
    lists = [kind for kind in kinds if get_origin(kind) is tuple and get_args(kind)[-1] is ...]
    return bool(lists) and all(kind in lists or kind is type(None) for kind in kinds)


def _members(annotation: Any) -> list[Any]:
    """Return the members of a union, or the one type that an annotation is."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [each for member in get_args(annotation) for each in _members(member)]
    return [annotation]


def _types(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation is made of."""
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for each in inner:
        yield from _types(each)
