"""Figures of the lesson: pictures with captions, attention maps, losses, gates, gradient norms.

Every `show_*` and `plot_*` function returns a matplotlib Figure that is not registered with pyplot: as the last
expression of a cell it is displayed once, `display(fig)` shows it inside a loop, `fig.savefig(path)` saves it. The
user's matplotlib settings do not affect a figure and are not changed. Text is drawn literally: `$`, `_` and `<END>`
are not markup.

`captions.py` shows captions, `attention.py` attention maps, `plots.py` curves and heat maps, `viewer.py` is the
interactive attention viewer, `page.py` exports a notebook as one page. `figures.py`, `text.py` and `arrays.py` are
shared: figures and their layout, text, and input arrays.
"""

from eecs598.vis.arrays import to_display
from eecs598.vis.attention import attention_overlay, show_attention
from eecs598.vis.captions import show_captions
from eecs598.vis.plots import plot_gates, plot_gradient_norms, plot_growth, plot_losses, plot_ratios, plot_similarity
from eecs598.vis.text import fonts_for, load_font
from eecs598.vis.viewer import attention_viewer

__all__ = [
    "attention_overlay", "attention_viewer", "fonts_for", "load_font", "plot_gates", "plot_gradient_norms",
    "plot_growth", "plot_losses", "plot_ratios", "plot_similarity", "show_attention", "show_captions", "to_display",
]  # fmt: skip
