"""Bad input, systematically: a clear error that names the thing, or a right result; never a hang or a wrong number.

Damaged data files and pictures by the hundred; captions, vocabularies and options that make no sense. Pictures that are
odd but whole are in test_coco.py, checkpoints in test_checkpoints.py, options of the commands in test_commands.py.
"""

import copy
import functools
import io
import math
import pickle
import random
import re
import signal
import warnings
import zlib
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.encoder import MeanEncoder

import helpers
import rnn_lstm_captioning
from eecs598 import fast as fast_layers
from eecs598.captioner import make_captioner
from eecs598.coco import decode_captions, prepare_image
from eecs598.coco.captions import SPECIAL_TOKENS, DataError
from eecs598.coco.datafile import check_whole, load_data, save_data
from eecs598.fast import attention, lstm, rnn
from eecs598.training import solver
from eecs598.training.objective import Objective
from eecs598.training.options import Options
from eecs598.training.run import train_captioner
from rnn_lstm_captioning import CaptioningRNN


@pytest.fixture(autouse=True)
def _no_test_hangs():
    """Each test ends within four minutes (it takes seconds), where the system has alarms."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number, frame):
        raise TimeoutError("this input makes the program hang")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 240)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


WORDS = {word: i for i, word in enumerate([*SPECIAL_TOKENS, "a", "b", "c"])}


def make_data():
    """A small data file's dict with all that one may hold."""
    generator = torch.Generator().manual_seed(0)
    captions = torch.zeros(6, 17, dtype=torch.int64)
    captions[:, :5] = torch.tensor([1, 4, 5, 6, 2])
    images = torch.randint(0, 256, (6, 3, 8, 8), generator=generator).to(torch.uint8)
    return {
        "train_images": images, "val_images": images[:3].clone(),
        "train_captions": captions, "val_captions": captions[:3].clone(),
        "vocab": {"idx_to_token": list(WORDS), "token_to_idx": dict(WORDS)},
        "train_image_ids": torch.arange(6), "val_references": [["a b c"]] * 3,
    }  # fmt: skip


QUIET = Options(progress=False)


def make_model(cell_type="attn", word_to_idx=WORDS):
    with mock.patch.object(rnn_lstm_captioning, "ImageEncoder", lambda pretrained: MeanEncoder()):
        return CaptioningRNN(word_to_idx, 3, 4, 5, cell_type, image_encoder_pretrained=False, ignore_index=0)


def train_a_little(data):
    """A step of training; its loss."""
    torch.manual_seed(0)
    model = make_model(word_to_idx=data["vocab"]["token_to_idx"])
    return solver.train(model, data["train_images"], data["train_captions"], num_epochs=1, batch_size=64,
                        learning_rate=1e-3, options=QUIET).losses  # fmt: skip


# --- data files: bytes ------------------------------------------------------------------------------------


def change_bits(content, rng):
    for _ in range(rng.choice([1, 1, 2, 20])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def cut_off(content, rng):
    del content[rng.randrange(len(content)) :]


def leave_out(content, rng):
    start = rng.randrange(len(content))
    del content[start : start + rng.choice([1, 7, 64, 4096])]


def put_in(content, rng):
    start = rng.randrange(len(content))
    content[start:start] = rng.randbytes(rng.choice([1, 7, 64, 4096]))


def blank(content, rng):
    start, length = rng.randrange(len(content)), rng.choice([16, 512, 4096])
    content[start : start + length] = bytes(len(content[start : start + length]))


def swap(content, rng):
    half = len(content) // 2
    one, other, length = rng.randrange(half), half + rng.randrange(half), rng.choice([8, 512])
    content[one : one + length], content[other : other + length] = (
        content[other : other + length], content[one : one + length])  # fmt: skip


BYTES = (change_bits, cut_off, leave_out, put_in, blank, swap)


@pytest.mark.parametrize("how", BYTES)
@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "pickle"])
def test_damaged_files(tmp_path, how, old_format, capsys):
    """40 of each kind. Refused in one line; or what is read is the data that were written."""
    whole, path = io.BytesIO(), tmp_path / "data.pt"
    torch.save(make_data(), whole, _use_new_zipfile_serialization=not old_format)
    refused, rng = 0, random.Random(f"{how.__name__} {old_format}")
    for _ in range(40):
        content = bytearray(whole.getvalue())
        how(content, rng)
        path.write_bytes(content)
        try:
            check_whole(path)
            data = load_data(path)
        except DataError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            if old_format:  # it has no checksums: what is read must at least make sense, as validated data do
                assert all(math.isfinite(loss) for loss in train_a_little(data))
            else:
                assert same(data, make_data())
    # In zip files only bytes that carry nothing, as timestamps and padding, may differ unseen.
    assert refused >= (10 if old_format else 25)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


