"""Recipes and studies as YAML, with dotted overrides. What keys there are is not known here."""

import difflib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from topr.config.training import RENAMED
from topr.errors import ConfigError


def shipped(*folders: str) -> dict[str, Traversable]:
    """Return the YAML files of a folder in the package, by name."""
    folder = resources.files("topr").joinpath(*folders)
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {file.name.removesuffix(".yaml"): file for file in files}


def read_values(
    source: str | Path,
    overrides: Sequence[str],
    shipped: Mapping[str, Traversable],
    *,
    what: str,
) -> dict[str, Any]:
    """Read YAML and lay dotted overrides over it.

    Args:
        source: name of a shipped file, or path of another.
        overrides: `key.key=value`, the value in YAML.
        shipped: files in the package by name.
        what: what they are, for messages.

    Raises:
        ConfigError: no such file, broken YAML, or an override that does not fit.

    """
    path = Path(source)
    file: Traversable
    if str(source) in shipped:
        file = shipped[str(source)]
    elif path.is_file():
        file = path
    else:
        near = difflib.get_close_matches(str(source), shipped, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"no {what} {str(source)!r}: it is neither a file nor one that is shipped "
            f"({', '.join(shipped)}).{hint}"
        )
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except yaml.YAMLError as error:
        hint = " (YAML is indented with spaces, not with tabs)" if "'\\t'" in str(error) else ""
        raise ConfigError(f"{source} is not YAML{hint}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source} holds {type(values).__name__}, expected a mapping of sections such as "
            "`task:` and `train:`"
        )
    _refuse_both_names(values, str(source))
    for override in overrides:
        apply_override(values, override)
    return values


def _refuse_both_names(values: Any, where: str) -> None:
    """Refuse a section `train` that says the same under an old name and a new one."""
    if not isinstance(values, dict):
        return
    train = values.get("train")
    for old, new in RENAMED.items():
        if isinstance(train, dict) and {old, new} <= train.keys():
            raise ConfigError(
                f"{where}: train has both {old} and {new}, which are one key: leave out {old}, "
                "its old name"
            )
    for section in values.values():
        _refuse_both_names(section, where)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: PyYAML reads 1e-6 as text, since YAML 1.1 asks for a dot."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Lay `key.key=value` over nested values, in place."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(
            f"override {override!r} has no value: write it as key.key=value, "
            "for example train.learning_rate=1e-6"
        )
    *parents, last = dotted.split(".")
    section = values
    for key in parents:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {key!r} holds a value, not a section")
    try:
        section[last] = yaml.load(text, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error
