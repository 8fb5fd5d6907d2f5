"""The documentation site: guides in Markdown, the API from docstrings, the notebooks as executed.

    make docs

Warnings are errors. Nothing is fetched while building; formulas in notebooks are typeset in the
reader's browser by MathJax.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / "_ext"))

import vdm

project = "vdm"
author = "The vdm authors"
release = version = vdm.__version__
html_title = "vdm"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "signatures",
    "generated",
    "code_links",
]
exclude_patterns = ["_ext"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebooks` has executed them

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # `signatures` takes them from the source
autodoc_default_options = {"members": True, "no-value": True}
python_maximum_signature_line_length = 88
nitpicky = True
# A name in backticks becomes a link where it is ours and code where it is not.
default_role = "py:obj"

html_theme = "furo"
html_show_copyright = False
# Some pages are made while building: their sources are not what they show.
html_copy_source = False
html_show_sourcelink = False
