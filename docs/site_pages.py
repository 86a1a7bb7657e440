"""The pages of the site, written for its builder: `python docs/site_pages.py DIRECTORY`.

They are those of this folder and what is made: the recipe keys and the commands, from the code; the
studies, from their results; tables, from CSV files. No text of its own. A page asks for a part with
a comment such as `<!-- recipe keys -->`. A line that is a link to a CSV file,
`[Table](tables/speed-gpu.csv)`, becomes the table.
"""

import csv
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import typer
from typer.testing import CliRunner

from topr.cli import app
from topr.config import recipe_schema
from topr.studies.page import TITLES, markdown
from topr.studies.results import read_results

DOCS = Path(__file__).parent
STUDIES = DOCS / "results"
FIGURES = "assets/studies"
PYTHON = {
    "string": "str", "integer": "int", "number": "float", "boolean": "bool", "object": "dict",
    "array": "list", "null": "None",
}  # fmt: skip
LIMITS = {
    "minimum": ">= {}", "exclusiveMinimum": "> {}", "maximum": "<= {}", "exclusiveMaximum": "< {}",
}  # fmt: skip


RECIPES = ("compare", "verifier")
"""Keys that hold parts of a recipe again."""
REPEATED = ("task.verifier.warmup.arithmetic",)
"""Sections that are shown elsewhere."""
TABLE = re.compile(r"^\[Table\b[^\]]*\]\((\S+\.csv)\)$", re.MULTILINE)
Schema: TypeAlias = dict[str, Any]


def write_pages(directory: Path) -> None:
    """Write all pages, pictures and samples into a directory, which is made anew."""
    shutil.rmtree(directory, ignore_errors=True)
    kept = shutil.ignore_patterns("*.py", "__pycache__", STUDIES.name)
    shutil.copytree(DOCS, directory, ignore=kept)
    for page in directory.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(whole(text, page.parent.relative_to(directory)), encoding="utf-8")


def whole(text: str, folder: Path) -> str:
    """Return a page of a folder with the parts that it asks for, and the tables that it links."""
    for comment, part in PARTS.items():
        if comment in text:
            text = text.replace(comment, part())
    return TABLE.sub(lambda found: table(DOCS / folder / found[1]), text)


def table(path: Path) -> str:
    """Return a CSV file as a table."""
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def own_objective() -> str:
    """Return the example of an objective as a block of code."""
    text = (DOCS.parent / "examples" / "own_objective.py").read_text(encoding="utf-8")
    return f"```python\n{text}```"


def studies() -> str:
    """Return every study in full: its claims, what people read in them, tables and figures."""
    parts = []
    for folder in sorted(path.parent for path in STUDIES.glob("*/results.json")):
        figures = [f"{FIGURES}/{folder.name}-{kind}.png" for kind in TITLES]
        there = [address for address in figures if (DOCS / address).is_file()]
        notes = (folder / "notes.md").read_text(encoding="utf-8")
        parts.append(markdown(read_results(folder), there, notes))
    return "\n".join(parts)


def recipe_keys() -> str:
    """Return every key of a recipe, with an anchor for each, such as `#train.learning_rate`."""
    schema = recipe_schema()
    return "\n".join(_section("", "", schema, schema["$defs"]))


def _section(name: str, anchor: str, section: Schema, defs: dict[str, Schema]) -> Iterator[str]:
    """Yield the keys of a section, then the sections below it."""
    below: list[tuple[str, str, Schema]] = []
    for key, field in section["properties"].items():
        dotted, at = f"{name}.{key}".strip("."), f"{anchor}.{key}".strip(".")
        inner = [defs[each] for each in _sections_of(field) if "properties" in defs[each]]
        if key in RECIPES or at in REPEATED:
            inner = []
        shown = not (inner and set(field) & {"$ref", "oneOf"}) and "const" not in field
        if shown:
            yield from _key(dotted, at, field, defs, required=key in section.get("required", ()))
        for each in inner:
            shape = _shape(each) or ("keys" if shown else "")
            below.append((dotted, f"{at}.{shape}" if shape else at, each))
    for dotted, at, each in below:
        heading = f"{dotted}: {_shape(each)}" if _shape(each) else dotted
        yield from ("", f"### {heading} {{ #{at} }}", "")
        yield from (" ".join(each.get("description", "").split()), "")
        yield from _section(dotted, at.removesuffix(".keys"), each, defs)


def _shape(section: Schema) -> str:
    """Return which of several shapes a section is: the name of a task or of a rule; else none."""
    consts = (section["properties"].get(key, {}).get("const", "") for key in ("name", "rule"))
    return next(filter(None, consts), "")


def _sections_of(field: Schema) -> list[str]:
    """Return the names of the sections that a field holds."""
    held = str({key: value for key, value in field.items() if key != "default"})
    return list(dict.fromkeys(re.findall(r"'#/\$defs/(\w+)'", held)))


def _key(
    name: str, anchor: str, field: Schema, defs: dict[str, Schema], *, required: bool
) -> Iterator[str]:
    said = "required" if required else f"default `{_shown(field.get('default', {}))}`"
    meaning = " ".join(field.get("description", "").split())
    yield from ("", f"#### `{name}` {{ #{anchor} }}", "")
    yield f"`{kind(field, defs)}`, {said}. {meaning}\n"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, dict) and value:
        return "{...}"
    return '""' if value == "" else str(value)


def kind(field: Schema, defs: dict[str, Schema]) -> str:
    """Return a field's type as Python writes it, with its limits: `float > 0 | None`."""
    for several in ("anyOf", "oneOf"):
        if several in field:
            return " | ".join(dict.fromkeys(kind(each, defs) for each in field[several]))
    if "$ref" in field:
        target = defs[field["$ref"].rpartition("/")[2]]
        return "dict" if "properties" in target else kind(target, defs)
    if "const" in field:
        return f'"{field["const"]}"'
    if "enum" in field:
        return " | ".join(f'"{each}"' for each in field["enum"])
    limits = [sign.format(field[key]) for key, sign in LIMITS.items() if key in field]
    name = PYTHON.get(field.get("type", ""), "Any")
    if "items" in field:
        name += f"[{kind(field['items'], defs)}]"
    elif "prefixItems" in field:
        name = f"[{', '.join(kind(each, defs) for each in field['prefixItems'])}]"
    return " ".join((name, " and ".join(limits))).strip()


def command_line() -> str:
    """Return what each command's `--help` says."""
    parts = []
    group: Any = typer.main.get_command(app)
    for name in group.commands:
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "78", "TERM": "dumb"})
        parts += ["", f"## topr {name}", "", "```text", shown.output.strip(), "```"]
    return "\n".join(parts)


PARTS: dict[str, Callable[[], str]] = {
    "<!-- recipe keys -->": recipe_keys,
    "<!-- command line -->": command_line,
    "<!-- studies -->": studies,
    "<!-- own objective -->": own_objective,
}

if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
