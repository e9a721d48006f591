"""What mkdocs adds to pages: the settings, tables of the recipes, pictures of the masks, parts of README.md.

A page says where, in a comment: <!-- settings -->, <!-- table recipes/README.md -->, <!-- masks -->,
<!-- section README.md Installation -->.
"""

import re
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "docs")]

import draw_masks  # noqa: E402

from dragoman.settings import Section, Settings  # noqa: E402


def on_page_markdown(markdown: str, **_: Any) -> str:  # noqa: ANN401
    """Return the page with what its comments ask for."""
    markdown = re.sub(r"<!-- settings -->", lambda _: list_settings(), markdown)
    markdown = re.sub(r"<!-- masks -->", lambda _: draw_masks.draw_all(), markdown)
    markdown = re.sub(
        r"<!-- section (\S+) (.+?) -->", lambda found: read_section(*found.groups()), markdown
    )
    return re.sub(r"<!-- table (\S+) -->", lambda found: read_table(found[1]), markdown)


def list_settings() -> str:
    """Return a table of each section of settings, from settings.py."""

    def walk(section: type[Section], name: str) -> list[str]:
        rows, below = [], []
        for field, info in section.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                below += walk(kind, f"{name}{field}.")
                continue
            inner = get_args(kind)[0] if get_origin(kind) is tuple else kind
            choices = get_args(inner) if get_origin(inner) is Literal else ()
            default = ", ".join(info.default) if isinstance(info.default, tuple) else info.default
            shown = f"`{default!r}`" if default == " " else f"`{default}`" if default != "" else ""
            text = (info.description or "").replace("|", r"\|").replace("<", "&lt;")
            values = f" One of: {', '.join(choices)}." if choices else ""
            rows.append(f"| `{name}{field}` | {shown} | {text}{values} |".replace("\n", " "))
        lines = [f"## {name.rstrip('.') or 'The run'}", "", section.__doc__ or "", ""]
        return [*lines, "| setting | default | meaning |", "|-|-|-|", *rows, "", *below]

    return "\n".join(walk(Settings, ""))


def read_table(name: str) -> str:
    """Return what a script has written into a README, between its two comments."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.search(r"<!-- table -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert found is not None, f"{name} has no table"
    return found[1]


def read_section(name: str, title: str) -> str:
    """Return what stands under a title of a Markdown file."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"{name} has no section {title}"
    return found[1].strip()
