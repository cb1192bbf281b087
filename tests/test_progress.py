"""Bars appear for long work alone."""

import hashlib

import pytest
import torch

from eecs598 import files, progress
from eecs598.training.examples import with_mirror_images


@pytest.mark.parametrize("delay, shown", [(60, False), (0, True)])
def test_long_work_has_a_bar_and_short_work_prints_nothing(delay, shown, monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY", delay)
    images = torch.randint(256, (600, 3, 2, 5), dtype=torch.uint8)
    digest = hashlib.sha256()
    files.hash_rows(digest, images)
    assert digest.digest() == hashlib.sha256(images.numpy().tobytes()).digest()
    mirrored = with_mirror_images({"train_images": images, "train_captions": torch.zeros(600, 17)})
    assert torch.equal(mirrored["train_images"], torch.cat([images, images.flip(-1)]))
    told = capsys.readouterr().err
    assert ("hashing" in told and "mirror images" in told) if shown else not told