# --- data files: what is in them --------------------------------------------------------------------------

VALUES = (None, 0, -1, 2.5, math.nan, "", "text", [], {}, (), [None], {"a": 1}, True, b"bytes",
          torch.tensor(3), torch.zeros(0), torch.zeros(6, 17), torch.full((6, 17), -1), torch.full((6, 17), 10**9),
          torch.zeros(6, 3, 8, 8), torch.zeros(6, 8, 8, 3, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.bool),
          torch.zeros(6, 3, 0, 8, dtype=torch.uint8), torch.zeros(7, 17, dtype=torch.int64))  # fmt: skip


def replace(data, rng):
    data[rng.choice(list(data))] = copy.deepcopy(rng.choice(VALUES))


def lose(data, rng):
    del data[rng.choice([key for key in data if key not in ("train_image_ids", "val_references")])]


def change_tensor(data, rng):
    """Another type, other sizes, or one value that is out of range."""
    key = rng.choice([key for key, value in data.items() if isinstance(value, torch.Tensor)])
    value = data[key]
    data[key] = rng.choice([value.double(), value.bool(), value[:-1], value[None], value.flatten(), value[..., :-1],
                            torch.cat([value, value]), value.to(torch.int32)])  # fmt: skip


def change_caption(data, rng):
    captions = data[rng.choice(["train_captions", "val_captions"])]
    row, column = rng.randrange(len(captions)), rng.randrange(captions.shape[1])
    captions[row, column if rng.random() < 0.8 else 0] = rng.choice([-1, -(2**62), 7, 99, 2**62])


def change_vocabulary(data, rng):
    tokens, ids = data["vocab"]["idx_to_token"], data["vocab"]["token_to_idx"]
    position = rng.randrange(len(tokens))
    rng.choice([
        lambda: tokens.pop(), lambda: tokens.append("a"), lambda: tokens.append("new"), lambda: tokens.reverse(),
        lambda: tokens.__setitem__(position, rng.choice([None, 3, "", "a b", ["a"]])),
        lambda: tokens.__setitem__(position, tokens[position - 1]), lambda: ids.clear(),
        lambda: ids.pop(tokens[position]), lambda: ids.__setitem__(tokens[position], rng.choice([-1, 99, 2.0, "3"])),
        lambda: ids.__setitem__("new", 3), lambda: data["vocab"].pop("idx_to_token"),
        lambda: data["vocab"].__setitem__("token_to_idx", list(ids)),
    ])()  # fmt: skip


def change_references(data, rng):
    wrong = [], [[]] * 3, [["a"]] * 2, [["a"], ["b"], "c"], [["a"], ["b"], [3]], 7, [None]
    data["val_references"] = rng.choice(wrong)


CONTENTS = (replace, lose, change_tensor, change_caption, change_vocabulary, change_references)


@pytest.mark.parametrize("how", CONTENTS)
def test_wrong_contents(tmp_path, how):
    """40 of each kind, by the file that holds them and before one is written."""
    path, rng, refused = tmp_path / "data.pt", random.Random(how.__name__), 0
    for _ in range(40):
        data = make_data()
        how(data, rng)
        torch.save(data, path)
        try:
            loaded = load_data(path)
        except DataError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 400
            with pytest.raises(DataError):
                save_data(data, tmp_path / "never.pt")
        else:  # as a picture's id that was changed, or a word's name
            assert all(math.isfinite(loss) for loss in train_a_little(loaded))
    assert refused >= 20 and not (tmp_path / "never.pt").exists()


