"""The training loop: what a model is shown, what is recorded, and what stops it."""

import copy
import math
import weakref
from dataclasses import replace
from itertools import chain

import pytest
import torch
from support.captioner import batch, make_model

from eecs598.training.checkpoints import CheckpointError, Checkpoints, load_best
from eecs598.training.objective import Objective, ObjectiveError
from eecs598.training.options import Options
from eecs598.training.solver import Run, TrainingError, evaluate_loss, train
from rnn_lstm_captioning import CaptioningRNN


class Recorder(torch.nn.Module):
    """Its loss is the squared distance of one weight from the mean caption; it remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight, self.shown = torch.nn.Parameter(torch.zeros(())), []

    def forward(self, images, captions):
        if self.training:
            self.shown.append(list(zip(images[:, 0].tolist(), captions[:, 0].tolist())))
        return ((self.weight - captions[:, 0].float()) ** 2).mean()


SIZES = {"num_epochs": 3, "batch_size": 4, "learning_rate": 0.1}
QUIET = Options(progress=False)


def examples(n=10):
    return 10.0 * torch.arange(n)[:, None], torch.arange(n)[:, None].expand(n, 2)


def test_every_example_once_an_epoch_in_a_new_order():
    model, (images, captions) = Recorder(), examples()
    history = train(model, images, captions, **SIZES, options=QUIET)
    assert [len(batch) for batch in model.shown] == [4, 4, 2] * 3
    epochs = [list(chain(*model.shown[i : i + 3])) for i in (0, 3, 6)]
    assert all(sorted(epoch) == [(10.0 * k, k) for k in range(10)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])
    assert len(history.losses) == 9 and history.iterations_per_epoch == 3 and history.seconds > 0


def test_a_seed_repeats_the_run():
    runs = [train(Recorder(), *examples(), **SIZES, options=replace(QUIET, seed=seed)).losses for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_image_index_repeats_pictures():
    model, (images, captions) = Recorder(), examples(6)
    index = torch.tensor([0, 0, 1, 1, 2, 2])
    train(model, images[:3], captions, image_index=index, **SIZES, options=QUIET)
    assert all(image == 10 * (caption // 2) for batch in model.shown for image, caption in batch)


def test_it_learns_and_decays():
    model, (images, captions) = Recorder(), examples()
    history = train(model, images, captions, num_epochs=99, batch_size=10, learning_rate=0.3, lr_decay=0.97,
                    val_data=(images, captions), options=QUIET)  # fmt: skip
    assert abs(model.weight.item() - 4.5) < 0.1
    assert len(history.val_losses) == 99
    wanted = ((captions[:, 0] - model.weight.item()) ** 2).mean().item()
    assert history.val_losses[-1] == pytest.approx(wanted, rel=1e-6)
    frozen = Recorder()
    train(frozen, images, captions, num_epochs=60, batch_size=10, learning_rate=0.3, lr_decay=0.01, options=QUIET)
    assert abs(frozen.weight.item()) < 0.4  # after the first epoch the rate is next to nothing


def test_validation_counts_every_example_once_and_changes_nothing():
    model, (images, captions) = Recorder().train(), examples(7)
    wanted = float((captions[:, 0].float() ** 2).mean())
    for batch_size in (1, 3, 7, 100):
        assert evaluate_loss(model, images, captions, batch_size) == pytest.approx(wanted)
    assert model.training and model.shown == [] and model.weight.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(bad):
    class Broken(Recorder):
        def forward(self, images, captions):
            loss = super().forward(images, captions)
            return loss * bad if len(self.shown) == 5 else loss

    model = Broken()
    with pytest.raises(TrainingError, match=rf"became {bad} in epoch 2: lower the learning rate, now 0.1"):
        train(model, *examples(), **SIZES, options=QUIET)
    assert model.weight.isfinite()  # the update from the bad loss was not made


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"learning_rate": -1}, "learning_rate is -1"),
        ({"lr_decay": 0}, "lr_decay is 0"),
        ({"image_index": torch.arange(3)}, r"image_index is \(3,\); it must be \(10,\)"),
        ({"image_index": torch.arange(10) + 1}, "image_index goes from 1 to 10, but there are 10 images"),
    ],
)
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        train(Recorder(), *examples(), **SIZES | change)


def test_unequal_numbers_are_named():
    images, captions = examples()
    with pytest.raises(ValueError, match="10 images but 7 captions"):
        train(Recorder(), images, captions[:7], **SIZES, options=QUIET)
    with pytest.raises(ValueError, match="captions are empty"):
        train(Recorder(), images[:0], captions[:0], **SIZES, options=QUIET)
    model = Recorder()
    with pytest.raises(ValueError, match="val_data is empty"):
        train(model, images, captions, **SIZES, options=QUIET, val_data=(images[:0], captions[:0]))
    assert not model.shown


# --- memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [4, 99])  # unequal parts; each row by itself
@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "attn"])
@pytest.mark.parametrize("fast", [False, True])
def test_a_batch_in_parts_gives_the_same_update(cell_type, accumulate, fast):
    """In float64: one update and what ten epochs come to; captions of unequal length, in parts of unequal size."""
    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(["<NULL>", "<START>", "<END>", *"abcdefg"])}
    model = CaptioningRNN(words, 3, 4, 5, cell_type, image_encoder_pretrained=False, ignore_index=0).double()
    model.image_encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 2, stride=2, dtype=torch.float64))
    model.image_encoder.out_channels = 3
    images, captions = torch.rand(10, 3, 6, 6, dtype=torch.float64), torch.randint(3, 10, (10, 7))
    captions[torch.arange(7) > torch.randint(1, 7, (10, 1))] = 0
    whole, parts = (
        one_update(copy.deepcopy(model), *given) + ten_epochs(copy.deepcopy(model), *given)
        for given in ((images, captions, n, fast) for n in (1, accumulate))
    )
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def one_update(model, images, captions, accumulate, fast):
    """The loss and the gradients; no part may be larger than is asked for."""
    sizes, loss = [], Objective(model, fast=fast)
    run = Run(model, 10, batch_size=10, learning_rate=0.01, loss=loss, options=Options(accumulate=accumulate))

    def loss_of(together, rows):
        sizes.append(len(rows))
        return together(images[rows], captions[rows])

    run.step(torch.arange(10), loss_of)
    assert sum(sizes) == 10 and max(sizes) == math.ceil(10 / accumulate)
    return [*run.history.losses, *(parameter.grad for parameter in model.parameters())]


def ten_epochs(model, images, captions, accumulate, fast):
    """All losses and the weights."""
    history = train(model, images, captions, num_epochs=10, batch_size=7, learning_rate=0.01,
                    loss=Objective(model, fast=fast), options=replace(QUIET, accumulate=accumulate),
                    val_data=(images, captions))  # fmt: skip
    return [*history.losses, *history.val_losses, *(parameter.detach() for parameter in model.parameters())]


class OutOfMemory(Recorder):
    """In its fifth iteration it asks for more memory than there is."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    def forward(self, images, captions):
        self.held = None if len(self.shown) < 4 else self.fill()
        return super().forward(images, captions)

    def fill(self):
        local = torch.zeros(3)
        OutOfMemory.seen = weakref.ref(local)
        if self.error:
            raise self.error
        return torch.empty(1 << 60)


