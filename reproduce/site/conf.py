"""The web site: the built notebooks as they are (nothing is run), the pages beside this file, and the docstrings.

    python reproduce/site/conf.py [OUTPUT]      writes OUTPUT/index.html (runs/site by default); warnings are errors

This is also Sphinx's configuration. The site needs no network, neither to be built nor to be read. A new notebook, page or module is
taken up by itself. The alternative text of a notebook's figure is a comment in the cell that shows it, `# alt: what is to be seen`; a
cell with several figures has one such line for each, in order. Cells tagged hide-input, hide-output or hide-cell are folded.
"""

import ast
import json
import re
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx.cmd.build import main as sphinx_build

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

project, author, html_title = "bpgo", "the authors of bpgo", "bpgo"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
html_theme = "furo"
html_copy_source = html_show_sourcelink = html_show_copyright = False
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
html_static_path = ["site.css", str(MATHJAX / "tex-svg.js")]  # one file, no fonts beside it
html_css_files, html_favicon = ["site.css"], "favicon.svg"
mathjax_path = "tex-svg.js"

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # they would come from the network; each slider has a still picture beside it
suppress_warnings = [
    "mystnb.unknown_mime_type"
]  # records for machines, which stand beside their text
nb_mime_priority_overrides = [("html", "image/gif", 25)]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

default_role = "py:obj"  # `name` in a docstring: a link where there is such an object, else code
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format, autodoc_use_type_comments = "short", False
add_module_names = False
toc_object_entries_show_parents = "hide"


def as_rst(app, what, name, object, options, lines):
    """Docstrings are plain text: keep paragraphs, lists and indented blocks, and escape what reStructuredText would take for markup."""
    inside = False
    for i, line in enumerate(lines):
        indented = line.startswith("    ")
        if indented and not inside and not (i and lines[i - 1].strip()):
            inside, lines[i] = True, f"::\n\n{line}"
        elif not indented:
            inside = inside and not line
            parts = re.split(
                r"(`[^`]+`)", line
            )  # what is in backticks stays; a number at the start of a line is not a list's
            lines[i] = "".join(
                part if n % 2 else re.sub(r"([*|_\\`]|(?<=^\d)\.)", r"\\\1", part)
                for n, part in enumerate(parts)
            )
    lines[:] = "\n".join(lines).split("\n")


def describe_figures(app, doctree):
    """Give each picture in a cell's output its alternative text: of the cell's lines `# alt:`, else the heading it stands under."""
    for cell in doctree.findall(
        lambda node: isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"
    ):
        texts = re.findall(r"# alt: *(.+)$", cell.children[0].astext(), re.M)
        heading = next(iter(cell.parent.findall(nodes.title)), None)
        for i, picture in enumerate(cell.findall(nodes.image)):
            picture["alt"] = (
                texts[i]
                if i < len(texts)
                else f"Figure: {heading.astext() if heading else app.env.docname}"
            )


def setup(app):
    app.connect("autodoc-process-docstring", as_rst)
    # Of the fields of a named tuple Python says nothing but this; what they are stands in the docstring of the class.
    app.connect(
        "autodoc-skip-member",
        lambda *given: given[4] or str(given[3].__doc__).startswith("Alias for field number"),
    )
    app.connect("doctree-read", describe_figures)


def prepare(source):
    """Fill the empty folder `source` with what Sphinx reads: pages, notebooks, and a page for each package."""
    shutil.copytree(
        HERE,
        source,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("conf.py", "*.css", "*.svg", "__pycache__"),
    )
    shutil.copytree(
        ROOT / "notebooks", source / "notebooks", ignore=shutil.ignore_patterns("*.py", ".*")
    )
    (source / "api").mkdir()
    blocks = {"notebooks": "", "modules": ""}
    for path in sorted((source / "notebooks").glob("*.ipynb")):
        title, effort = "".join(
            json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
        ).splitlines()[:2]
        number, question = re.fullmatch(r"# (\d+)\. (.+)", title).groups()
        blocks["notebooks"] += f"{number}. [{question}](notebooks/{path.name})\\\n   {effort}\n"
    for path in sorted((ROOT / "bpgo").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = ".".join(parts[:-1])
        name = package if parts[-1] == "__init__" else ".".join(parts)
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split(
            "\n\n"
        )[0]
        if summary and parts[-1] != "__main__":
            blocks["modules"] += f"{{py:mod}}`{name}`\\\n{' '.join(summary.split())}\n\n"
            with open(
                source / "api" / f"{package}.rst", "a", encoding="utf-8"
            ) as file:  # `__init__` comes first
                file.write(
                    f"{name}\n{('=' if name == package else '-') * len(name)}\n\n.. automodule:: {name}\n\n"
                )
    blocks["picture"] = re.search(
        r"<!-- picture -->\n(.*?)<!-- /picture -->",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.S,
    )[1]
    for path in re.findall(r"\]\((.+?)\)", blocks["picture"]):
        shutil.copy(ROOT / path, source)
        blocks["picture"] = blocks["picture"].replace(path, Path(path).name)
    for page in source.glob("*.md"):
        page.write_text(
            re.sub(
                r"<!-- (\w+) -->",
                lambda m: blocks.get(m[1], m[0]),
                page.read_text(encoding="utf-8"),
            ),
            encoding="utf-8",
        )


def main(output=ROOT / "runs" / "site"):
    """Build the site into `output`, in place of the one that is there, which stays if the build fails; returns the exit code."""
    if output.exists() and not (output / "objects.inv").exists():
        sys.exit(f"{output} exists and is no site: name another folder")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder) / "source")
        failed = sphinx_build(
            [
                "-W",
                "--keep-going",
                "-q",
                "-c",
                str(HERE),
                "-d",
                f"{folder}/trees",
                f"{folder}/source",
                f"{folder}/html",
            ]
        )
        if not failed:
            shutil.rmtree(output, ignore_errors=True)
            shutil.copytree(f"{folder}/html", output)
            print(f"{output / 'index.html'}")
        return failed


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