def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return ran.touch, ()

    for write in (functools.partial(torch.save), lambda value, path: path.write_bytes(pickle.dumps(value))):
        write({**make_data(), "extra": Code()}, tmp_path / "code.pt")
        with pytest.raises(DataError, match="holds code"):
            load_data(tmp_path / "code.pt")
    assert not ran.exists()


# --- pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".tif", ".webp"])
def test_damaged_pictures(tmp_path, suffix):
    """60 of each format: one line that names the file, or a picture of the size that was asked for."""
    path, rng, refused = tmp_path / f"picture{suffix}", random.Random(suffix), 0
    Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 50).convert("RGB").save(path)
    whole = path.read_bytes()
    for number in range(60):
        content = bytearray(whole)
        BYTES[number % len(BYTES)](content, rng)
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks
                picture = prepare_image(path, 16, rng.choice(["stretch", "crop"]))
        except DataError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:
            assert picture.shape == (3, 16, 16) and picture.dtype == torch.uint8
    assert refused >= 10


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """900 million pixels in half a megabyte."""
    chunks = {b"IHDR": (30_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0]),
              b"IDAT": zlib.compress(bytes(30_000 * 3_751), 1), b"IEND": b""}  # fmt: skip
    parts = [len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
             for name, body in chunks.items()]  # fmt: skip
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(DataError, match=r"bomb.png: cannot be read as a picture \(.*decompression bomb"):
        prepare_image(tmp_path / "bomb.png")


# --- captions, pictures, vocabularies, sizes --------------------------------------------------------------

IMAGES = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CAPTIONS = torch.tensor([[1, 4, 5, 2, 0], [1, 4, 2, 0, 0]])


def with_value(row, column, value):
    captions = CAPTIONS.clone()
    captions[row, column] = value
    return captions


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "attn"])
@pytest.mark.parametrize(
    ("images", "captions", "told"),
    [
        (IMAGES, with_value(1, 2, 99), "captions hold ids from 0 to 99; the vocabulary has ids 0 to 6"),
        (IMAGES, with_value(0, 4, -1), "captions hold ids from -1 to 5"),
        (IMAGES, CAPTIONS.float(), "captions are torch.float32; they must be torch.int64"),
        (IMAGES, CAPTIONS.int(), "captions are torch.int32; they must be torch.int64"),
        (IMAGES, CAPTIONS.bool(), "captions are torch.bool"),
        (IMAGES, CAPTIONS[:, :1], r"captions are \(2, 1\); .* K and T at least 1"),
        (IMAGES, CAPTIONS[:, :0], r"captions are \(2, 0\)"),
        (IMAGES, CAPTIONS[0], r"captions are \(5,\)"),
        (IMAGES[:0], CAPTIONS[:0], r"captions are \(0, 5\); for 0 pictures"),
        (IMAGES[:1], CAPTIONS, "for 1 pictures they must be"),
        (IMAGES, CAPTIONS.to("meta"), "captions are on meta, but the model is on cpu"),
        (IMAGES[:, :2], CAPTIONS, r"returns features \(2, 2, 2, 3\); the affine map .* takes \(N, 3, h, w\)"),
    ],
)
def test_captions_and_pictures_that_do_not_fit(cell_type, images, captions, told):
    with pytest.raises((ValueError, TypeError), match=told):
        Objective(make_model(cell_type))(images, captions)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "attn"])
