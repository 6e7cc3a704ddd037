"""The site, by Sphinx: `nox -s docs`, or `sphinx-build -W --keep-going docs docs/_build/html`."""

import inspect
import os
import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

import latentfit

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"

project = "latentfit"
author = "The latentfit contributors"
copyright = author
release = version = latentfit.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "examples/latentfit-zuko/tests", "**/.pytest_cache"]
smartquotes = False  # they would make one dash of --option
highlight_language = "none"  # of blocks that name no language: what a command prints
default_role = "code"  # docstrings write `name`, as Markdown does

myst_heading_anchors = 3
nb_execution_mode = "force"  # an example's output is that of this build
nb_execution_in_temp = True  # what an example saves is no page of ours
nb_execution_timeout = 600  # seconds of one cell, on a busy machine
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True  # one box for what a cell prints
os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # of tqdm, in a notebook without ipywidgets

autodoc_default_options = {
    "members": True,
    "imported-members": True,
    "member-order": "bysource",
    "show-inheritance": True,
}
autodoc_preserve_defaults = True  # as they are written, not their repr
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"latentfit {release}"
html_static_path = ["_static"]
html_css_files = ["latentfit.css"]
html_show_sphinx = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"


def copy_results(*_: object) -> None:
    """Bring the published tables and figures into the site: they lie outside of its folder."""
    shutil.rmtree(DOCS / "results", ignore_errors=True)
    for path in RESULTS.rglob("*"):
        if path.suffix in (".md", ".png"):
            target = DOCS / "results" / path.relative_to(RESULTS)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    tables = sorted(path.parent.name for path in RESULTS.glob("*/table.md"))
    entries = "\n".join(f"{name} <{name}/table>" for name in tables)
    with (DOCS / "results" / "README.md").open("a") as page:
        page.write(f"\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n")


def lead_links_home(_: Sphinx, page: str, source: list[str]) -> None:
    """Have links into and out of the published results lead to where these are in the site."""
    source[0] = re.sub(r"\]\((?:\.\./)+benchmarks/results/", "](/results/", source[0])
    if page.startswith("results/"):
        source[0] = re.sub(r"\]\((?:\.\./)+docs/", "](/", source[0])


def show_options(
    app: Sphinx, kind: str, name: str, thing: object, *_: object
) -> tuple[str, None] | None:
    """Write a method's options with their defaults, without the ranges that annotations give them."""
    del app
    if kind != "class" or not name.startswith("latentfit_"):
        return None
    signature = inspect.signature(thing, eval_str=False)
    plain = [option.replace(annotation=option.empty) for option in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty)), None


def show_examples(app: Sphinx, context: object, lines: list[str]) -> None:
    """Set the examples in a command's help as code: "| Examples:" and the lines that follow."""
    del app, context
    given = list(lines)
    lines.clear()
    for line in given:
        is_head = line.startswith("| ") and line.endswith(":")
        lines += [line[2:] + ":", ""] if is_head else [line.removeprefix("| ")]


def draw_dashes(_: Sphinx, page: nodes.document) -> None:
    """Write the dash between a parameter's name and what it is, which smartquotes would have done."""
    for text in list(page.findall(nodes.Text)):
        if text.startswith(" -- "):
            text.parent.replace(text, nodes.Text(f" – {text[4:]}"))


def setup(app: Sphinx) -> None:
    """Connect all of the above."""
    app.connect("doctree-read", draw_dashes)
    app.connect("sphinx-click-process-description", show_examples)
    app.connect("sphinx-click-process-epilog", show_examples)
    app.connect("autodoc-process-signature", show_options)
    app.connect("config-inited", copy_results)
    app.connect("source-read", lead_links_home)
