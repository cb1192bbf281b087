"""Messages between the grader and the process that a submission runs in: JSON and the bytes of tensors.

No message is ever executed, and the size of what arrives is checked before memory is allocated for it.
"""

import json
import struct

import torch

LARGEST_MESSAGE = 1 << 26  # bytes, of all tensors of a message
LARGEST_HEAD = 1 << 20  # bytes, of everything else in it
MOST_TENSORS = 4096
READY = b"ready"  # what a process sends first, when torch is loaded and no code of a submission has run
DTYPES = {str(dtype): dtype for dtype in (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)}  # fmt: skip


class MessageError(Exception):
    """The channel delivered something that is not a message."""


class UnsentError(Exception):
    """A tensor that cannot be sent. The message describes it: "a tensor on the device meta, ..."."""


def pack(value, tensors=()):
    """Return the bytes of a message with a JSON value and tensors. Raises UnsentError if a tensor cannot be sent."""
    heads, blobs, room = [], [], LARGEST_MESSAGE
    for tensor in tensors:
        tensor = tensor.detach()
        if tensor.is_meta:
            raise UnsentError("a tensor on the device meta, which has no values: create it with x.new_zeros")
        if str(tensor.dtype) not in DTYPES:
            raise UnsentError(f"a tensor of {tensor.dtype}, which cannot be compared: create it with dtype=x.dtype")
        room -= _size(tensor.shape, tensor.dtype)
        if room < 0:
            raise UnsentError(f"a tensor of shape {tuple(tensor.shape)}, too large to be compared")
        dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
        flat = dense.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        blobs.append(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        heads.append([str(tensor.dtype), list(tensor.shape)])
    head = json.dumps([value, heads]).encode()
    if len(head) > LARGEST_HEAD or len(heads) > MOST_TENSORS:
        raise UnsentError(f"{len(heads)} tensors and {len(head)} bytes of other data, too much to be compared")
    return struct.pack("<I", len(head)) + head + b"".join(blobs)


def _size(shape, dtype):
    """Bytes of a tensor, empty dimensions counted as 1: the sum of a (0, huge) tensor is a huge one."""
    count = dtype.itemsize
    for size in shape:
        count = min(count * (size or 1), LARGEST_MESSAGE + 1)
    return count


def send(file, value, tensors=()):
    """Write a message. Raises UnsentError, as `pack` does."""
    file.write(pack(value, tensors))
    file.flush()


def receive(file):
    """Read a message: the value and its tensors. Raises EOFError at the end, MessageError if it is malformed."""
    try:
        value, heads = json.loads(_read(file, struct.unpack("<I", _read(file, 4))[0], LARGEST_HEAD))
        tensors, room = [], LARGEST_MESSAGE
        if len(heads) > MOST_TENSORS:
            raise MessageError(f"a message of {len(heads)} tensors")
        for name, shape in heads:
            dtype = DTYPES[name]
            if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 16:
                raise MessageError("a message with an invalid shape")
            room -= _size(shape, dtype)
            blob = _read(file, 0 if 0 in shape else _size(shape, dtype), room + _size(shape, dtype))
            if room < 0:
                raise MessageError("a message that is too large")
            flat = torch.frombuffer(bytearray(blob), dtype=dtype) if blob else torch.empty(0, dtype=dtype)
            tensors.append(flat.reshape(shape))
        return value, tensors
    except (ValueError, KeyError, TypeError, RuntimeError, RecursionError, UnicodeError) as error:
        raise MessageError(f"a malformed message: {error}") from None


def _read(file, size, room=LARGEST_MESSAGE):
    if size > room:
        raise MessageError(f"a message of {size} bytes")
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


class Whole:
    """A raw file whose `read` returns all the bytes asked for, unless the file ends."""

    def __init__(self, reader, writer=None):
        self.reader, self.writer = reader, writer or reader

    def read(self, size):
        parts = []
        while size > 0 and (part := self.reader.read(min(size, 1 << 20))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def write(self, data):
        view = memoryview(data)
        while view:
            view = view[self.writer.write(view) :]

    def flush(self):
        self.writer.flush()

    def close(self):
        self.reader.close()
        self.writer.close()
