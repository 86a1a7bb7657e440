"""Arguments that name data: a path, or a name on the hub, which is downloaded."""

from pathlib import Path


def hub_or_path(name: str | Path) -> Path:
    """Return a local path: see `topr.hub.local`. As a parser of typer's it gets what was typed."""
    from topr.hub import local

    return local(str(name))
