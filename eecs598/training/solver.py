"""The training loop: shuffled epochs, with the validation loss after each."""

import contextlib
import math
import time
import traceback
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from eecs598.choosing import choose
from eecs598.decoding import evaluating
from eecs598.encoders import get_encoder
from eecs598.files import page_releaser
from eecs598.training import processes
from eecs598.training.options import PRECISIONS, Options

RECENT = 50  # iterations whose mean the progress bar shows


class TrainingError(RuntimeError):
    """Training cannot continue. The message says why and what to change."""


@dataclass
class History:
    """The record of a run: `losses` for each iteration, `val_losses` for each epoch if there is validation data.

    rewards: the mean reward of each iteration's batch, in self-critical training, whose loss says nothing.
    """

    iterations_per_epoch: int
    losses: list[float] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    val_scores: list[dict] = field(default_factory=list)  # for each epoch, if captions are scored
    rewards: list[float] = field(default_factory=list)

    @property
    def last_loss(self):
        """The mean training loss of the last epoch."""
        losses = self.losses[-self.iterations_per_epoch :]
        return sum(losses) / len(losses)


class Run:
    """The complete state of a training run, with methods for one iteration (`step`) and the end of an epoch.

    `state_dict` returns this state as tensors and plain values, and `load_state_dict` restores it. loss: a module that
    contains the model and returns the mean loss of a batch; None: the model itself. epoch: number of finished epochs;
    position: finished iterations in the current one. Under torchrun, all processes have the same run, and each computes
    its share of every batch.
    """

    def __init__(
        self, model, num_examples, *, batch_size, learning_rate, lr_decay=1.0, num_epochs=1, loss=None,
        options=Options(),
    ):  # fmt: skip
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(f"{type(model).__name__} has no weights to train: give it some with requires_grad")
        self.model, self.device, self.parameters, self.options = model, parameters[0].device, parameters, options
        self.loss, self.processes = model if loss is None else loss, processes.current()
        self.together = self.processes.together(self.loss)
        self.num_examples, self.batch_size = num_examples, batch_size
        self.average = [p.detach().clone() for p in parameters] if options.averaging else None
        self.optimizer = make_optimizer(self._groups(learning_rate), learning_rate, options.weight_decay)
        iterations = math.ceil(num_examples / batch_size)
        self.schedule, self.by_iteration = make_schedule(self.optimizer, lr_decay, iterations, num_epochs, options)
        self.order = torch.Generator().manual_seed(options.seed)
        self.order_state = self.order.get_state()  # generates the order of the current epoch
        self.history = History(iterations)
        self.epoch, self.best, self.best_epoch, self.best_by = 0, math.inf, 0, None
        self.began = time.perf_counter()

    def _groups(self, learning_rate):
        """The parameters for the optimizer, with the encoder's in a group of their own if their rate is another."""
        if self.options.encoder_rate == 1:
            return self.parameters
        encoder = {id(parameter) for parameter in get_encoder(self.model).parameters()}
        tuned = [p for p in self.parameters if id(p) in encoder]
        groups = [{"params": [p for p in self.parameters if id(p) not in encoder]},
                  {"params": tuned, "lr": learning_rate * self.options.encoder_rate}]  # fmt: skip
        return groups if tuned else groups[:1]

    @property
    def iteration(self):
        return len(self.history.losses)

    @property
    def position(self):
        return self.iteration - self.epoch * self.history.iterations_per_epoch

    def batches(self):
        """The example indices of each remaining batch of this epoch."""
        return torch.randperm(self.num_examples, generator=self.order).split(self.batch_size)[self.position :]

    def step(self, rows, loss_of):
        """One update from the examples `rows`, where `loss_of(together, rows)` is the mean loss of some examples.

        With gradient accumulation, the batch is split into `options.accumulate` parts. The loss of each part is
        weighted by its number of examples, so that the sum and its gradient are those of the whole batch.
        """
        self.optimizer.zero_grad(set_to_none=True)
        share, weight = self.processes.share(rows)
        parts = share.split(math.ceil(len(share) / self.options.accumulate))
        value, reward, rewards = 0.0, 0.0, getattr(self.loss, "rewards", None)
        for part in parts:
            with self.processes.alone(self.together, part is not parts[-1]):
                loss = loss_of(self.together, part) * (len(part) * weight)
                (loss * self.processes.count).backward()  # the gradients of all processes are averaged, not summed
            value += loss.item()
            reward += rewards[-1] * (len(part) * weight) if rewards else 0.0
        value = self._finite(self.processes.sum(value, self.device))
        if self.options.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)
        self.optimizer.step()
        if self.by_iteration:
            self.schedule.step()
        self._move_average()
        self.history.losses.append(value)
        if rewards:
            self.history.rewards.append(self.processes.sum(reward, self.device))
        self.history.seconds = time.perf_counter() - self.began

    @torch.no_grad()
    def _move_average(self):
        kept = min(self.options.averaging, (1 + self.iteration) / (10 + self.iteration))
        for mean, now in zip(self.average or (), self.parameters):
            mean.lerp_(now, 1 - kept)

    @contextlib.contextmanager
    def averaged(self):
        """A context in which the model has the averaged weights, if weights are averaged."""
        current = [p.detach().clone() for p in self.parameters] if self.average else ()
        self.use_average()
        try:
            yield
        finally:
            self._set_weights(current)

    def use_average(self):
        """Copy the averaged weights into the model, if weights are averaged."""
        self._set_weights(self.average or ())

    @torch.no_grad()
    def _set_weights(self, values):
        for parameter, value in zip(self.parameters, values):
            parameter.copy_(value)

    def end_epoch(self, val_loss=None, val_scores=None):
        """Finish an epoch: step the schedule, record the scores, and note the best epoch, by CIDEr-D or else loss."""
        if not self.by_iteration:
            self.schedule.step()
        self.epoch += 1
        self.order_state = self.order.get_state()
        if val_loss is not None:
            self.history.val_losses.append(val_loss)
        by, score = "training loss", self.history.last_loss
        if val_loss is not None:
            by, score = "validation loss", val_loss
        if val_scores is not None:
            self.history.val_scores.append(val_scores)
            by, score = "CIDEr-D", -val_scores["CIDEr-D"]
        if by != self.best_by or score < self.best:  # a resumed run may be scored by something else
            self.best, self.best_epoch, self.best_by = score, self.epoch, by
        self.history.seconds = time.perf_counter() - self.began

    def state_dict(self):
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "order": self.order_state, "history": vars(self.history),
            "epoch": self.epoch, "best": self.best, "best_epoch": self.best_epoch, "best_by": self.best_by,
            **({"average": self.average} if self.average else {}),
        }  # fmt: skip

    def load_state_dict(self, state):
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        for mean, value in zip(self.average or (), state.get("average", ())):
            mean.copy_(value)
        self.order.set_state(state["order"])
        self.order_state, self.history = state["order"], History(**state["history"])
        self.epoch, self.best, self.best_epoch = state["epoch"], state["best"], state["best_epoch"]
        self.best_by = state.get("best_by")  # not in checkpoints of before 30 November 2026
        self.began = time.perf_counter() - self.history.seconds

    def _finite(self, value):
        if not math.isfinite(value):
            rate = self.optimizer.param_groups[0]["lr"]
            raise TrainingError(
                f"the loss became {value} in epoch {self.epoch + 1}: lower the learning rate, now {rate:g}"
            )
        return value


