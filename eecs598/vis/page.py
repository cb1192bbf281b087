"""An executed notebook as one page that needs no network: an exporter for nbconvert.

    python -m nbconvert --to eecs598.vis.page.Page NOTEBOOK

Formulas become MathML, which browsers draw themselves. Each progress bar is shown in its last state. The page follows
the reader's choice of a light or a dark theme.
"""

from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

TEMPLATE = """\
{%- extends 'index.html.j2' -%}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}
<style>
@media (prefers-color-scheme: dark) {
{% include 'static/theme-dark.css' %}
}
:root { color-scheme: light dark; --jp-cell-prompt-width: 76px; }
@media (max-width: 900px) {
  :root { --jp-code-font-size: 11.5px; }
  .jp-InputPrompt, .jp-OutputPrompt { display: none; }
}
body.jp-Notebook { background: var(--jp-layout-color0); padding: 1em; }
main { max-width: 1080px; margin: auto; }
.highlight pre, .jp-OutputArea-output pre { font-family: var(--jp-code-font-family); white-space: pre; }
.jp-InputArea-editor, .jp-OutputArea-output { overflow-x: auto; min-width: 0; }
.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"] { background: none; }
.jp-OutputArea-prompt { flex: 0 0 var(--jp-cell-prompt-width); width: var(--jp-cell-prompt-width); }
.jp-RenderedMarkdown .highlight pre { font-size: var(--jp-code-font-size); margin: 0; padding: 0.5em; }
.jp-RenderedImage img { background: white; }
math { font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", "DejaVu Math TeX Gyre", math; }
.jp-RenderedHTMLCommon math { font-size: 1.1em; }
.jp-RenderedHTMLCommon math[display=block] { margin: 1em 0; padding: 0.2em 0; overflow: auto hidden; }
.jp-RenderedHTMLCommon details { margin: 0.5em 0 1em; }
</style>
{% endblock %}
"""


class _Renderer(IPythonRenderer):
    """Markdown to HTML, with formulas as MathML."""

    def inline_math(self, body):
        return to_mathml(body)

    def block_math(self, body):
        return to_mathml(body.strip(), display="block")


def to_mathml(formula, display="inline"):
    """A formula of LaTeX as MathML."""
    return convert(formula.replace(r"\mathrm", r"\text"), display=display)  # it makes letters of \mathrm slanted


class Page(HTMLExporter):
    """Writes FILE.html beside FILE.ipynb."""

    raw_template = TEMPLATE

    @property
    def default_config(self):
        config = super().default_config
        config.merge(Config({"CoalesceStreamsPreprocessor": {"enabled": True}}))
        return config

    @pass_context
    def markdown2html(self, context, source):
        """The filter by which the template turns Markdown, in cells and in outputs, into HTML."""
        return MarkdownWithMath(renderer=_Renderer(escape=False)).render(source)

