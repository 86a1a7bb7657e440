"""Reading files that may be absent, broken, or being written. What they mean is in `read`."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import yaml

from topr.errors import ToprError
from topr.report.text import as_number

T = TypeVar("T")


@dataclass(slots=True)
class Reader:
    """Reads files below one directory and remembers which are absent or broken."""

    root: Path
    missing: list[str] = field(default_factory=list)
    whole: bool = True
    """Whether a whole run is expected: else only what is broken is named, not what is absent."""

    def read(self, path: Path, parse: Callable[[Path], T], *, expected: bool = True) -> T | None:
        """Return what `parse` makes of a file or folder; None where it is not there or broken."""
        name = path.relative_to(self.root)
        if not path.exists():
            if expected and self.whole:
                self.missing.append(str(name))
            return None
        try:
            return parse(path)
        except (
            OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError,
            yaml.YAMLError, pa.ArrowException, ToprError,
        ) as error:  # fmt: skip
            self.missing.append(f"{name} cannot be read ({type(error).__name__})")
            return None

    def mapping(self, path: Path, *, expected: bool = True) -> Mapping[str, Any]:
        """Return a JSON object; an empty one where it is not there or broken."""
        return self.read(path, json_mapping, expected=expected) or {}


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return the value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def as_mappings(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings in a list; none where the value is no list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def json_mapping(path: Path) -> Mapping[str, Any]:
    """Return a JSON object."""
    return _mapping(path, json.loads(path.read_text(encoding="utf-8")))


def yaml_mapping(path: Path) -> Mapping[str, Any]:
    """Return a YAML mapping."""
    return _mapping(path, yaml.safe_load(path.read_text(encoding="utf-8")))


def log_rows(path: Path, key: str = "loss") -> tuple[Mapping[str, Any], ...]:
    """Rows of optimizer steps, or of probes. A last line that is being written is not a row yet."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows.append(row)
    return steps_of(rows, key)


def steps_of(rows: Any, key: str = "loss") -> tuple[Mapping[str, Any], ...]:
    """Return the rows that hold a step and `key`."""
    return tuple(
        row for row in as_mappings(rows) if key in row and as_number(row.get("step")) is not None
    )


def text(path: Path) -> str:
    """Return a file's text."""
    return path.read_text(encoding="utf-8", errors="replace")


def modified(path: Path) -> datetime:
    """Return when a file was last written."""
    return datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)


def _mapping(path: Path, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, expected a mapping")
    return value
