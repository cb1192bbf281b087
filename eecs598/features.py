"""Image features: computed once by a frozen encoder, kept on disk, and given to a captioner in place of pictures.

A frozen encoder gives a picture the same features in every epoch. `encode_images` computes them, `cached_features`
keeps them, and inside `fed_with_features` a captioner takes them where it takes pictures.
"""

import contextlib
import copy
import hashlib
import itertools
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from eecs598.encoders import EfficientNetLite, ImageEncoder, PublishedForm, check_pictures, find_encoder
from eecs598.files import STALE_LOCK, page_releaser, file_lock, write_whole

FEATURES_VERSION = 3  # to be raised when encode_images gives other numbers: older files are then not read
UNREADABLE = (ValueError, OSError, EOFError)  # what a damaged file of features raises, or one that is not there
FEATURES_FOLDER = Path(__file__).resolve().parent.parent / "datasets" / "features"


# ---------------------------------------------------------------------------------------------------------
# Features in place of pictures
# ---------------------------------------------------------------------------------------------------------


class Features(nn.Module):
    """Stands in for an encoder of so many channels: its input is features already, kept in half precision."""

    def __init__(self, dtype, out_channels):
        super().__init__()
        self.dtype, self.out_channels = dtype, out_channels

    def forward(self, features):
        return features.to(self.dtype)


@contextlib.contextmanager
def fed_with_features(model):
    """Inside, the model takes image features where it takes pictures; its encoder is put back afterwards."""
    parent, name = find_encoder(model)
    encoder = getattr(parent, name)
    setattr(parent, name, Features(next(model.parameters()).dtype, encoder.out_channels))
    try:
        yield model
    finally:
        setattr(parent, name, encoder)


@contextlib.contextmanager
def without_image_encoder(captioner_class, out_channels):
    """Inside, the ImageEncoder of the class's file is a stand-in: a student's own may ask for its weights regardless.

    A file that has no such name is left as it is.
    """

    class StandIn(Features):
        def __init__(self, *_, **__):
            super().__init__(torch.float32, out_channels)

    names = getattr(captioner_class.__init__, "__globals__", {})
    own = names.get("ImageEncoder")
    if own is None:
        yield
        return
    names["ImageEncoder"] = StandIn
    try:
        yield
    finally:
        names["ImageEncoder"] = own


# ---------------------------------------------------------------------------------------------------------
# Computing them
# ---------------------------------------------------------------------------------------------------------


