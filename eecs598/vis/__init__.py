"""Figures of the lesson: captions beside pictures, attention over pictures, losses, gates, gradient norms.

Every `show_*` and `plot_*` function returns a matplotlib Figure that pyplot knows nothing of: as a cell's
last expression it is displayed once, `display(fig)` shows it inside a loop, `fig.savefig(path)` writes it.
The user's own matplotlib settings neither change a figure nor are changed by one. All text is drawn
literally: `$`, `_` and `<END>` are not markup.

`captions.py` shows captions, `attention.py` attention, `plots.py` curves and maps, `viewer.py` is the attention viewer,
a page for the browser (imported by itself: it runs a captioner). `figures.py`, `text.py` and `arrays.py` are what they
share: figures and what is placed in them, lines of text, what is given.
"""

from eecs598.vis.arrays import to_display
from eecs598.vis.attention import attention_overlay, show_attention
from eecs598.vis.captions import show_captions
from eecs598.vis.plots import plot_gates, plot_gradient_norms, plot_growth, plot_losses, plot_ratios, plot_similarity
from eecs598.vis.text import fonts_for, load_font

__all__ = [
    "attention_overlay", "fonts_for", "load_font", "plot_gates", "plot_gradient_norms", "plot_growth", "plot_losses",
    "plot_ratios", "plot_similarity", "show_attention", "show_captions", "to_display",
]  # fmt: skip