def train(
    model, images, captions, *, num_epochs, batch_size, learning_rate, lr_decay=1.0, image_index=None, val_data=None,
    loss=None, score=None, after_epoch=None, checkpoints=None, options=Options(),
):  # fmt: skip
    """Train a captioner with Adam on the mean loss of each batch. Returns a History.

    images (n, ...), on any device: pictures or any other input of the model. captions (m, T + 1) int64, or (n, K, T +
    1) for K captions of each picture in one step. image_index (m,): the index of the image that each caption describes;
    None: caption k belongs to image k. lr_decay: factor of the learning rate after each epoch. val_data: (images,
    captions), for the validation loss after each epoch. loss: as in `Run`, called as loss(images, captions), in
    evaluation mode for val_data; such as an `eecs598.training.objective.Objective`. score(model): returns a dict of
    scores after each epoch, with CIDEr-D, for the history. after_epoch(history, images): called after each epoch.
    checkpoints: an `eecs598.training.checkpoints.Checkpoints` to resume from and save to; num_epochs (unless `cosine`
    is on), accumulate and the number of processes may change between runs. Under torchrun
    (`eecs598.training.processes`), batch_size is the total over all processes. options: see `Options`; `accumulate`
    does not change an update, except for trained batch norms, which see one part at a time.

    Raises ValueError for invalid arguments or from the loss, CheckpointError (a ValueError) for checkpoints of another
    run, and TrainingError if the loss is not finite or memory runs out.
    """
    sizes = {"batch_size": batch_size, "learning_rate": learning_rate, "lr_decay": lr_decay}
    image_index = check_arguments(images, captions, image_index, val_data, num_epochs=num_epochs, **sizes)
    run = Run(model, len(captions), num_epochs=num_epochs, loss=loss, options=options, **sizes)
    precision = _choose_precision(run, checkpoints)
    if checkpoints:
        fixed = options.of_loss() | options.of_optimizer()
        fixed |= {"cosine over epochs": num_epochs} if options.cosine else {}
        checkpoints.begin(run, num_epochs, **sizes, seed=options.seed, **fixed, precision=precision)

    if not run.processes.first:  # random numbers in training, such as dropout masks, must differ between processes
        torch.manual_seed(hash((options.seed, run.iteration, run.processes.rank)))

    def loss_of(together, rows):
        pictures = images[image_index[rows]].to(run.device)
        with autocast(run.device, precision):
            return together(pictures, captions[rows].to(run.device))

    total = num_epochs * run.history.iterations_per_epoch
    release_pages = page_releaser(images)  # a memory-mapped file would become resident as a whole
    shown = options.progress and run.processes.first
    bar = tqdm(initial=run.iteration, total=total, unit="batch", mininterval=0.5, disable=not shown)
    with bar, checkpoints or contextlib.nullcontext(), _advice_on_memory(run):
        while run.epoch < num_epochs:
            bar.set_description(f"epoch {run.epoch + 1}/{num_epochs}")
            run.loss.train()
            for rows in run.batches():
                run.step(rows, loss_of)
                bar.set_postfix(_running(run.history), refresh=False)
                bar.update()
                if checkpoints:
                    checkpoints.keep(run)
                release_pages()
            run.end_epoch(*_validate(run, val_data, score))
            bar.set_postfix(_running(run.history))
            if checkpoints:
                checkpoints.keep(run)
            if after_epoch:
                after_epoch(run.history, images)
    run.use_average()
    return run.history


