"""An executed notebook as one HTML page: prose and results, no code, readable without a network."""

from __future__ import annotations

from pathlib import Path

import nbformat
from jinja2 import DictLoader
from nbconvert import HTMLExporter

from core.atomic import write_atomically

WIDGET = "application/vnd.jupyter.widget-view+json"

# nbconvert's own page fetches three scripts before it shows anything. Only the one of formulas stays in, where there
# are any; widgets, which need a kernel and two more scripts, are left out (notebooks show a frame that needs neither).
# Progress bars and warnings are grey; on nbconvert's red they look like failures, which have tracebacks of their own.
# Printed lines break between words.
_TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{% if resources.has_formulas %}{{ super() }}{% endif %}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}{{ super() }}
<style>.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"] {background: none; color: #777}
.jp-OutputArea-output pre {word-break: normal !important; overflow-wrap: anywhere !important}</style>
{%- endblock -%}
"""


def export_html(notebook: Path) -> Path:
    """Write `<name>.html` beside an executed notebook and return its path; code cells are left out."""
    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if WIDGET not in each.get("data", {})]
    resources = {
        "metadata": {"name": notebook.stem.replace("_", " ")},
        "has_formulas": any(cell.cell_type == "markdown" and "$" in cell.source for cell in content.cells),
    }
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"report.html.j2": _TEMPLATE})],
        template_file="report.html.j2",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        embed_images=True,
    )
    html, _ = exporter.from_notebook_node(content, resources=resources)
    page = notebook.with_suffix(".html")
    write_atomically(page, html.encode())
    return page
