"""Reading a report's HTML as a browser's parser would, for the tests."""

import base64
import json
import zlib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any


@dataclass
class Page:
    """The elements of a page, its visible text and its scripts."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    scripts: list[tuple[str | None, str]] = field(default_factory=list)
    text: str = ""

    @property
    def data(self) -> dict[str, Any]:
        packed = next(text for kind, text in self.scripts if kind == "application/octet-stream")
        return json.loads(zlib.decompress(base64.b64decode(packed)))

    @property
    def code(self) -> list[str]:
        return [text for kind, text in self.scripts if kind is None]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def completions(self) -> list[dict[str, Any]]:
        return [
            completion
            for source in self.data["sources"]
            for problem in source["problems"]
            for completion in problem["completions"]
        ]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self.inside: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside = tag
        if tag == "script":
            self.page.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            kind, text = self.page.scripts[-1]
            self.page.scripts[-1] = (kind, text + data)
        elif self.inside is None:
            self.page.text += data


def parse(html: str) -> Page:
    """Return what is on the page."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    return parser.page
