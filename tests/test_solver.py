"""The training loop: what a model is shown, what is recorded, and what stops it."""

import math
from itertools import chain

import pytest
import torch

from eecs598.solver import TrainingError, evaluate_loss, train


class Recorder(torch.nn.Module):
    """Its loss is the squared distance of one weight from the mean caption; it remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight, self.shown = torch.nn.Parameter(torch.zeros(())), []

    def forward(self, images, captions):
        if self.training:
            self.shown.append(list(zip(images[:, 0].tolist(), captions[:, 0].tolist())))
        return ((self.weight - captions[:, 0].float()) ** 2).mean()


OPTIONS = {"num_epochs": 3, "batch_size": 4, "learning_rate": 0.1, "progress": False}


def examples(n=10):
    return 10.0 * torch.arange(n)[:, None], torch.arange(n)[:, None]


def test_every_example_once_an_epoch_in_a_new_order():
    model, (images, captions) = Recorder(), examples()
    history = train(model, images, captions, **OPTIONS)
    assert [len(batch) for batch in model.shown] == [4, 4, 2] * 3
    epochs = [list(chain(*model.shown[i : i + 3])) for i in (0, 3, 6)]
    assert all(sorted(epoch) == [(10.0 * k, k) for k in range(10)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])
    assert len(history.losses) == 9 and history.iterations_per_epoch == 3 and history.seconds > 0


def test_a_seed_repeats_the_run():
    runs = [train(Recorder(), *examples(), **OPTIONS, seed=seed).losses for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_image_index_repeats_pictures():
    model, (images, captions) = Recorder(), examples(6)
    index = torch.tensor([0, 0, 1, 1, 2, 2])
    train(model, images[:3], captions, image_index=index, **OPTIONS)
    assert all(image == 10 * (caption // 2) for batch in model.shown for image, caption in batch)


def test_it_learns_and_decays():
    model, (images, captions) = Recorder(), examples()
    history = train(model, images, captions, num_epochs=99, batch_size=10, learning_rate=0.3, lr_decay=0.97,
                    val_data=(images, captions), progress=False)  # fmt: skip
    assert abs(model.weight.item() - 4.5) < 0.1
    assert len(history.val_losses) == 99
    assert history.val_losses[-1] == pytest.approx(float(((captions - model.weight.item()) ** 2).mean()), rel=1e-6)
    frozen = Recorder()
    train(frozen, images, captions, num_epochs=60, batch_size=10, learning_rate=0.3, lr_decay=0.01, progress=False)
    assert abs(frozen.weight.item()) < 0.4  # after the first epoch the rate is next to nothing


def test_validation_counts_every_example_once_and_changes_nothing():
    model, (images, captions) = Recorder().train(), examples(7)
    wanted = float((captions.float() ** 2).mean())
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
        train(model, *examples(), **OPTIONS)
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
        ({"image_index": torch.arange(10) + 1}, "image_index goes up to 10, but there are 10 images"),
    ],
)
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        train(Recorder(), *examples(), **OPTIONS | change)


def test_unequal_numbers_are_named():
    images, captions = examples()
    with pytest.raises(ValueError, match="10 images but 7 captions"):
        train(Recorder(), images, captions[:7], **OPTIONS)
    with pytest.raises(ValueError, match="no captions"):
        train(Recorder(), images[:0], captions[:0], **OPTIONS)
