"""The documents: what is made of the code, tables, links, lengths. Their commands are run elsewhere
(`test_docs_commands.py`).
"""

import csv
import importlib.util
import pydoc
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from topr.cli import app
from topr.config import recipe_schema
from topr.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
API = DOCS / "api.md"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
TABLES = sorted(DOCS.rglob("tables/*.csv"))
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_pages", DOCS / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").split())


def test_they_are_short():
    assert words(ROOT / "README.md") <= 700
    assert sum(map(words, PAGES)) <= 25_000


def test_every_key_of_a_recipe_is_in_the_reference_with_type_meaning_and_anchor(site):
    page = site.recipe_keys()
    for name, section in recipe_schema()["$defs"].items():
        for key, field in section.get("properties", {}).items():
            if "const" in field or name == "Comparison" or "$ref" in field:
                continue
            said = " ".join(field["description"].split())
            heading = rf"#### `[\w.]*{key}` {{ #[\w.]*{key} }}\n\n"
            assert re.search(rf"{heading}`.+`, .+\. {re.escape(said)}\n", page), (name, key)
    anchors = re.findall(r"{ #(\S+) }", page)
    assert len(anchors) == len(set(anchors))
    assert {"train.learning_rate", "task.gsm8k.few_shot", "generate.vllm.args"} <= set(anchors)


def test_types_are_written_as_python_writes_them(site):
    page = site.recipe_keys()
    for line in (
        "`float > 0`, default `5e-07`",
        "`int >= 1 | None`, default `null`",
        '`"sampler" | "recompute"`, default `sampler`',
        "`list[str]`, default `[]`",
        "`bool`, default `false`",
        "`dict`, default `{}`",
    ):
        assert line in page, line
    assert "Any" not in {kind.split("`")[1] for kind in re.findall(r"^`.+`, ", page, re.MULTILINE)}


@pytest.mark.parametrize("name", re.findall(r"^::: (\S+)$", API.read_text("utf-8"), re.MULTILINE))
def test_every_name_of_the_api_page_is_there(name):
    assert pydoc.locate(name) is not None


def test_every_command_is_in_the_reference(site):
    page = site.command_line()
    group: Any = typer.main.get_command(app)
    for name in group.commands:
        part = page.split(f"## topr {name}\n")[1].split("\n## ")[0]
        assert "--help" in part


def test_every_study_is_shown_in_full(site):
    page = site.studies()
    for folder in (path.parent for path in DOCS.glob("results/*/results.json")):
        assert f"\n## {folder.name}\n" in f"\n{page}"
    assert page.count("**Reading.**") == len(list(DOCS.glob("results/*/notes.md")))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_is_a_table_and_is_shown_somewhere(path, site):
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert rows
    assert {len(row) for row in rows} == {len(head)}
    pipes = re.findall(r"(?<!\\)\|", site.table(path).splitlines()[-1])
    assert len(pipes) == len(head) + 1  # a bar inside a cell is escaped
    assert any(f"tables/{path.name})" in page.read_text(encoding="utf-8") for page in PAGES)


def test_a_link_to_a_table_becomes_the_table(site):
    shown = site.whole("a\n\n[Table: x](../tables/vllm.csv)\n\nb", Path("engines"))
    assert "| --- |" in shown
    assert "](../tables" not in shown


def test_every_objective_has_a_row():
    with (DOCS / "tables/objectives.csv").open(encoding="utf-8", newline="") as file:
        names = {row["name"].strip("`") for row in csv.DictReader(file)}
    assert set(OBJECTIVES) <= names


def test_what_the_paper_map_names_is_there():
    text = (DOCS / "tables/paper-map.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    functions = [name for row in rows for name in re.findall(r"`(topr\.[\w.]+)`", row["function"])]
    tests = [name for row in rows for name in re.findall(r"`(tests/[^`]+)`", row["test"])]
    assert functions
    assert tests
    for name in functions:
        assert pydoc.locate(name) is not None, name
    for name in tests:
        file, _, test = name.partition("::")
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_every_rule_of_curation_has_a_heading():
    page = (DOCS / "curation.md").read_text(encoding="utf-8")
    for name, rule in recipe_schema()["$defs"].items():
        if name.endswith("Rule"):
            assert f"\n### {rule['properties']['rule']['const']}\n" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Also where the site is not built: README, and pages as the repository shows them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, anchor in LINK.findall(text):
        if "://" in target:
            continue
        found = page if not target else (page.parent / target).resolve()
        if page.name != "notes.md":  # shown in results.md
            assert found.exists(), target
        if anchor and found.suffix == ".md" and found.name not in ("recipes.md", "api.md"):
            there = {slug(h) for h in headings(found)}
            studies = {path.parent.name for path in DOCS.glob("results/*/results.json")}
            assert anchor in there | (
                studies if found.name in ("results.md", "notes.md") else set()
            )


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def slug(heading: str) -> str:
    """Return the anchor that the site gives a heading."""
    plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)
