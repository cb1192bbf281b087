"""Checks of properties, without a reference: (table, run, values of the main case) -> more rows."""

import torch

from eecs598.checks.levels import lesson_only
from eecs598.checks.parts import DOT_PRODUCT_ATTENTION, IGNORED, IGNORING, MAIN, TEMPORAL_SOFTMAX
from eecs598.grad import rel_error


@lesson_only
def weigh_cells(table, run, values):
    """The weights for a picture sum to 1, and permuting the cells of the grid permutes the weights."""
    weights = values["attn_weights"]
    table.add("weights sum to 1", (weights.sum(dim=(1, 2)) - 1).abs().max())
    inputs, incoming = DOT_PRODUCT_ATTENTION.draw(MAIN)
    order = torch.randperm(weights[0].numel(), generator=torch.Generator().manual_seed(2))

    def shuffle(grid):
        return grid.flatten(-2)[..., order].view(grid.shape)

    shuffled = run(inputs | {"A": shuffle(inputs["A"])}, incoming, {})["attn_weights"]
    table.add("cells permuted, weights permuted", rel_error(shuffled, shuffle(weights)))


@lesson_only
def ignore_padding(table, run, values):
    """Padding must have a gradient of exactly 0."""
    y = TEMPORAL_SOFTMAX.draw(IGNORING)[0]["y"]
    ignored = values["dx"][y == IGNORED]
    if not table.add("dx where y is ignore_index", ignored.abs().max(), limit=0).passed:
        table.hint("dx is exactly 0 where y is ignore_index: multiply by the mask y != ignore_index")
