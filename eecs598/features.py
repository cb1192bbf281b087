"""Image features: computed once by a frozen encoder, cached on disk, and passed to a captioner instead of pictures.

The features of a frozen encoder are the same in every epoch. `encode_images` computes them, `cached_features` also
caches them, and in the context `fed_with_features` a captioner takes features as its images.
"""

import contextlib
import errno
import hashlib
import inspect
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eecs598 import DATASETS, encoders
from eecs598.files import LockLostError, file_lock, hash_rows, page_releaser, remove
from eecs598.progress import late_bar

GPU_BATCH = 64  # pictures encoded at once on a GPU
FEATURES_VERSION = 3  # to be incremented when encode_images changes its results, which invalidates older files
PACKAGES = ("torch", "torchvision", "efficientnet_lite_pytorch", __package__)  # whose code does not change in between
UNREADABLE = (ValueError, OSError, EOFError)  # raised for a missing or damaged file of features
FEATURES_FOLDER = DATASETS / "features"


# ---------------------------------------------------------------------------------------------------------
# Features instead of pictures
# ---------------------------------------------------------------------------------------------------------


class Features(nn.Module):
    """Replaces an encoder when the input is already features, stored in half precision."""

    def __init__(self, dtype, out_channels):
        super().__init__()
        self.dtype, self.out_channels = dtype, out_channels

    def forward(self, features):
        return features.to(self.dtype)


@contextlib.contextmanager
def fed_with_features(model, tail=None):
    """A context in which the model takes image features as its images. Its encoder is restored afterwards.

    tail: the last part of the encoder (`EncoderTail`), if the features are those from before it.
    """
    parent, name = encoders.find_encoder(model)
    encoder = getattr(parent, name)
    setattr(parent, name, tail or Features(next(model.parameters()).dtype, encoder.out_channels))
    try:
        yield model
    finally:
        setattr(parent, name, encoder)


@contextlib.contextmanager
def without_image_encoder(captioner_class, out_channels):
    """A context in which creating the class does not create an ImageEncoder, whose weights might be downloaded.

    The name ImageEncoder in the module of the class is replaced, if there is one.
    """

    class StandIn(Features):
        def __init__(self, *_, **__):
            super().__init__(torch.float32, out_channels)

    names = getattr(captioner_class.__init__, "__globals__", {})
    original = names.get("ImageEncoder")
    if original is None:
        yield
        return
    names["ImageEncoder"] = StandIn
    try:
        yield
    finally:
        names["ImageEncoder"] = original


# ---------------------------------------------------------------------------------------------------------
# Computing features
# ---------------------------------------------------------------------------------------------------------


def fast_dtype(device):
    """bfloat16 if the device has hardware support for it, else float32."""
    if torch.device(device).type == "cuda":
        ampere = torch.cuda.get_device_capability(device) >= (8, 0)  # older ones, such as the T4, emulate bfloat16
        return torch.bfloat16 if ampere else torch.float32
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    fast = torch.device(device).type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)
    return torch.bfloat16 if fast else torch.float32


def precision_of(encoder, device):
    """The dtype to compute features in: `fast_dtype`, but float32 for encoders that are not in `eecs598.encoders`.

    A student's encoder may give its layers float32, whatever their weights are.
    """
    inner = encoder.encoder if isinstance(encoder, encoders.WRAPPERS) else encoder
    return fast_dtype(device) if isinstance(inner, encoders.NETWORKS) else torch.float32


def encode_images(encoder, images, device="cpu", progress=True):
    """The features of pictures (n, 3, H, W) from a frozen encoder, as float16 on the CPU: (n, C, h, w).

    Raises ValueError, see `eecs598.encoders.check_pictures`.
    """
    if not isinstance(encoder, Features):
        encoders.check_pictures(images)
    return torch.cat(list(encode_in_batches(encoder, images, device, progress)))


@torch.inference_mode()
def encode_in_batches(encoder, images, device="cpu", progress=True):
    """The features of `encode_images`, batch by batch, so that all of them need not fit in memory.

    Memory-mapped pictures do not stay resident.
    """
    dtype = precision_of(encoder, device)
    frozen = encoders.fold_normalization(encoder).to(device=device, dtype=dtype, memory_format=torch.channels_last)
    release_pages = page_releaser(images)
    with late_bar(len(images), "image features", shown=progress) as bar:
        for part in images.split(_batch_size(dtype, device)):
            yield frozen(part.to(device)).half().cpu().contiguous()  # for .view in students' code
            bar.update(len(part))
            release_pages()


def _batch_size(dtype, device):
    return encoders.CPU_BATCH[dtype] if torch.device(device).type == "cpu" else GPU_BATCH


