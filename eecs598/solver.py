"""The training loop: every example once an epoch, in a new order, with the validation loss beside it."""

import functools
import math
import time
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

PRECISIONS = ("float32", "bfloat16")


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


@dataclass
class History:
    """What a training run leaves: `losses`, one an iteration; `val_losses`, one an epoch if there was val data."""

    iterations_per_epoch: int
    losses: list[float] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def train(
    model, images, captions, *, num_epochs, batch_size, learning_rate, lr_decay=1.0, image_index=None,
    val_data=None, seed=0, progress=True, precision="float32",
):  # fmt: skip
    """Train a captioner with Adam; `model(images, captions)` is its loss, the mean over the batch.

    images (n, ...) on any device, pictures or whatever else the model takes; captions (m, T + 1) int64.
    image_index (m,): the row of `images` that each caption describes; None: caption k belongs to image k.
    lr_decay multiplies the learning rate after each epoch. val_data: (images, captions) for the validation
    loss after each epoch. seed orders the examples. precision: see `autocast`. Returns a History.
    Raises ValueError for options or sizes that make no sense, TrainingError when the loss is no longer finite.
    """
    _check_options(num_epochs=num_epochs, batch_size=batch_size, learning_rate=learning_rate, lr_decay=lr_decay)
    image_index = _check_pairs(images, captions, image_index)
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    precision = best_precision(device) if precision == "auto" else precision
    optimizer = make_optimizer(parameters, learning_rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, lr_decay)
    order = torch.Generator().manual_seed(seed)
    history = History(math.ceil(len(captions) / batch_size))
    bar = tqdm(total=num_epochs * history.iterations_per_epoch, unit="batch", mininterval=0.5, disable=not progress)
    began = time.perf_counter()
    try:
        for epoch in range(1, num_epochs + 1):
            bar.set_description(f"epoch {epoch}/{num_epochs}")
            model.train()
            for rows in torch.randperm(len(captions), generator=order).split(batch_size):
                with autocast(device, precision):
                    loss = model(images[image_index[rows]].to(device), captions[rows].to(device))
                history.losses.append(_finite(loss, epoch, optimizer))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                bar.set_postfix(_running(history), refresh=False)
                bar.update()
            schedule.step()
            if val_data is not None:
                history.val_losses.append(evaluate_loss(model, *val_data, batch_size))
                bar.set_postfix(_running(history))
    finally:
        bar.close()
        history.seconds = time.perf_counter() - began
    return history


def make_optimizer(parameters, learning_rate):
    """Adam (Kingma and Ba, 2015), each tensor's update in one pass over memory where PyTorch has that ("fused")."""
    parameters = list(parameters)
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.Adam(parameters, lr=learning_rate, fused=fused)


def autocast(device, precision):
    """A context in which products are computed in "float32" or "bfloat16"; parameters stay float32 in both."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be auto or one of {', '.join(PRECISIONS)}")
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


@functools.cache
def best_precision(device):
    """The precision in which this device multiplies matrices faster, found by trying: "float32" or "bfloat16"."""
    seconds = {}
    for precision in PRECISIONS:
        a = torch.ones(512, 1024, dtype=getattr(torch, precision), device=device)
        b = torch.ones(1024, 1024, dtype=a.dtype, device=device)
        trials = [_time_product(a, b) for _ in range(7)]
        seconds[precision] = min(trials[2:])
    return "bfloat16" if seconds["bfloat16"] < 0.8 * seconds["float32"] else "float32"


def _time_product(a, b):
    began = time.perf_counter()
    (a @ b)[0, 0].item()  # .item() waits for a GPU
    return time.perf_counter() - began


@torch.no_grad()
def evaluate_loss(model, images, captions, batch_size=256):
    """The mean loss of (images, captions), without changing the model."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    total = 0.0
    for rows in torch.arange(len(captions)).split(batch_size):
        total += model(images[rows].to(device), captions[rows].to(device)).item() * len(rows)
    model.train(was_training)
    return total / len(captions)


def _finite(loss, epoch, optimizer):
    value = loss.item()
    if not math.isfinite(value):
        rate = optimizer.param_groups[0]["lr"]
        raise TrainingError(f"the loss became {value} in epoch {epoch}: lower the learning rate, now {rate:g}")
    return value


def _running(history, window=50):
    """What the progress bar shows: the mean loss of the last iterations and the last validation loss."""
    recent = history.losses[-window:]
    shown = {"loss": f"{sum(recent) / len(recent):.3f}"}
    if history.val_losses:
        shown["val"] = f"{history.val_losses[-1]:.3f}"
    return shown


def _check_options(num_epochs, batch_size, learning_rate, lr_decay):
    for name, value in {"num_epochs": num_epochs, "batch_size": batch_size}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1")
    for name, value in {"learning_rate": learning_rate, "lr_decay": lr_decay}.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value!r}; it must be a positive number")


def _check_pairs(images, captions, image_index):
    """image_index, made or checked."""
    if len(captions) == 0:
        raise ValueError("there are no captions to train on")
    if image_index is None:
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} images but {len(captions)} captions: pass image_index, or as many of each")
        return torch.arange(len(captions))
    if image_index.shape != captions.shape[:1]:
        raise ValueError(f"image_index is {tuple(image_index.shape)}; it must be ({len(captions)},), one a caption")
    if int(image_index.min()) < 0 or int(image_index.max()) >= len(images):
        raise ValueError(f"image_index goes up to {int(image_index.max())}, but there are {len(images)} images")
    return image_index