def fast_dtype(device):
    """bfloat16 where the device multiplies it faster than float32, else float32."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    fast = torch.device(device).type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)
    return torch.bfloat16 if fast else torch.float32


def fold_normalization(encoder):
    """A copy of an encoder for inference alone, faster by half; its features are the same up to rounding.

    In evaluation mode a batch norm is an affine map of a convolution's output: its scale goes into the convolution's
    weights and its shift into the bias. Activations work in place, and a convolution pads its input itself. Done for
    the encoders of `eecs598.encoders`, whose modules are registered in the order in which they run; another one, such
    as a student's, is only copied.
    """
    encoder = copy.deepcopy(encoder).eval()
    if isinstance(encoder, PublishedForm):
        encoder.encoder = fold_normalization(encoder.encoder)
    if not isinstance(encoder, (ImageEncoder, EfficientNetLite)):
        return encoder
    for module in list(encoder.modules()):
        for (name, first), (next_name, second) in itertools.pairwise(list(module.named_children())):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, name, _pad_inside(fuse_conv_bn_eval(first, second)))
                setattr(module, next_name, nn.Identity())
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            module.inplace = True
    return encoder


def _pad_inside(convolution):
    """EfficientNet-Lite's package copies a convolution's input into a padded one; with stride 1 that can be spared."""
    if type(convolution) is nn.Conv2d or tuple(convolution.stride) != (1, 1):
        return convolution
    inside = nn.Conv2d(
        convolution.in_channels, convolution.out_channels, convolution.kernel_size, padding="same",
        dilation=convolution.dilation, groups=convolution.groups, device="meta",
    )  # fmt: skip
    inside.load_state_dict(convolution.state_dict(), assign=True)
    return inside


def encode_images(encoder, images, batch_size=None, device="cpu", progress=True):
    """Features of pictures (n, 3, H, W) from a frozen encoder, as float16 on the CPU: (n, C, h, w).

    batch_size: if None, 16 on a CPU, where few activations stay in its caches, and 64 elsewhere. Raises ValueError, see
    `eecs598.encoders.check_pictures`.
    """
    if not isinstance(encoder, Features):
        check_pictures(images)
    return torch.cat(list(_encode_in_batches(encoder, images, batch_size, device, progress)))


@torch.inference_mode()
def _encode_in_batches(encoder, images, batch_size, device, progress):
    """The features of `encode_images`, a batch at a time; pictures of a mapped file do not stay in memory."""
    dtype = fast_dtype(device)
    batch_size = batch_size or (16 if torch.device(device).type == "cpu" else 64)
    frozen = fold_normalization(encoder).to(device=device, dtype=dtype, memory_format=torch.channels_last)
    release_pages = page_releaser(images)
    with tqdm(total=len(images), desc="image features", unit="picture", mininterval=0.5, disable=not progress) as bar:
        for part in images.split(batch_size):
            yield frozen(part.to(device)).half().cpu().contiguous()  # as from a file: a student may call .view
            bar.update(len(part))
            release_pages()


# ---------------------------------------------------------------------------------------------------------
# Keeping them
# ---------------------------------------------------------------------------------------------------------


def cached_features(encoder, images, folder=None, batch_size=None, device="cpu", progress=True):
    """`encode_images`, computed once: kept in `folder` under a hash of the encoder's weights and the pictures.

    folder: FEATURES_FOLDER if None. Returns features (n, C, h, w) in float16, mapped from the file: neither here nor
    in training need they fit in memory. A damaged file is computed again; what another process computes is waited for;
    where the folder cannot be written, a line says so and nothing is kept. Raises ValueError, see
    `eecs598.encoders.check_pictures`.
    """
    check_pictures(images)
    path = Path(folder or FEATURES_FOLDER) / f"{_features_key(encoder, images, device)}.npy"
    with contextlib.suppress(*UNREADABLE):
        return _map_features(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path, partial(_report_waiting, path)):
            if (features := _read_if_finished(path)) is not None:
                return features
            for part in path.parent.glob(f".{path.name}.*.part"):  # of a run that was killed while it wrote them
                part.unlink()
            write_whole(path, lambda file: _write_features(
                file, len(images), _encode_in_batches(encoder, images, batch_size, device, progress)))  # fmt: skip
    except OSError as error:
        print(f"warning: the image features could not be kept in {path.parent} ({error})", file=sys.stderr)
        return encode_images(encoder, images, batch_size, device, progress)
    return _map_features(path)


def _read_if_finished(path):
    """The features that another process has left by now; None where there are none, or damaged ones."""
    try:
        return _map_features(path) if path.exists() else None
    except UNREADABLE as error:
        print(f"note: {path} is damaged ({type(error).__name__}); its features are computed again", file=sys.stderr)


def _report_waiting(path, attempt):
    if attempt == 0:
        note = f"note: another process is computing {path}; waiting for that one. {STALE_LOCK.format(path)}"
        print(note, file=sys.stderr)


def _write_features(file, count, batches):
    """A .npy file of `count` rows, written as they come."""
    for number, batch in enumerate(batches):
        if number == 0:
            header = {"descr": "<f2", "fortran_order": False, "shape": (count, *batch.shape[1:])}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(batch.numpy().tobytes())


def _map_features(path):
    return torch.from_numpy(np.load(path, mmap_mode="c"))  # "c": nothing that is written to it reaches the file


def _features_key(encoder, images, device):
    """A name for (weights, structure, pictures, precision): 24 hexadecimal digits."""
    known = (FEATURES_VERSION, encoder, tuple(images.shape), images.dtype, fast_dtype(device))
    digest = hashlib.sha256(repr(known).encode())
    for tensor in encoder.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    release_pages = page_releaser(images)
    for part in images.split(256):
        digest.update(part.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        release_pages()
    return digest.hexdigest()[:24]
