"""What is wrong in a recipe, said with the key that was meant."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from topr.errors import ConfigError

SectionT = TypeVar("SectionT", bound=BaseModel)

ABBREVIATED = {
    "lr": "learning_rate", "epochs": "num_train_epochs", "bs": "global_batch_size",
    "batch_size": "global_batch_size", "steps": "max_steps", "temp": "temperature",
    "max_new_tokens": "max_tokens", "num_samples": "n", "num_return_sequences": "n",
}  # fmt: skip
"""What other tools, and people in a hurry, call some keys."""


def similar(key: str, known: Iterable[str]) -> str | None:
    """Return the key that was probably meant."""
    name, known = ABBREVIATED.get(key, key), list(known)
    near = [name] if name in known else difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return near[0] if near else None


def _in_a_section(section: type[BaseModel], key: str) -> str | None:
    """Return the dotted key that was probably meant by one without its section: `lr`."""
    name = ABBREVIATED.get(key, key)
    for title, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name in kind.model_fields:
            return f"{title}.{name}"
    return None


def validate(section: type[SectionT], values: Any, *, where: str) -> SectionT:
    """Build a section, or raise a ConfigError that names each wrong key and what it should be."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(section, problem) for problem in error.errors())
        raise ConfigError(f"{where}:\n" + "\n".join(f"  {line}" for line in lines)) from None


_MEMBER = re.compile(r"constrained-\w+$|literal\[|function-\w+\[")


def _explain(section: type[BaseModel], problem: Any) -> str:
    # Of a union pydantic names the member that did not fit too: `constrained-float`.
    location = [part for part in map(str, problem["loc"]) if not _MEMBER.match(part)]
    # Of a task pydantic names the kind as well: `task.gsm8k.split`.
    shown = location[:1] + location[2:] if len(location) > 2 and location[0] == "task" else location
    key = ".".join(shown)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(section, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        meant = ABBREVIATED.get(location[-1])
        if len(location) == 1 and (dotted := _in_a_section(section, key)):
            near = [dotted]
        elif meant in known:
            near = [str(meant)]
        hint = f"known keys: {', '.join(known)}"
        if near:
            hint = f"did you mean {'.'.join((*shown[:-1], near[0]))!r}?"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "union_tag_invalid":
        known = re.findall(r"'(\w+)'", problem["ctx"]["expected_tags"])
        near = difflib.get_close_matches(problem["ctx"]["tag"], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        kind = problem["ctx"]["discriminator"].strip("'")
        return f"{key}: unknown {kind} {problem['ctx']['tag']!r}; {hint}"
    if problem["type"] == "union_tag_not_found":
        kind = problem["ctx"]["discriminator"].strip("'")
        return f"{key}: no key {kind!r}, which says what kind it is (found {problem['input']!r})"
    message = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    return f"{key}: {message} (found {problem['input']!r})" if key else message


def _fields_at(annotation: Any, path: Sequence[str]) -> list[str]:
    """Return the keys of the section that a validation error's path points into."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not path:
            return list(annotation.model_fields)
        field = annotation.model_fields.get(path[0])
        return _fields_at(field.annotation, path[1:]) if field else []
    members = get_args(annotation)
    if get_origin(annotation) is dict:
        return _fields_at(members[1], path[1:])
    if get_origin(annotation) is tuple:
        return _fields_at(members[0], path[1:])
    for member in members:
        tag = _tag_of(member)
        if tag is None and member is not type(None):
            return _fields_at(member, path)
        if path and tag is not None and get_args(tag.annotation) == (path[0],):
            return _fields_at(member, path[1:])
    return []


def _tag_of(member: Any) -> Any:
    """Return the field that tells a section from the others of its union, if there is one."""
    fields = getattr(member, "model_fields", {})
    return next((fields[name] for name in ("name", "rule") if name in fields), None)