def describe_pictures(encoder, images, encode=encode_images):
    """`describe_grids` of the features that an encoder gives of pictures (n, 3, H, W): (n, 2, C), float32.

    encode(encoder, images) computes the features, such as `encode_images` or `cached_features`.
    """
    return encode(encoders.Described(encoder), images).float().view(len(images), 2, -1)


# ---------------------------------------------------------------------------------------------------------
# Caching features
# ---------------------------------------------------------------------------------------------------------


def cached_features(encoder, images, folder=None, device="cpu", progress=True):
    """`encode_images`, cached in `folder` under a hash of the encoder's weights, its code and the pictures.

    folder: if None, FEATURES_FOLDER. Returns features (n, C, h, w) in float16, memory-mapped, so that they need not fit
    in memory. After an interruption, the next call resumes. A damaged file is computed again. If another process is
    computing the same features, this one waits for it. If the folder cannot be written, a line says so and nothing is
    cached. Raises ValueError, see `eecs598.encoders.check_pictures`.
    """
    encoders.check_pictures(images)
    path = Path(folder or FEATURES_FOLDER) / f"{_features_key(encoder, images, device)}.npy"
    with contextlib.suppress(*UNREADABLE):
        return _map_features(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path, "computing") as check_lock:
            if (features := _read_if_finished(path)) is not None:
                return features
            _compute_features(path, encoder, images, device, progress, check_lock)
    except LockLostError:  # such as after the computer slept: another process is computing them now
        return cached_features(encoder, images, folder, device, progress)
    except OSError as error:
        print(f"warning: the image features could not be saved in {path.parent} ({error})", file=sys.stderr)
        return encode_images(encoder, images, device, progress)
    return _map_features(path)


def _read_if_finished(path):
    """The features that another process has saved in the meantime; None if there are none or they are damaged."""
    try:
        return _map_features(path) if path.exists() else None
    except UNREADABLE as error:
        print(f"note: {path} is damaged ({type(error).__name__}); its features are computed again", file=sys.stderr)


def _compute_features(path, encoder, images, device, progress, check_lock):
    """Write the features to PATH.part batch by batch, from where an interrupted call stopped, then rename it.

    check_lock(): raises LockLostError, after which another process is writing to PATH.part.
    """
    part = path.with_name(f"{path.name}.part")
    done = _keep_whole_batches(part, _batch_size(precision_of(encoder, device), device))
    try:
        with part.open("ab") as file:
            for batch in encode_in_batches(encoder, images[done:], device, progress) if done < len(images) else ():
                check_lock()
                if file.tell() == 0:
                    _begin_file(file, (len(images), *batch.shape[1:]))
                file.write(batch.numpy().tobytes())
                file.flush()
            os.fsync(file.fileno())
        check_lock()
        os.replace(part, path)
    except OSError:
        remove(part)  # such as from a full disk
        raise


def _keep_whole_batches(part, batch_size):
    """How many rows a partial file has, in whole batches. What is left of another one is cut off."""
    if not part.exists():
        return 0
    try:
        with part.open("r+b") as file:
            np.lib.format.read_magic(file)
            (_, *shape), *_ = np.lib.format.read_array_header_1_0(file)
            begin, row = file.tell(), 2 * math.prod(shape)
            rows = (part.stat().st_size - begin) // row // batch_size * batch_size
            file.truncate(begin + rows * row)
        return rows
    except ValueError:  # it has no whole header
        remove(part)
        return 0


def _begin_file(file, shape):
    """Write the header of a .npy file. Raises an OSError if the disk has no room for the rest."""
    needed = 2 * math.prod(shape)
    if shutil.disk_usage(file.name).free < needed:
        raise OSError(errno.ENOSPC, f"No space left for {needed / 1e6:,.1f} MB")
    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})


def _map_features(path):
    """The features of a finished file. Raises ValueError if its length is wrong, and other UNREADABLE errors."""
    features = np.load(path, mmap_mode="c")  # "c": copy on write, so the file never changes
    if path.stat().st_size != features.offset + features.nbytes:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, not {features.offset + features.nbytes:,}")
    return torch.from_numpy(features)


def _features_key(encoder, images, device):
    """24 hex digits of a hash of the encoder's weights, structure and code, the pictures and the precision."""
    known = (FEATURES_VERSION, encoder, tuple(images.shape), images.dtype, precision_of(encoder, device))
    digest = hashlib.sha256(repr(known).encode())
    digest.update("".join(_own_code(encoder)).encode())
    for tensor in (*encoder.state_dict().values(), images):
        hash_rows(digest, tensor)
    return digest.hexdigest()[:24]


def _own_code(encoder):
    """The source of each class in an encoder that is of no package used here, such as a student's."""
    for kind in dict.fromkeys(type(module) for module in encoder.modules()):
        if kind.__module__.partition(".")[0] not in PACKAGES:
            with contextlib.suppress(OSError, TypeError):  # no source, as of a class typed at the prompt
                yield inspect.getsource(kind)
