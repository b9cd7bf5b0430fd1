"""How MkDocs makes a site of pages that work on GitHub, too: README.md is its first page, and what pages link to
outside of `docs/` is part of it, under its path in the repository. Tables of settings are made of the code.
"""

import dataclasses
import importlib
import posixpath
import re
import typing
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
FIRST = "README.md"
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()[^)\s#]+(?=[)#])")
PICTURE = re.compile(r'<img [^>]*src="([^"]+)"[^>]*>')
# A row of the reference for several parameters at once, of which mkdocstrings knows neither types nor defaults
SEVERAL = re.compile(r"(<code>\w+(?:, \w+)+</code>(?:(?!</tr>).)*?)<em>required</em>", re.DOTALL)
SETTINGS = re.compile(r"<!-- settings: ([\w.]+)\.(\w+) -->")


def site_path(path: str) -> str:
    """Where the site has a file of the repository: docs/data.md -> data.md, SECURITY.md -> SECURITY.md."""
    return "index.md" if path == FIRST else path.removeprefix(DOCS)


def repository_path(page: str) -> str:
    """The reverse."""
    if page == "index.md":
        return FIRST
    return DOCS + page if (ROOT / DOCS / page).is_file() else page


def linked(path: str, text: str) -> dict[str, str]:
    """The links of a page to other files, and what these are in the repository, where the page is at `path`."""
    links = {link for prose in FENCE.split(text)[::2] for link in LINK.findall(prose) if "://" not in link}
    return {link: posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in links}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md, and what is linked outside of `docs/`."""
    todo = [FIRST, *(repository_path(file.src_uri) for file in files.documentation_pages())]
    seen = set(todo)
    while todo:
        path = todo.pop()
        if not (ROOT / path).is_file():
            raise PluginError(f"a page links to {path}, which is not a file: link to a file of the repository")
        if files.get_file_from_path(site_path(path)) is None:
            files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            found = linked(path, (ROOT / path).read_text(encoding="utf-8")).values()
            new = [other for other in found if other not in seen]
            seen.update(new)
            todo += new
    return files


def on_page_markdown(markdown: str, page: Page, **_) -> str:
    """Point links to where the site has things, and fill in settings."""
    path = repository_path(page.file.src_uri)
    targets, folder = linked(path, markdown), posixpath.dirname(page.file.src_uri)

    def moved(link: re.Match) -> str:
        return posixpath.relpath(site_path(targets[link[0]]), folder or ".") if link[0] in targets else link[0]

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(moved, prose) for prose in parts[::2]]
    return SETTINGS.sub(settings_tables, "".join(parts))


def on_page_content(html: str, **_) -> str:
    """Link pictures to themselves, as a page is too narrow for most; call nothing required that may have a default."""
    return SEVERAL.sub(r"\1", PICTURE.sub(r'<a href="\1">\g<0></a>', html))


def settings_tables(marker: re.Match) -> str:
    """A table for each part of the settings of a program."""
    whole = getattr(importlib.import_module(marker[1]), marker[2])
    kinds = typing.get_type_hints(whole).items()
    return "\n".join(settings_table(name, kind) for name, kind in kinds if dataclasses.is_dataclass(kind))


def settings_table(name: str, kind: type) -> str:
    """The settings that a dataclass has of itself or that many runs set, beside their defaults and what they do."""
    from layerlock_hf.pretraining.arguments import COMMON

    rows = [f"### {name}\n", "| setting | default | what it does |", "| --- | --- | --- |"]
    for field in dataclasses.fields(kind):
        text = field.metadata.get("help")
        if text and (field.name in kind.__annotations__ or field.name in COMMON):
            is_plain = field.default not in (None, dataclasses.MISSING)
            default = f"`{field.default}`" if is_plain else ""
            rows.append(
                f"| `{field.name}` | {default} | {' '.join(text.split()).replace('|', '&#124;').replace('%%', '%')} |"
            )
    return "\n".join([*rows, ""])
