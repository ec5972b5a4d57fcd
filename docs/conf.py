"""Configuration of the documentation: `sphinx-build -W --keep-going docs SITE`. Nothing is fetched, at build time or later."""

import sys
import tomllib
from pathlib import Path

from sphinx.ext.autodoc import mock

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]
# Signatures and docstrings need no framework. `autodoc_mock_imports` would still start Keras, to look at base classes.
frameworks = mock(["keras", "tensorflow", "torch"])
frameworks.__enter__()  # for the whole build

project = "resnet-twins"
copyright = f"the authors of {project}"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = [
    "myst_nb",  # brings myst_parser
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "commands",
    "docstrings",
    "lessons",
    "mathml",
    "traps",
]
exclude_patterns = ["_ext"]
smartquotes = False  # in docstrings and help texts, quotes are code
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

nb_execution_mode = "off"  # `-D nb_execution_mode=cache` runs the lessons, and shows what they print and draw
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell
nb_output_stderr = "remove"  # where the frameworks log
nb_merge_streams = True
nb_ipywidgets_js = {}  # by default from other machines

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88

copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static", "../twins/web"]  # the microscope, which a command writes too
html_css_files = ["site.css", "lessons.css"]
html_favicon = "_static/icon.svg"
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": project, "image_light": "_static/icon.svg", "image_dark": "_static/icon.svg"},
    "navbar_end": ["theme-switcher"],
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
}
html_sidebars = {"index": [], "tutorial": []}  # nothing lies below them
