"""`import topr`, and of every module, asks for nothing that only some systems have."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import topr

SOURCE = Path(topr.__file__).parent
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "msvcrt", "winreg"}
NAMES = {
    "fork", "setsid", "killpg", "getppid", "getloadavg", "sched_getaffinity", "sysconf", "getuid",
    "WNOHANG", "SIGKILL", "SIGALRM", "SIGHUP", "alarm", "setitimer",
}  # fmt: skip


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported: not the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Lambda):
            continue
        yield child
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = child.args
            for part in (*child.decorator_list, *arguments.defaults, *arguments.kw_defaults):
                if part is not None:
                    yield from (part, *at_import(part))
        else:
            yield from at_import(child)


def needs(node: ast.AST) -> set[str]:
    match node:
        case ast.Import(names=names):
            return {name.name for name in names} & MODULES
        case ast.ImportFrom(module=str(module)):
            return {module} & MODULES
        case ast.Attribute(value=ast.Name(id="os" | "signal"), attr=name):
            return {name} & NAMES
    return set()


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_no_module_needs_one_system_when_it_is_imported(path):
    found = set[str]()
    for node in at_import(ast.parse(path.read_text(encoding="utf-8"))):
        found |= needs(node)
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "import resource", "from fcntl import flock", "KILL = signal.SIGKILL",
        "class A:\n    cores = os.sched_getaffinity(0)", "def f(x=os.getloadavg()): ...",
        "if True:\n    import pwd",
    ],
)  # fmt: skip
def test_what_would_fail_elsewhere_is_found(text):
    assert any(needs(node) for node in at_import(ast.parse(text)))
