"""topr: offline reinforcement learning for language models on tasks with checkable answers."""

from topr._version import __version__

__all__ = ["__version__"]
