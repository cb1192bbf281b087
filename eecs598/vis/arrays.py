"""Converting the inputs of figures to numpy arrays."""

import numpy as np
import torch


def to_display(image):
    """A picture as a uint8 numpy array (H, W, 3), for imshow.

    image: (3, H, W) or (H, W, 3), tensor or array, uint8 or float in [0, 1]; an ambiguous shape is taken as channels
    first. Raises ValueError for anything else.
    """
    picture = to_numpy(image)
    if picture.ndim != 3 or 3 not in (picture.shape[0], picture.shape[2]) or picture.size == 0:
        raise ValueError(f"a picture is (3, H, W) or (H, W, 3), got {picture.shape}: pass one RGB picture")
    if picture.shape[0] == 3:
        picture = picture.transpose(1, 2, 0)
    if picture.dtype == np.uint8:
        return np.ascontiguousarray(picture)
    if picture.dtype.kind != "f":
        raise ValueError(f"a picture is uint8 or float in [0, 1], got {picture.dtype}: convert it first")
    low, high = picture.min(), picture.max()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # written so that NaN fails too
        raise ValueError(f"a float picture lies in [0, 1], got {low:.3g} to {high:.3g}: divide by 255, once")
    return np.rint(picture.clip(0, 1) * 255).astype(np.uint8)


def to_numpy(values):
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    return np.asarray(values)


def check_weights(heat, what):
    """Raise ValueError unless all of a numpy array of attention weights are finite and not negative."""
    if not (np.isfinite(heat).all() and heat.min() >= 0):
        seen = f"{heat.min():.3g} to {heat.max():.3g}"
        raise ValueError(f"{what} are {seen}: they must be finite and >= 0, apply softmax")


def check_lengths(wanted, n, **given):
    for name, values in given.items():
        if values is not None and len(values) != n:
            raise ValueError(f"{name} has {len(values)} entries for {wanted}: pass one for each")
