"""Sphinx configuration: Markdown by MyST, the API from docstrings. Builds offline."""

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

import georeg

project = "georeg"
author = copyright = "the georeg authors"
release = version = georeg.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"georeg {release}"
html_static_path: list[str] = ["_static"]
html_css_files = ["tables.css"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
# An override without a docstring is documented where it is declared.
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True


class WholeNumbers(SphinxPostTransform):
    """A number and its error stay on one line of a table's cell."""

    default_priority = 900

    def run(self, **_: object) -> None:
        for entry in self.document.findall(nodes.entry):
            for text in list(entry.findall(nodes.Text)):
                whole = text.replace(" ± ", "\u00a0±\u00a0").replace(" … ", "\u00a0…\u00a0")
                text.parent.replace(text, nodes.Text(whole))


def setup(app):  # type: ignore[no-untyped-def]
    """Called by Sphinx."""
    app.add_post_transform(WholeNumbers)
