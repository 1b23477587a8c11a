"""The web site: the built notebooks as they are, the pages in this folder, and the docstrings.

    python reproduce/site/conf.py [OUTPUT]

This writes OUTPUT/index.html (runs/site by default). Warnings are errors, and no notebook is run.
The file is also Sphinx's configuration. Neither building nor reading the site needs a network. New
notebooks, pages and modules are found without an entry here. The alternative text of a notebook's
figure is a comment in the cell that shows it, `# alt: what it shows`; a cell with several figures
has one such line for each, in order. Cells tagged hide-input, hide-output or hide-cell are folded.
"""

import ast
import json
import re
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType

from docutils import nodes
from sphinx.cmd.build import main as sphinx_build

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

project, author, html_title = "bpgo", "the authors of bpgo", "bpgo"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
html_theme = "furo"
html_copy_source = html_show_sourcelink = html_show_copyright = False
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
html_static_path = ["site.css", str(MATHJAX / "tex-svg.js")]  # one file that needs no fonts
html_css_files, html_favicon = ["site.css"], "favicon.svg"
mathjax_path = "tex-svg.js"

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # it would come from the network; each slider has a still image beside it
suppress_warnings = [
    "mystnb.unknown_mime_type",  # records for machines, which are shown as text too
    "ref.python",  # a name such as Scene, which more than one world has
]
nb_mime_priority_overrides = [("html", "image/gif", 25)]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

default_role = "py:obj"  # `name` in a docstring becomes a link if there is such an object
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format, autodoc_use_type_comments = "short", False
autodoc_inherit_docstrings = False  # torch's would be shown for every `forward`
add_module_names = False
toc_object_entries_show_parents = "hide"


# ------------------------------------------------------------------------------ Sphinx's events


def setup(app):
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("doctree-read", describe_figures)


def as_rst(app, what, name, object, options, lines):
    """Turn a docstring, which is plain text, into reStructuredText, in place.

    Paragraphs and lists stay. A block indented by four spaces, after a blank line or a line that
    ends with a colon, is shown as it is. Any other indented line continues the one above. What
    reStructuredText would take for markup is escaped, except in blocks and in backticks.
    """
    found, in_block, in_list = [], False, False
    for line in lines:
        above = found[-1] if found else ""
        if not line.strip():
            found.append("")
        elif line.startswith("    ") and (in_block or not above or above.endswith(":")):
            if not in_block:
                found += ["", "::", ""]
            in_block = True
            found.append(line)
        elif line.startswith(" ") and not in_list and above:
            found[-1] = f"{above} {escaped(line.strip())}"
        else:
            if in_block and above:
                found.append("")
            in_block = False
            if not line.startswith(" "):
                in_list = line.startswith("- ")
            found.append(escaped(line))
    lines[:] = found


def escaped(line):
    """A line in which only a name in backticks is markup, and anything else in them is code.

    A number at the start of the line does not start a list.
    """
    parts = re.split(r"(`[^`]+`)", line)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.sub(r"([*|_\\`]|(?<=^\d)\.)", r"\\\1", part)
        elif not re.fullmatch(r"`[\w.]+`", part):
            parts[i] = f"`{part}`"
    return "".join(parts)


def skip_member(app, what, name, object, skip, options):
    """Leave out what is documented elsewhere.

    These are the fields of named tuples, which the docstring of their class explains, and classes
    and functions that a package only imports.
    """
    if what == "module" and isinstance(object, type | FunctionType):
        if object.__module__ != app.env.temp_data.get("autodoc:module"):
            return True
    return skip or str(object.__doc__).startswith("Alias for field number")


def describe_figures(app, doctree):
    """Give each image in a cell's output its alternative text.

    It is that of the cell's lines `# alt:`, or else the heading above the cell.
    """
    for cell in doctree.findall(is_code_cell):
        texts = re.findall(r"# alt: *(.+)$", cell.children[0].astext(), re.M)
        heading = next(iter(cell.parent.findall(nodes.title)), None)
        title = heading.astext() if heading else app.env.docname
        for i, image in enumerate(cell.findall(nodes.image)):
            image["alt"] = texts[i] if i < len(texts) else f"Figure: {title}"


def is_code_cell(node):
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


# -------------------------------------------------------------------------------------- sources


def prepare(source):
    """Fill the empty folder `source` with what Sphinx reads.

    These are the pages, the notebooks and a page for each package. A comment `<!-- name -->` in a
    page is replaced by the block of this name.
    """
    not_pages = shutil.ignore_patterns("conf.py", "*.css", "*.svg", "__pycache__")
    shutil.copytree(HERE, source, dirs_exist_ok=True, ignore=not_pages)
    not_built = shutil.ignore_patterns("*.py", ".*")
    shutil.copytree(ROOT / "notebooks", source / "notebooks", ignore=not_built)
    blocks = {
        "notebooks": list_notebooks(source / "notebooks"),
        "modules": write_packages(source / "api"),
        "image": copy_image(source),
    }
    for page in source.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for name, block in blocks.items():
            text = text.replace(f"<!-- {name} -->", block)
        page.write_text(text, encoding="utf-8")


def list_notebooks(folder):
    """A list of the notebooks: the question of each with a link, and how long it takes."""
    items = []
    for path in sorted(folder.glob("*.ipynb")):
        first_cell = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
        title, effort = "".join(first_cell["source"]).splitlines()[:2]
        number, question = re.fullmatch(r"# (\d+)\. (.+)", title).groups()
        items.append(f"{number}. [{question}](notebooks/{path.name})\\\n   {effort}\n")
    return "".join(items)


def write_packages(folder):
    """Write a page for each package. Returns a list of the modules and their first paragraphs."""
    folder.mkdir()
    pages, items = {}, []
    for path in sorted((ROOT / "bpgo").rglob("*.py")):  # `__init__` comes first
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = ".".join(parts[:-1])
        name = package if parts[-1] == "__init__" else ".".join(parts)
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if not docstring or parts[-1] == "__main__":
            continue
        summary = " ".join(docstring.split("\n\n")[0].split())
        items.append(f"{{py:mod}}`{name}`\\\n{summary}\n\n")
        underline = ("=" if name == package else "-") * len(name)
        section = f"{name}\n{underline}\n\n.. automodule:: {name}\n\n"
        pages[package] = pages.get(package, "") + section
    for package, text in pages.items():
        (folder / f"{package}.rst").write_text(text, encoding="utf-8")
    return "".join(items)


def copy_image(source):
    """Copy the image of the README. Returns the lines that show it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- image -->\n(.*?)<!-- /image -->", readme, re.S)[1]
    for path in re.findall(r"\]\((.+?)\)", block):
        shutil.copy(ROOT / path, source)
        block = block.replace(path, Path(path).name)
    return block


def main(output=ROOT / "runs" / "site"):
    """Build the site into `output`, and return the exit code.

    It replaces the site that is there, which stays if the build fails.
    """
    if output.exists() and not (output / "objects.inv").exists():
        sys.exit(f"{output} exists and is not a site: name another folder")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder) / "source")
        options = ["-W", "--keep-going", "-q", "-c", str(HERE), "-d", f"{folder}/trees"]
        failed = sphinx_build([*options, f"{folder}/source", f"{folder}/html"])
        if not failed:
            shutil.rmtree(output, ignore_errors=True)
            shutil.copytree(f"{folder}/html", output)
            print(f"{output / 'index.html'}")
        return failed


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
