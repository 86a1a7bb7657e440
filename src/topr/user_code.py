"""Names of the form `module:name`, by which recipes and commands point to a user's own code."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from topr.errors import ToprError


def load_attribute(path: str, *, what: str, error: type[ToprError]) -> Any:
    """Return what `module:name` points to. The working directory is importable.

    Args:
        path: `module:name`.
        what: the path is to be, for messages, such as `grader`.
        error: to raise.

    Raises:
        error: the path has another form, or the module or name is not there.

    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise error(f"{what} {path!r} is not of the form `module:name`")
    _make_working_directory_importable()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not module_name.startswith(missing.name):
            raise
        raise error(
            f"{what} {path!r}: there is no module {missing.name!r}. It must be installed, or be a "
            f"file in the working directory {Path.cwd()}"
        ) from None
    if not hasattr(module, name):
        raise error(
            f"{what} {path!r}: {name!r} does not exist in module {module_name!r} "
            f"({getattr(module, '__file__', 'built in')})"
        )
    return getattr(module, name)


def code_digest(path: str) -> str | None:
    """Return a hash of the file that `module:name` is in; None: there is no such file.

    With it a stage knows that the user's code is another one than when it began.
    """
    _make_working_directory_importable()
    try:
        spec = importlib.util.find_spec(path.partition(":")[0])
    except (ImportError, ValueError):
        return None
    file = Path(spec.origin) if spec and spec.origin else None
    if file is None or not file.is_file():
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _make_working_directory_importable() -> None:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