@pytest.mark.parametrize("caption", [[1, 2, 0, 0, 0], [1, 3, 3, 3, 2], [1, 4, 5, 4, 5], [1, 2]])
def test_odd_captions_are_learned(cell_type, caption, fast):
    """Empty, of <UNK> alone, without <END>: the loss is that of the plain definition, and each gradient finite."""
    captions, model = torch.tensor([caption] * 2), make_model(cell_type).double()
    loss = Objective(model, fast=fast)(IMAGES, captions)
    torch.testing.assert_close(loss, plain_loss(model, captions))
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def plain_loss(model, captions):
    """The loss of captions of IMAGES, a step and a word at a time."""
    scores, state = [], model.begin(IMAGES)
    for t in range(captions.shape[1] - 1):
        step_scores, state, _ = model.step(captions[:, t], state)
        scores.append(step_scores)
    scores = torch.stack(scores, 2)
    return torch.nn.functional.cross_entropy(scores, captions[:, 1:], ignore_index=0, reduction="sum") / len(captions)


@functools.cache
def kept_objective(cell_type, fast):
    torch.manual_seed(0)
    return Objective(make_model(cell_type).double(), fast=fast)


@given(
    cell_type=st.sampled_from(["rnn", "lstm", "attn"]),
    shape=st.one_of(st.tuples(st.just(2), st.integers(0, 6)), st.lists(st.integers(0, 3), max_size=4)),
    ids=st.one_of(st.integers(0, 6), st.integers(-2, 9), st.sampled_from([-(2**63), 2**63 - 1])),
    dtype=st.one_of(st.just(torch.int64), st.sampled_from([torch.int32, torch.float32, torch.bool, torch.uint8])),
    seed=st.integers(0, 2**20),
    fast=st.booleans(),
)
@settings(max_examples=500, deadline=None)
def test_any_captions_are_refused_by_name_or_learned(cell_type, shape, ids, dtype, seed, fast):
    """Any shape and type, and ids of words but for one: refused just where the objective's docstring says so."""
    captions = torch.randint(0, 7, tuple(shape), generator=torch.Generator().manual_seed(seed))
    if captions.numel():
        captions.view(-1)[seed % captions.numel()] = ids
    captions, loss_of = captions.to(dtype), kept_objective(cell_type, fast)
    sense = captions.dim() in (2, 3) and len(captions) == 2 and captions.shape[-1] >= 2 and captions.numel() > 0
    if sense and dtype == torch.int64 and 0 <= captions.min() <= captions.max() <= 6:
        each_alone = captions.unbind(1) if captions.dim() == 3 else [captions]
        losses = [plain_loss(loss_of.model, each) for each in each_alone]
        torch.testing.assert_close(loss_of(IMAGES, captions), sum(losses) / len(losses))
    else:
        with pytest.raises((ValueError, TypeError), match=r"^captions (are|hold)") as caught:
            loss_of(IMAGES, captions)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fast", [False, True])
def test_captions_of_padding_alone_count_nothing(fast):
    model = make_model()
    loss = Objective(model, fast=fast)(IMAGES, torch.zeros(2, 5, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and not model.output_projection.weight.grad.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_pictures_that_are_not_finite_stop_training(bad):
    images = IMAGES.float()
    images[1, 0, 0, 0] = bad
    with pytest.raises(solver.TrainingError, match="the loss became nan in epoch 1"):
        solver.train(make_model(), images, CAPTIONS, num_epochs=1, batch_size=2, learning_rate=1, options=QUIET)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({}, "word_to_idx lacks <NULL> <START> <END>"),
        ({word: i for word, i in WORDS.items() if word != "<END>"}, "word_to_idx lacks <END>"),
        ({**WORDS, "d": 6}, "must give its 8 words the ids 0 to 7, each once; seen 0 to 6"),
        ({**WORDS, "d": 99}, "each once; seen 0 to 99"),
        ({**WORDS, "d": -1}, "each once; seen -1 to 6"),
    ],
)
def test_vocabularies_that_make_no_sense(words, told):
    with pytest.raises(ValueError, match=told):
        make_captioner(CaptioningRNN, {"vocab": {"token_to_idx": words}}, "rnn", MeanEncoder())


