"""Sphinx configuration: Markdown by MyST, the API from docstrings. Builds offline."""

import georeg

project = "georeg"
author = copyright = "the georeg authors"
release = version = georeg.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"georeg {release}"
html_static_path: list[str] = []

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
# An override without a docstring is documented where it is declared.
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
