"""What all stages share: the mark that tells one result from another."""

import hashlib
import json
from pathlib import Path
from typing import Any

from topr.config import Section
from topr.store import read_manifest, shard_paths


def fingerprint(*parts: Any) -> str:
    """Return a hash of everything that fixes a stage's result: sections, names, numbers."""
    values = [part.fixed() if isinstance(part, Section) else part for part in parts]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def content(path: Path) -> list[Any]:
    """Return what tells the content of a file or a directory of shards from another's, cheaply."""
    if path.is_dir():
        manifest = read_manifest(path)
        mark = manifest.fingerprint if manifest else None
        return [str(path.resolve()), mark, *((p.name, p.stat().st_size) for p in shard_paths(path))]
    stat = path.stat() if path.is_file() else None
    return [str(path.resolve()), (stat.st_size, stat.st_mtime_ns) if stat else None]
