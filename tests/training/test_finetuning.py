"""Fine-tuning: the encoder's last blocks are trained on cached features of the others."""

import copy

import pytest
import torch
from support.encoder import MeanEncoder

from eecs598 import captioner, encoders, features
from eecs598.training import solver
from eecs598.training.options import Options
from eecs598.training.run import encode_again, train_captioner
from rnn_lstm_captioning import CaptioningRNN

QUIET = {"progress": False, "plot": False}


@pytest.fixture(scope="module")
def lite():
    return encoders.EfficientNetLite0().calibrate(torch.rand(2, 3, 64, 64))


def train(data, folder, encoder, epochs=2, options=None, **how):
    torch.manual_seed(0)
    model = captioner.make_captioner(CaptioningRNN, data, "attn", copy.deepcopy(encoder), 8, 4)
    history = train_captioner(
        model, data["train_images"], data["train_captions"], epochs, 2, 1e-3, device="cpu",
        val_data=(data["val_images"], data["val_captions"]), fast=True, features_folder=folder,
        options=Options(**QUIET, **(options or {})), **how,
    )  # fmt: skip
    return model, history


def changed_blocks(model, encoder):
    """The blocks of the trained model's encoder that are not those of `encoder`, and whether the head is not."""
    trained = encoders.get_encoder(model)
    pairs = zip([*trained.blocks, trained.head], [*encoder.blocks, encoder.head])
    return [n for n, (ours, theirs) in enumerate(pairs)
            if any(not torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))]  # fmt: skip


def test_the_last_blocks_are_trained_and_the_others_are_not(tiny_data, tmp_path, lite):
    model, _ = train(tiny_data, tmp_path, lite, finetune_blocks=2)
    assert changed_blocks(model, lite) == [14, 15, 16]  # 16: the head
    trained = encoders.get_encoder(model)
    assert type(trained) is type(lite) and encoders.is_frozen(trained)
    for (name, value), (_, before) in zip(trained.named_buffers(), lite.named_buffers()):
        assert torch.equal(value, before), name  # batch statistics, too


def test_the_captioner_is_the_one_that_was_trained(tiny_data, tmp_path, lite, monkeypatch):
    """Its validation loss on the features of the whole encoder is that of the last epoch."""
    monkeypatch.setattr(features, "fast_dtype", lambda device: torch.float32)
    model, history = train(tiny_data, tmp_path, lite, finetune_blocks=1)
    with torch.no_grad():
        loss = model.eval()(tiny_data["val_images"], tiny_data["val_captions"])
    assert loss.item() == pytest.approx(history.val_losses[-1], rel=1e-3)  # features are kept in half precision
    captioner.save_captioner(model, tmp_path / "attn.pt", tiny_data, 8, 4)
    again, _, _ = captioner.load_captioner(tmp_path / "attn.pt", CaptioningRNN)
    assert captioner.caption_pictures(again, tiny_data["val_images"], tiny_data["vocab"]["idx_to_token"])[0] == \
        captioner.caption_pictures(model, tiny_data["val_images"], tiny_data["vocab"]["idx_to_token"])[0]  # fmt: skip


def test_features_for_the_last_scores_are_those_of_the_trained_encoder_but_not_computed_again(
    tiny_data, tmp_path, lite, monkeypatch
):
    monkeypatch.setattr(features, "fast_dtype", lambda device: torch.float32)
    for blocks in (0, 1):
        model, _ = train(tiny_data, tmp_path, lite, finetune_blocks=blocks, freeze_encoder=True)
        images = tiny_data["val_images"]
        wanted = features.encode_images(encoders.get_encoder(model), images)
        with monkeypatch.context() as patched:
            patched.setattr(features, "encode_in_batches", None)
            found = encode_again(model, images, "cpu", tmp_path, finetuned=blocks)
        assert found.dtype == torch.float16
        torch.testing.assert_close(found, wanted, rtol=0.01, atol=0.01)


def test_blocks_for_a_later_call_stay_as_they_are(tiny_data, tmp_path, lite, monkeypatch):
    monkeypatch.setattr(features, "fast_dtype", lambda device: torch.float32)
    model, apart = train(tiny_data, tmp_path, lite, finetune_blocks=1, finetune=False)
    _, whole = train(tiny_data, tmp_path, lite)
    assert changed_blocks(model, lite) == []
    assert apart.losses == pytest.approx(whole.losses, rel=1e-3)
    files = set(tmp_path.iterdir())
    train(tiny_data, tmp_path, lite, finetune_blocks=1)
    assert set(tmp_path.iterdir()) == files  # the later call uses the same features


def test_the_encoder_has_a_rate_of_its_own(tiny_data, lite):
    model = captioner.make_captioner(CaptioningRNN, tiny_data, "attn", copy.deepcopy(lite), 8, 4)
    run = solver.Run(model, 4, batch_size=2, learning_rate=0.5, options=Options(encoder_rate=0.1))
    rates = {id(p): group["lr"] for group in run.optimizer.param_groups for p in group["params"]}
    encoder = {id(p) for p in encoders.get_encoder(model).parameters()}
    assert rates == {id(p): 0.05 if id(p) in encoder else 0.5 for p in model.parameters()}
    encoders.get_encoder(model).requires_grad_(False)
    run = solver.Run(model, 4, batch_size=2, learning_rate=0.5, options=Options(encoder_rate=0.1))
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.5]


def test_it_goes_on_from_its_checkpoints(tiny_data, tmp_path, lite):
    how = {"finetune_blocks": 1, "options": {"averaging": 0.5, "encoder_rate": 0.1}}
    model, whole = train(tiny_data, tmp_path, lite, **how)
    how["checkpoint_dir"] = tmp_path / "kept"
    train(tiny_data, tmp_path, lite, 1, **how)
    again, resumed = train(tiny_data, tmp_path, lite, **how)
    assert resumed.losses == whole.losses and len(whole.losses) == 4
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="encoder_rate: 0\\.1 there, none here"):
        train(tiny_data, tmp_path, lite, **how | {"options": {"averaging": 0.5}})
    with pytest.raises(ValueError, match=r"encoder.weights: \w+ there, \w+ here"):
        train(tiny_data, tmp_path, lite, **how | {"finetune_blocks": 2})


@pytest.mark.parametrize("encoder, how, told", [
    (None, {"finetune_blocks": 1, "freeze_encoder": False}, "finetune_blocks is 1, but the whole encoder is trained"),
    (MeanEncoder(), {"finetune_blocks": 1}, "finetune_blocks is 1, but MeanEncoder has no blocks to be trained apart"),
    (None, {"finetune_blocks": 16}, r"it must be in \[1, 15\]"),
])  # fmt: skip
def test_blocks_that_cannot_be_finetuned_are_refused(tiny_data, tmp_path, lite, encoder, how, told):
    with pytest.raises(ValueError, match=told):
        train(tiny_data, tmp_path, encoder or lite, **how)
    assert not any(tmp_path.iterdir())  # before any features


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "0.1", None])
def test_an_encoder_rate_that_makes_no_sense_is_refused(rate):
    with pytest.raises(ValueError, match=r"encoder_rate is .*; it must be positive and finite"):
        Options(encoder_rate=rate)
