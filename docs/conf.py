"""Sphinx configuration."""

project = "katalys_wsgi"
author = "The katalys_wsgi developers"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "katalys_wsgi"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
myst_heading_anchors = 3