@given(st.dictionaries(st.sampled_from([*SPECIAL_TOKENS, "a", "b"]), st.integers(-1, 6), max_size=6), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_vocabulary_is_refused_or_taken(words, numbered):
    """Taken where the three marks are there and the ids are 0, 1, 2, ..., each once."""
    if numbered:
        words = {word: i for i, word in enumerate(words)}
    wanted = {"<NULL>", "<START>", "<END>"} <= words.keys() and sorted(words.values()) == list(range(len(words)))
    with mock.patch.object(rnn_lstm_captioning, "ImageEncoder", lambda pretrained: MeanEncoder()):
        given = CaptioningRNN, {"vocab": {"token_to_idx": words}}, "rnn", MeanEncoder(), 5, 4
        if wanted:
            model = make_captioner(*given)
            assert torch.isfinite(model(IMAGES, torch.tensor([[words["<START>"], words["<END>"]]] * 2)))
        else:
            with pytest.raises(ValueError, match=r"^word_to_idx (lacks|must give)"):
                make_captioner(*given)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"wordvec_dim": -3}, "wordvec_dim is -3; it must be a whole number, at least 1"),
        ({"hidden_dim": 2.5}, "hidden_dim is 2.5"),
        ({"cell_type": "gru"}, "cell_type is 'gru'; it must be one of rnn, lstm, attn"),
    ],
)
def test_sizes_that_make_no_sense(sizes, told):
    known = {"cell_type": "rnn", "encoder": MeanEncoder(), "wordvec_dim": 4, "hidden_dim": 5}
    with pytest.raises(ValueError, match=told):
        make_captioner(CaptioningRNN, {"vocab": {"token_to_idx": WORDS}}, **(known | sizes))


@pytest.mark.parametrize("layer", [fast_layers.RNN, fast_layers.LSTM, fast_layers.AttentionLSTM])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 0, 3), (0, 2, 3), (2, 3)])
def test_sequences_that_do_not_fit(layer, shape):
    first = torch.zeros(2, 4, 1, 1) if layer is fast_layers.AttentionLSTM else torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"it must be \(N, T, 3\), with N and T at least 1"):
        layer(3, 4)(torch.zeros(shape), first)


def sequence_arguments(function):
    """Arguments of a fast sequence function that fit, by name: N = 2, T = 3, D = 5, H = 4."""
    G = 4 if function is rnn.rnn_forward else 16
    weights = {"Wx": torch.zeros(5, G), "Wh": torch.zeros(4, G), "b": torch.zeros(G)}
    states = {"h0": torch.zeros(2, 4)}
    if function is lstm.lstm_forward:
        states["c0"] = torch.zeros(2, 4)
    if function is attention.attention_lstm_forward:
        states, weights["Wattn"] = {"A": torch.zeros(2, 4, 3, 2)}, torch.zeros(4, G)
    return {"x": torch.zeros(2, 3, 5), **states, **weights}


@pytest.mark.parametrize("function", [rnn.rnn_forward, lstm.lstm_forward, attention.attention_lstm_forward])
def test_the_argument_of_the_wrong_shape_is_blamed(function):
    """A weight that is transposed or too wide; a state, grid or weight with another batch, size or dimension."""
    known = sequence_arguments(function)
    function(**known)
    for name, value in known.items():
        wrong = [torch.cat([value, value], 1), value[None]] if value.dim() > 1 else []
        wrong += [value.t()] if value.dim() == 2 and value.shape[0] != value.shape[1] else []
        wrong += [value[:1]] if name in ("h0", "c0", "A", "Wh", "Wattn") else []
        for other in wrong if name != "x" else [value[:, :, :4], value[0], value[:, :0]]:
            with pytest.raises(ValueError, match=rf"^{name} is {re.escape(str(tuple(other.shape)))}; it") as caught:
                function(**(known | {name: other}))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [list(WORDS), dict(enumerate(WORDS))])