def _choose_precision(run, checkpoints):
    """The precision of a run: that of the options; for "auto" that of its checkpoints, or else the faster one."""
    if run.options.precision != "auto":
        return run.options.precision
    known = checkpoints and checkpoints.known.get("precision")
    return known or run.processes.agree(lambda: best_precision(run.device))


def _validate(run, val_data, score):
    """The loss on the validation data and the scores after an epoch, each None if not asked for."""
    with run.averaged():
        part = math.ceil(run.batch_size / run.options.accumulate)
        return val_data and evaluate_loss(run.loss, *val_data, part), score and score(run.model)


@contextlib.contextmanager
def _advice_on_memory(run):
    """A context in which running out of memory raises a TrainingError that says which option to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        traceback.clear_frames(error.__traceback__)  # they hold the tensors that fill the memory
        accumulate = run.options.accumulate
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise TrainingError(
            f"out of memory on {run.device} with batch_size {run.batch_size}{parts}: set accumulate to "
            f"{2 * accumulate}, for the same updates in smaller parts, or lower batch_size ({reason or 'MemoryError'})"
        ) from None


def is_out_of_memory(error):
    """Whether an exception from Python, CUDA or torch's CPU allocator means that memory ran out."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def make_optimizer(parameters, learning_rate, weight_decay=0.0):
    """Adam (Kingma and Ba, 2015), or AdamW with weight_decay; the fused implementation where PyTorch has one.

    parameters: tensors, or groups of them as dicts.
    """
    parameters = list(parameters)
    tensors = [p for item in parameters for p in (item["params"] if isinstance(item, dict) else [item])]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in tensors)
    if weight_decay:
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)
    return torch.optim.Adam(parameters, lr=learning_rate, fused=fused)


