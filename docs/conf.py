"""How Sphinx makes the site from the Markdown files, which also read well on their own.

    .venv/bin/sphinx-build -c docs -W --keep-going . build/site

The source folder is the checkout, so that CONTRIBUTING.md and CHANGELOG.md are pages of the site too. A link to
another file of the tree opens that file in a repository's browser, and downloads it from the site.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HOME = "docs/index"
MENU = {
    "Use": ["docs/quickstart", "docs/packaging", "docs/api", "docs/troubleshooting", "docs/glossary"],
    "Clients": [
        "docs/clients/python",
        "docs/clients/openai",
        "docs/clients/tei",
        "docs/clients/kserve",
        "docs/clients/triton",
        "docs/clients/grpc",
    ],
    "Run": [
        "docs/engines",
        "docs/batching",
        "docs/settings",
        "docs/benchmarks",
        "docs/deployment",
        "docs/operations",
    ],
    "Build on": ["docs/encoder", "docs/architecture", "CONTRIBUTING", "CHANGELOG"],
}
OTHER = "More"  # the menu's heading for pages that MENU does not name

project = "TorchServe fast handlers"
copyright = "its contributors, Apache-2.0"
root_doc = HOME
extensions = ["myst_parser"]
include_patterns = ["docs/*.md", "docs/clients/*.md", "docs/soak/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
# Folders that Sphinx need not walk through.
exclude_patterns = [".*", "build", "handlers", "archive", "client", "scripts", "tests", "model_store", "logs"]
myst_heading_anchors = 4  # links to headings are checked; their names are those that GitHub gives them
# Answers are shown shortened, with "...", which no JSON has.
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = project
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
# The site's own address, without docs/index.html.
templates_path = ["."]
html_additional_pages = {"index": "to_home.html"}


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _add_menu)


def _add_menu(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the menu below the home page: its syntax is Sphinx's own, and would be noise in a repository's browser."""
    if page != HOME:
        return
    named = {name for pages in MENU.values() for name in pages}
    others = sorted(app.env.found_docs - named - {HOME})
    for caption, pages in {**MENU, OTHER: others}.items():
        listed = [f"/{name}" for name in pages if name in app.env.found_docs]
        if listed:
            source[0] += "\n".join(["\n", "```{toctree}", ":hidden:", f":caption: {caption}", "", *listed, "```", ""])