@pytest.mark.parametrize("captions", [torch.tensor([[1, 7]]), torch.tensor([1, -1]), torch.tensor([[1.0, 2.0]])])
def test_ids_of_no_word_are_not_decoded(words, captions):
    with pytest.raises(ValueError, match="not a word id; there are 7"):
        helpers.decode_captions(captions, words)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"learning_rate": math.nan}, "learning_rate is nan"), ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"), ({"lr_decay": -1}, "lr_decay is -1"),
        ({"batch_size": 0}, "batch_size is 0"), ({"batch_size": True}, "batch_size is True"),
        ({"num_epochs": -2}, "num_epochs is -2"), ({"num_epochs": 1e3}, "num_epochs is 1000.0"),
        ({"captions": [[1, 2]]}, "captions are a list; they must be a tensor"),
        ({"images": None}, "images are a NoneType"),
        ({"image_index": [0, 1]}, "the numbers in image_index are a list; they must be a tensor"),
        ({"val_data": (IMAGES, None)}, "validation captions are a NoneType"),
        ({"val_data": (IMAGES, CAPTIONS[:1])}, "val_data has 2 images but 1 captions: give one of each"),
        ({"captions": CAPTIONS.int()}, "captions are torch.int32; they must be torch.int64"),
        ({"image_index": torch.tensor([0.0, 1.0])}, "the numbers in image_index are torch.float32"),
        ({"val_data": (IMAGES, CAPTIONS.float())}, "validation captions are torch.float32"),
        ({"image_index": torch.tensor([0, 9])}, "image_index goes from 0 to 9, but there are 2 images"),
    ],
)  # fmt: skip
def test_training_that_makes_no_sense(options, told):
    known = {"images": IMAGES, "captions": CAPTIONS, "num_epochs": 1, "batch_size": 2, "learning_rate": 0.1}
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=told):
        solver.train(model, options=QUIET, **(known | options))
    assert same(model.state_dict(), before)


def test_nothing_to_train():
    model = make_model().requires_grad_(False)
    with pytest.raises(ValueError, match="CaptioningRNN has no weights to train"):
        solver.train(model, IMAGES, CAPTIONS, num_epochs=1, batch_size=2, learning_rate=0.1, options=QUIET)


def test_references_without_pictures():
    with pytest.raises(ValueError, match="val_references are given without val_data"):
        train_captioner(make_model(), IMAGES, CAPTIONS, 1, 2, 0.1, val_references=([["a"]] * 2, list(WORDS)))


@pytest.mark.parametrize("shape", [(), (2, 3, 4)])
def test_captions_of_another_shape_are_not_decoded(shape):
    with pytest.raises(ValueError, match=re.escape(f"captions are {shape}; they must be (N, T) or (T,)")):
        decode_captions(torch.zeros(shape, dtype=torch.int64), list(WORDS))


ODD = st.sampled_from([None, "3", True, 2**63, 10**30])
NUMBERS = st.one_of(st.integers(1, 3), st.integers(-3, 3), st.floats(), ODD)


@given(st.fixed_dictionaries({name: NUMBERS for name in ("num_epochs", "batch_size", "accumulate")}),
       st.fixed_dictionaries({name: NUMBERS for name in ("learning_rate", "lr_decay")}),
       st.sampled_from(["float32", "float32", "float16", None]))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_any_options_of_training_are_refused_by_name_or_trained_with(sizes, rates, precision):
    """Refused with the name of one that makes no sense; else a loss for each iteration, or a rate too high is told."""
    wrong = [name for name, value in sizes.items() if type(value) is not int or not 1 <= value < 2**63]
    wrong += [name for name, value in rates.items() if isinstance(value, (str, type(None))) or not 0 < value < math.inf]
    wrong += ["precision"] * (precision != "float32")
    try:
        options = Options(accumulate=sizes["accumulate"], precision=precision, progress=False)
        epochs, batch = sizes["num_epochs"], sizes["batch_size"]
        losses = solver.train(make_model("rnn"), IMAGES, CAPTIONS, num_epochs=epochs, batch_size=batch, **rates,
                              options=options).losses  # fmt: skip
    except ValueError as error:
        assert wrong and str(error).split()[0] in wrong and "\n" not in str(error)
    except solver.TrainingError as error:
        assert not wrong and "lower the learning rate" in str(error)
    else:
        assert not wrong and len(losses) == sizes["num_epochs"] * math.ceil(2 / sizes["batch_size"])
        assert all(map(math.isfinite, losses))
