"""Configuration of the documentation: ``make docs``."""

import pathlib
import sys

import fedjax_lora

DOCS = pathlib.Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))  # the extension of this folder
sys.path.insert(0, str(DOCS.parent))  # experiments/, which is not part of the wheel

project = "fedjax_lora"
author = "The fedjax_lora authors"
version = release = fedjax_lora.__version__
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "generated_pages",
]
exclude_patterns = ["_build", "_ext", "methods/notes", "**.ipynb_checkpoints"]

# A single backtick in a docstring is code, as in Markdown.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # fields of records are listed once
python_maximum_signature_line_length = 88
add_module_names = False

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3

# Pages with code cells are executed; the notebook is executed by its own command and test.
nb_execution_mode = "cache"
nb_execution_excludepatterns = ["howto/notebook.ipynb"]
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_output_stderr = "remove"
nb_merge_streams = True

html_theme = "sphinx_book_theme"
html_title = "fedjax_lora"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "navbar_persistent": [],  # the search field is in the side bar
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": False,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
copybutton_exclude = ".linenos, .gp"