def make_schedule(optimizer, lr_decay, iterations, num_epochs, options):
    """The learning rate schedule, and whether it is stepped after each iteration instead of each epoch.

    iterations: the number of iterations in an epoch.
    """
    if not (options.warmup or options.cosine):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, lr_decay), False

    def factor(iteration):
        warmup = min(1, (iteration + 1) / (options.warmup + 1))
        progress = min(1, iteration / (iterations * num_epochs))
        cosine = 0.525 + 0.475 * math.cos(math.pi * progress) if options.cosine else 1  # from 1 to 0.05
        return warmup * cosine * lr_decay ** (iteration // iterations)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor), True


def autocast(device, precision):
    """An autocast context for matrix products in "float32" or "bfloat16"; parameters are float32 in both.

    Raises ValueError for another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be auto or one of {', '.join(PRECISIONS)}")
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def best_precision(device):
    """The faster precision for matrix products on this device, found by timing: "float32" or "bfloat16"."""
    device = torch.device(device)

    def run(precision):
        a = torch.ones(256, 768, dtype=getattr(torch, precision), device=device)
        b = torch.ones(768, 2048, dtype=a.dtype, device=device)
        return lambda: (a @ b)[0, 0].item()  # .item() waits for a GPU

    def ways():
        return {precision: run(precision) for precision in PRECISIONS}

    return choose("precision", ways, device.type, margin=0.9)  # less of a gain isn't worth the lost digits


@torch.no_grad()
def evaluate_loss(loss, images, captions, batch_size=256):
    """The mean loss of (images, captions) in evaluation mode. loss: a captioner or a loss module as in `train`."""
    device, everyone, total = next(loss.parameters()).device, processes.current(), 0.0
    with evaluating(loss):
        for rows in torch.arange(len(captions)).split(batch_size)[everyone.rank :: everyone.count]:
            total += loss(images[rows].to(device), captions[rows].to(device)).item() * len(rows)
    return everyone.sum(total, device) / len(captions)


def _running(history):
    """The values for the progress bar: mean loss or reward of the last iterations, last validation loss and score."""
    name, values = ("reward", history.rewards) if history.rewards else ("loss", history.losses)
    recent = values[-RECENT:]
    shown = {name: f"{sum(recent) / len(recent):.3f}"}
    if history.val_losses:
        shown["val"] = f"{history.val_losses[-1]:.3f}"
    if history.val_scores:
        shown["CIDEr-D"] = f"{history.val_scores[-1]['CIDEr-D']:.3f}"
    return shown


def check_arguments(images, captions, image_index=None, val_data=None, **sizes):
    """Check arguments of `train`, and return image_index, also where it is None. Raises ValueError."""
    for name, value in sizes.items():
        if name in ("learning_rate", "lr_decay"):
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value!r}; it must be a positive number")
        elif type(value) is not int or not 1 <= value < 2**63:
            raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1")
    given = {"images": images, "captions": captions}
    given |= {} if image_index is None else {"the numbers in image_index": image_index}
    given |= dict(zip(("validation images", "validation captions"), val_data or ()))
    for name, value in given.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} are a {type(value).__name__}; they must be a tensor")
        if not name.endswith("images") and value.dtype != torch.int64:
            raise ValueError(f"{name} are {value.dtype}; they must be torch.int64")
    if val_data and len(val_data[0]) != len(val_data[1]):
        raise ValueError(f"val_data has {len(val_data[0])} images but {len(val_data[1])} captions: give one of each")
    if len(captions) == 0:
        raise ValueError("captions are empty; there must be at least one to train on")
    if val_data and len(val_data[1]) == 0:
        raise ValueError("val_data is empty; leave it out, or give at least one picture with its caption")
    if image_index is None:
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} images but {len(captions)} captions: pass image_index, or as many of each")
        return torch.arange(len(captions))
    if image_index.shape != captions.shape[:1]:
        raise ValueError(f"image_index is {tuple(image_index.shape)}; it must be ({len(captions)},)")
    if int(image_index.min()) < 0 or int(image_index.max()) >= len(images):
        low, high = (int(edge) for edge in image_index.aminmax())
        raise ValueError(f"image_index goes from {low} to {high}, but there are {len(images)} images")
    return image_index