@pytest.mark.parametrize("error", [None, MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory.\nMore.")])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_memory_that_runs_out_says_what_to_lower(error, accumulate):
    with pytest.raises(TrainingError) as caught:
        train(OutOfMemory(error), *examples(), **SIZES, options=replace(QUIET, accumulate=accumulate))
    told, parts = str(caught.value), " in 3 parts" if accumulate == 3 else ""
    assert told.startswith(f"out of memory on cpu with batch_size 4{parts}: set accumulate to {2 * accumulate}, for")
    assert "or lower batch_size" in told and "\n" not in told
    assert OutOfMemory.seen() is None  # the error, which a notebook keeps, does not keep the memory


def test_another_error_stays_as_it_is():
    error = RuntimeError("something else")
    with pytest.raises(RuntimeError) as caught:
        train(OutOfMemory(error), *examples(), **SIZES, options=QUIET)
    assert caught.value is error


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_that_is_full():
    class Large(Recorder):
        def forward(self, images, captions):
            return super().forward(images, captions) + torch.empty(1 << 44, device="cuda").sum()

    with pytest.raises(TrainingError, match="out of memory on cuda:0 with batch_size 4: set accumulate to 2"):
        train(Large().cuda(), *examples(), **SIZES, options=QUIET)


# --- options beyond the published recipe ---------------------------------------------------------------


def watched(monkeypatch, run_of=Run):
    """Makes every run note, after each step, its learning rate, its gradient's norm and its weights."""
    notes, step = [], run_of.step

    def note(run, *args):
        rate = run.optimizer.param_groups[0]["lr"]
        step(run, *args)
        gradient = torch.cat([p.grad.flatten() for p in run.parameters])
        notes.append((rate, gradient.norm().item(), [p.detach().clone() for p in run.parameters]))

    monkeypatch.setattr(run_of, "step", note)
    return notes


def rates(monkeypatch, **options):
    notes = watched(monkeypatch)
    train(Recorder(), *examples(), **SIZES | {"options": QUIET} | options)
    return [rate for rate, _, _ in notes]


def test_warm_up_and_cosine(monkeypatch):
    fall = [0.525 + 0.475 * math.cos(math.pi * i / 9) for i in range(9)]  # 3 epochs of 3 iterations
    assert rates(monkeypatch, options=replace(QUIET, cosine=True)) == pytest.approx([0.1 * each for each in fall])
    rise = [min(1, (i + 1) / 5) for i in range(9)]
    assert rates(monkeypatch, options=replace(QUIET, warmup=4)) == pytest.approx([0.1 * each for each in rise])
    both = rates(monkeypatch, options=replace(QUIET, warmup=4, cosine=True), lr_decay=0.5)
    assert both == pytest.approx([0.1 * up * down * 0.5 ** (i // 3) for i, (up, down) in enumerate(zip(rise, fall))])


def test_a_long_gradient_is_shortened(monkeypatch):
    for clip_norm, longest in ((0.0, 9.0), (0.5, 0.5)):
        notes = watched(monkeypatch)
        train(Recorder(), *examples(), **SIZES, options=replace(QUIET, clip_norm=clip_norm))
        assert max(norm for _, norm, _ in notes) == pytest.approx(longest, rel=0.5 if clip_norm == 0 else 1e-4)
        monkeypatch.undo()


def test_weight_decay_shrinks_what_has_no_gradient():
    class Idle(Recorder):
        def __init__(self):
            super().__init__()
            self.idle = torch.nn.Parameter(torch.ones(()))

        def forward(self, images, captions):
            return super().forward(images, captions) + 0 * self.idle

    for decay in (0.0, 0.3):
        train(model := Idle(), *examples(), **SIZES, options=replace(QUIET, weight_decay=decay))
        assert model.idle.item() == pytest.approx((1 - 0.1 * decay) ** 9)


def test_the_model_ends_and_is_validated_with_its_average(monkeypatch):
    notes = watched(monkeypatch)
    images, captions = examples()
    history = train(model := Recorder(), images, captions, **SIZES, options=replace(QUIET, averaging=0.6),
                    val_data=(images, captions))  # fmt: skip
    average, losses = torch.zeros(()), []
    for i, (_, _, (weight,)) in enumerate(notes):
        kept = min(0.6, (1 + i) / (10 + i))
        average = kept * average + (1 - kept) * weight
        losses += [((average - captions[:, 0].float()) ** 2).mean().item()] if i % 3 == 2 else []
    assert model.weight.item() == pytest.approx(average.item(), rel=1e-5) != notes[-1][2][0].item()
    assert history.val_losses == pytest.approx(losses, rel=1e-5)


def test_another_loss_gets_the_rows_and_a_score_chooses_the_best(tmp_path):
    class Loss(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.seen = model, []

        def forward(self, images, rows):
            self.seen.append((images[:, 0].tolist(), rows.tolist(), self.training))
            return self.model(images, rows[:, None])

    kept, scores, loss = Checkpoints(tmp_path, {}), iter([0.1, 0.7, 0.3]), Loss(model := Recorder())
    images, rows = 10.0 * torch.arange(10)[:, None], torch.arange(10)
    history = train(model, images, rows, **SIZES, options=QUIET, loss=loss, checkpoints=kept,
                    val_data=(images[:1], rows[:1]), score=lambda model: {"CIDEr-D": next(scores)})  # fmt: skip
    assert all(images == [10.0 * row for row in rows] for images, rows, _ in loss.seen)
    assert [training for *_, training in loss.seen] == [True, True, True, False] * 3
    assert [each["CIDEr-D"] for each in history.val_scores] == [0.1, 0.7, 0.3]
    assert load_best(Recorder(), tmp_path) == (2, -0.7)


def test_an_epoch_is_kept_before_anything_is_done_with_it(tmp_path):
    """What is called after an epoch may fail, or take long enough to be killed."""
    images, captions = 10.0 * torch.arange(10)[:, None], torch.ones(10, 2, dtype=torch.int64)

    def fail(history, seen):
        assert seen is images and len(history.losses) == history.iterations_per_epoch
        raise MemoryError

    with pytest.raises(TrainingError, match="out of memory"):
        train(Recorder(), images, captions, **SIZES, options=QUIET, checkpoints=Checkpoints(tmp_path, {}),
              after_epoch=fail)  # fmt: skip
    assert Checkpoints(tmp_path, {}).epochs == 1


def test_fast_trains_by_the_objective_and_stops_where_it_is_not_the_models_loss(monkeypatch):
    model, (images, captions) = make_model("rnn").float(), batch(8)
    slow, fast = copy.deepcopy(model), copy.deepcopy(model)
    slow, fast = (train(mine, images.float(), captions, **SIZES, options=QUIET, loss=loss).losses
                  for mine, loss in ((slow, None), (fast, Objective(fast))))  # fmt: skip
    assert slow == pytest.approx(fast, rel=1e-5) and slow != fast  # sums are rounded in another order
    monkeypatch.setattr(type(model), "forward", lambda self, images, captions: self.cell.Wh.sum())
    with pytest.raises(ObjectiveError, match="the loss by the model's own forward"):
        train(model, images.float(), captions, **SIZES, options=QUIET, loss=Objective(model))


def test_options_go_on_from_a_checkpoint_to_the_same_bits_and_are_part_of_the_run(tmp_path):
    chosen = replace(QUIET, weight_decay=0.1, clip_norm=0.5, warmup=2, cosine=True, averaging=0.9)

    def run(options=chosen, stop_at=None, **sizes):
        model, shown = Recorder(), []
        model.register_forward_pre_hook(lambda *_: shown.append(1) or [][: 1 // (len(shown) != stop_at)] or None)
        kept = Checkpoints(tmp_path, {}, every=1)
        losses = train(model, *examples(), **SIZES | sizes, options=options, checkpoints=kept).losses
        return losses, model.weight.item()

    whole = train(model := Recorder(), *examples(), **SIZES, options=chosen).losses, model.weight.item()
    with pytest.raises(ZeroDivisionError):
        run(stop_at=5)
    assert run() == whole
    less = replace(chosen, averaging=0.8)
    for changed, told in ((QUIET, "weight_decay"), (less, "averaging: 0.9 there, 0.8 here")):
        with pytest.raises(CheckpointError, match=told):
            run(changed)
    with pytest.raises(CheckpointError, match="cosine over epochs: 3 there, 4 here"):
        run(num_epochs=4)
