"""The documentation site. `make docs` builds it; no page of it asks another machine for anything."""

import shutil
import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

# Pages that stand beside this folder, for those who read the repository.
for folder in ("notebooks", "deploy", "benchmarks"):
    shutil.rmtree(HERE / folder, ignore_errors=True)
    shutil.copytree(HERE.parent / folder, HERE / folder)

project = "skylevel"
author = "The skylevel developers"
project_copyright = "the skylevel developers, BSD 3-clause"
release = version = version_of("skylevel")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "generated", "mathml", "no_requests"]
exclude_patterns = ["_build", "_ext", "deploy/**/[!R]*", "notebooks/*.py", "benchmarks/[!qs]*"]

myst_enable_extensions = ["deflist", "dollarmath", "attrs_block"]
myst_heading_anchors = 3
# Notebooks are stored with what they gave: `make notebooks` runs them, and the tests do.
nb_execution_mode = "off"

# A name in single backticks is code, and a link where the site has it.
default_role = "py:obj"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_custom_sections = [("Returns", "params_style"), ("Attributes", "params_style")]

html_theme = "furo"
html_title = f"skylevel {release}"
html_static_path = ["_static"]
html_css_files = ["skylevel.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {"footer_icons": [], "top_of_page_buttons": []}
