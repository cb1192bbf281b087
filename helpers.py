"""What the notebook calls to load, train, decode and show; and the same as commands.

    python helpers.py train --data FILE --out DIR [--cell rnn lstm attn]
    python helpers.py evaluate --checkpoint FILE --images DIR --captions JSON
    python helpers.py caption [--checkpoint FILE] PHOTO...
"""

import argparse
import collections
import contextlib
import copy
import dataclasses
import functools
import hashlib
import inspect
import io
import json
import math
import os
import re
import sys
import traceback
import warnings
from pathlib import Path

import requests
import torch
from tqdm import tqdm

from eecs598 import coco, commands, decoding, encoders, metrics, vis
from eecs598.checks import CHECKS
from eecs598.coco import DataError, encode_captions, load_data, prepare_image, tokenize
from eecs598.coco.builder import find_pictures
from eecs598.coco.pictures import prepare_in_order
from eecs598.files import save_whole, write_whole
from eecs598.grad import CheckError
from eecs598.scenes import judge_caption, make_scenes
from eecs598.training import checkpoints, processes, selfcritical, solver
from eecs598.utils import reset_seed

DATASETS = Path(__file__).resolve().parent / "datasets"
BUILD = Path("build")  # where the README's commands write, and `caption` looks
CELL_TYPES = ("rnn", "lstm", "attn")
SPECIALS = ("<NULL>", "<START>", "<END>")

# For `train --recipe`; README has what it reaches, and in what time.
RECIPES = {
    "flickr8k": {
        "cell": ["attn"], "encoder": "lite2", "freeze_encoder": True, "captions": "together", "mirror": True,
        "epochs": 4, "batch_size": 32, "learning_rate": 1e-3, "lr_decay": 1, "wordvec": 512, "dropout": 0.3,
        "label_smoothing": 0.1, "clip_norm": 5.0, "warmup": 100, "cosine": True, "averaging": 0.99,
        "sharpen": 0.5, "self_critical": 7, "self_critical_rate": 3e-4, "self_critical_batch": 32,
        "self_critical_bleu": 2.0, "precision": "auto",
    },
}  # fmt: skip

TRAIN = f"`python helpers.py train --data FILE --out {BUILD / 'mine'}` makes one"
SWITCH = {"action": argparse.BooleanOptionalAction, "default": False}


# ---------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------


def load_coco_captions(path=DATASETS / "coco.pt"):
    """Open a data file, check it and say what is in it. Returns its dict; the pictures stay on disk until used."""
    data = load_data(path)
    for split in ("train", "val"):
        images, captions = data[f"{split}_images"], data[f"{split}_captions"]
        print(f"{split}: {len(images):,} pictures {tuple(images.shape[1:])}, captions {tuple(captions.shape)}")
    print(f"vocabulary: {len(data['vocab']['idx_to_token']):,} words")
    return data


def decode_captions(captions, idx_to_word, specials=True):
    """Captions as text. captions (N, T) or (T,) ids, idx_to_word a list or dict from id to word.

    A caption ends with <END>; <NULL> is left out; without `specials`, <START> and <END> are left out too.
    Returns a list of N strings, or one string for one caption. Raises ValueError for ids that are no word's.
    """
    captions = torch.as_tensor(captions)  # numpy's arrays, too
    ids = idx_to_word if isinstance(idx_to_word, dict) else range(len(idx_to_word))
    if unknown := [i for i in captions.unique().tolist() if i not in ids or captions.is_floating_point()]:
        raise ValueError(f"captions ({captions.dtype}) hold {unknown[0]}, which is no word's id; there are {len(ids)}")
    if captions.ndim == 1:
        return decode_captions(captions[None], idx_to_word, specials)[0]
    hidden = {"<NULL>"} if specials else set(SPECIALS)
    decoded = []
    for row in captions.tolist():
        words = [idx_to_word[i] for i in row]
        if "<END>" in words:
            words = words[: words.index("<END>") + 1]
        decoded.append(" ".join(word for word in words if word not in hidden))
    return decoded


def open_data(name="scenes", num_train=10_000, num_val=500):
    """The data by one switch: "scenes", drawn here once; "coco", the course's file; or the path of a data file.

    The course's file is downloaded to datasets/coco.pt unless it is there; where that fails a line says so, and the
    scenes stand in for it.
    """
    if name == "coco":
        try:
            return load_coco_captions(coco.download_course_file())
        except coco.DownloadError as error:
            print(f"{error}\nThe notebook goes on with the embedded scenes.")
            name = "scenes"
    if name != "scenes":
        return load_coco_captions(name)
    path = DATASETS / f"scenes-{num_train}-{num_val}.pt"
    if not path.exists():
        coco.save_data(make_scenes(num_train, num_val), path)
    return load_coco_captions(path)


def all_captions(data, split="train"):
    """Every caption of every picture: captions (m, T + 1), and each one's row of the pictures.

    Files like coco.pt know one caption a picture: then those.
    """
    references = data.get(f"{split}_references")
    if references is None:
        return data[f"{split}_captions"], torch.arange(len(data[f"{split}_captions"]))
    captions = [tokenize(caption) for texts in references for caption in texts]
    image_index = torch.tensor([row for row, texts in enumerate(references) for _ in texts])
    return encode_captions(captions, data["vocab"]), image_index


def captions_together(data, split="train"):
    """Every picture's captions in one row: (n, K, T + 1), K the most that a picture has; fewer are repeated.

    A picture's captions are then learned in one step, and its features projected once for all of them.
    """
    captions, image_index = all_captions(data, split)
    rows = [captions[image_index == row] for row in range(int(image_index.max()) + 1)]
    most = max(map(len, rows))
    return torch.stack([row[torch.arange(most) % len(row)] for row in rows])


def with_mirror_images(data):
    """A data file's dict whose training pictures, with their captions, come once as they are and once mirrored.

    A caption that says left or right is wrong of the mirror image; 116 of Flickr8k's 30,000 have one of the words.
    """
    doubled = {name: values + values if isinstance(values, list) else torch.cat([values, values])
               for name, values in data.items() if name in ("train_captions", "train_references", "train_image_ids")}
    images = data["train_images"]
    return {**data, **doubled, "train_images": torch.cat([images, images.flip(-1)])}


def encoder_for(data, verbose=True, name="auto"):
    """The image encoder that suits a data file: a finer, earlier stage for drawn scenes, the last for photographs.

    name: which one, as for eecs598.encoders.choose_encoder.
    """
    stride, image_size = (16, None) if "train_scenes" in data else (32, 224)
    return encoders.choose_encoder(data["train_images"], stride, image_size, verbose, name)


# ---------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------


def default_device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_captioner(captioner_class, data, cell_type, encoder, hidden_dim=512, wordvec_dim=256, **options):
    """A captioner for a data file, with `encoder` in place of its RegNet.

    captioner_class: CaptioningRNN of this project's or a student's rnn_lstm_captioning.py. options: more of its
    keyword arguments, as dropout.
    """
    token_to_idx = data["vocab"]["token_to_idx"]
    model = captioner_class(
        word_to_idx=token_to_idx,
        input_dim=encoder.out_channels,
        wordvec_dim=wordvec_dim,
        hidden_dim=hidden_dim,
        cell_type=cell_type,
        image_encoder_pretrained=False,
        ignore_index=token_to_idx["<NULL>"],
        **options,
    )
    return encoders.set_encoder(model, encoder)


def train_captioner(
    model, image_data, caption_data, num_epochs, batch_size, learning_rate, lr_decay=1, device=None, *,
    image_index=None, val_data=None, freeze_encoder=None, features_folder=None, seed=0, progress=True, plot=True,
    precision="float32", accumulate=1, checkpoint_dir=None, checkpoint_every=None, extras=None,
    practice=None, val_references=None,
):  # fmt: skip
    """Train a captioner; all examples are seen once an epoch, in a new order. Returns model, loss_history.

    image_data (n, 3, H, W) pictures; caption_data (m, T + 1) int64; image_index (m,): each caption's picture,
    where m is not n; or caption_data (n, K, T + 1), K captions of each picture, learned in one step. device: CUDA
    where it is, if None. val_data: (pictures, captions), for the validation loss
    after each epoch. freeze_encoder: train the decoder alone, on features that are computed once and kept in
    features_folder; if None, on a CPU yes and elsewhere no. plot: draw the losses, in a notebook. precision of the
    products: "float32", "bfloat16", or "auto" for the one that this device multiplies faster. accumulate: parts in
    which a batch is computed, for one that does not fit in memory. extras: see eecs598.training.solver.Extras. practice: an
    eecs598.training.selfcritical.Practice on the pictures, whose loss then takes the place of the captions'. val_references:
    (all the captions of each of val_data's pictures, idx_to_word), for the scores of greedy captions after each epoch.
    checkpoint_dir: a folder for this run's checkpoints, written at the end of each epoch and, within it, after every
    checkpoint_every iterations. The same call again goes on from the last one, to the same result as a run that was
    never stopped; when all is done it returns at once, and with more num_epochs goes on. An interrupt (Ctrl-C, a
    notebook's stop button) then waits for the end of the iteration, writes a checkpoint and raises KeyboardInterrupt.
    loss_history: the loss of every iteration. Raises ValueError, for a checkpoint_dir of another model, other data or
    options too, and eecs598.training.solver.TrainingError.
    """
    sizes = {"num_epochs": num_epochs, "batch_size": batch_size, "accumulate": accumulate}
    rates = {"learning_rate": learning_rate, "lr_decay": lr_decay, "precision": precision}
    solver.check_arguments(image_data, caption_data, image_index, **sizes, **rates)  # before hours of image features
    device = torch.device(device or default_device())
    model.to(device)
    freeze = device.type == "cpu" if freeze_encoder is None else freeze_encoder
    encoder, kept = encoders.get_encoder(model).requires_grad_(not freeze), None
    if checkpoint_dir is not None:
        known = checkpoints.describe_data(image_data, caption_data, image_index, val_data)
        known |= practice.describe(model) if practice else {}
        kept = checkpoints.Checkpoints(checkpoint_dir, {**_describe_encoder(encoder), **known}, checkpoint_every)
    everyone = processes.current()
    with contextlib.ExitStack() as stack:
        if freeze:
            if kept is None or kept.epochs < num_epochs:  # else nothing is left to do
                with everyone.one_after_the_first():
                    image_data, val_data = _features(model, image_data, val_data, features_folder, device, progress)
            stack.enter_context(encoders.fed_with_features(model))
        history = solver.train(
            model, image_data, caption_data, seed=seed, image_index=image_index, val_data=val_data, progress=progress,
            checkpoints=kept, extras=extras or solver.Extras(), loss=practice and practice.loss,
            score=val_references and _scorer(val_data[0], *val_references), **sizes, **rates,
        )  # fmt: skip
    if plot and everyone.first:
        show(plot_history(history))
    return model, history.losses


def _scorer(images, references, idx_to_word):
    """A function that scores a model's greedy captions of val images, or features, and prints the scores."""

    @torch.no_grad()
    def score(model):
        device, captions = next(model.parameters()).device, []
        with decoding.evaluating(model):
            for part in images.split(256):
                said = model.sample(part.to(device), 16)
                said = said[0] if isinstance(said, tuple) else said
                captions += decode_captions(said, idx_to_word, specials=False)
        scores = metrics.score_captions(captions, references)
        told = f"BLEU-1 {100 * scores['BLEU-1']:.1f}, BLEU-4 {100 * scores['BLEU-4']:.1f}"
        tqdm.write(f"val, greedy: {told}, CIDEr-D {scores['CIDEr-D']:.3f}")
        return scores

    return score


def _features(model, images, val_data, folder, device, progress):
    """Pictures, and those of val_data if there is any, as features from the model's own encoder."""
    encoder = encoders.get_encoder(model)

    def encode(pictures):
        return encoders.cached_features(encoder, pictures, folder, device=device, progress=progress)

    return encode(images), val_data and (encode(val_data[0]), val_data[1])


def fingerprint(module, data):
    """8 digits that change with a module's source and with the captions: a run of old code is not gone on with."""
    digest = hashlib.sha256(Path(module.__file__).read_bytes())
    digest.update(checkpoints.hash_tensors([data["train_captions"]]).encode())
    return digest.hexdigest()[:8]


def _describe_encoder(encoder):
    """What tells a run's encoder from another: if it is frozen, its weights too, as no checkpoint holds them.

    Not the features, whose last bits vary with the machine, as do statistics (buffers) calibrated on pictures.
    """
    known = encoders.describe_encoder(encoder)
    if known["frozen"]:
        known["weights"] = checkpoints.hash_tensors(encoder.parameters())
    return {f"encoder.{name}": value for name, value in known.items()}


def plot_history(history):
    """The losses of a run as a figure."""
    return vis.plot_losses(history.losses, history.val_losses or None)


# ---------------------------------------------------------------------------------------------------------
# In the notebook
# ---------------------------------------------------------------------------------------------------------


def show(figure):
    """Display a figure, in a notebook; elsewhere do nothing."""
    with contextlib.suppress(ImportError):
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            display(figure)


def show_source(function):
    """A function's source, coloured, as a cell's value; without the marks that the student edition is cut by."""
    from IPython.display import Markdown

    source = re.sub(r"^ *# ANSWER .*\n(?: *# {3}.*\n)*", "", inspect.getsource(function), flags=re.MULTILINE)
    return Markdown(f"```python\n{source}```")


def check(part, code):
    """Run one of eecs598.checks.CHECKS on a module's functions; returns its table, raises CheckError.

    code: our rnn_lstm_captioning or a student's. What a file for the published assignment has no need of may
    be missing: then a line says so.
    """
    needs = CHECKS[part].needs
    missing = [name for name in needs if not hasattr(code, name)]
    if missing:
        return print(f"{part}: skipped, {', '.join(missing)} is not in {code.__name__}")
    try:
        return CHECKS[part].run(*(getattr(code, name) for name in needs))
    except CheckError as error:
        undone = re.search(r"(\S+) is not written yet: it raises", str(error))
        if not undone:
            raise
        raise CheckError(_still_to_do(undone[1], Path(code.__file__)), error.table) from None


def explain_todos():
    """From now on a part that is still to do stops a notebook's cell with one sentence, not with a traceback."""
    from IPython import get_ipython

    get_ipython().set_custom_exc((NotImplementedError,), _show_todo)


def _show_todo(shell, kind, error, trace, tb_offset=None):
    """What IPython calls for a NotImplementedError: the sentence, if it is a part's."""
    name = str(error).removeprefix("TODO: ")
    if name == str(error):
        return shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    innermost = traceback.extract_tb(trace)[-1]
    sentence = f"{kind.__name__}: {_still_to_do(name, Path(innermost.filename))}"
    shell._showtraceback(kind, error, [sentence])
    return [sentence]


def _still_to_do(name, path):
    """What to do about an unwritten part: where it is."""
    lines = path.read_text(encoding="utf-8").splitlines()
    line = next((f", line {n}" for n, text in enumerate(lines, 1) if f'"TODO: {name}"' in text), "")
    return f"{name} is still to do. Write it in {path.name}{line}, where its box says what; then run this cell again."


def read_photographs(sources, image_size=112, fit="crop"):
    """Photographs as models see them, uint8 (n, 3, image_size, image_size); each a path, a web address or bytes.

    image_size, fit: as for the pictures that the model was trained on. Raises DataError.
    """
    return torch.stack([prepare_image(_open_photograph(source), image_size, fit) for source in sources])


def _open_photograph(source):
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        try:
            answer = requests.get(source, timeout=30)
            answer.raise_for_status()
        except requests.RequestException as error:
            raise DataError(f"{source}: cannot be fetched ({type(error).__name__}: {error!s:.100})") from None
        source = answer.content
    return io.BytesIO(source) if isinstance(source, bytes) else source


def show_examples(model, data, rows):
    """Val pictures with the model's captions, people's below; for drawn scenes, a mark where all of it is true."""
    images, names = data["val_images"][rows], data["vocab"]["idx_to_token"]
    captions = caption_pictures(model, images, names)
    captions = captions[0] if isinstance(captions, tuple) else captions
    judged = [judge_caption(text, data["val_scenes"][row])["right"] for text, row in zip(captions, rows)
              ] if "val_scenes" in data else None  # fmt: skip
    references = [texts[:1] for texts in people(data, rows)]
    return vis.show_captions(images, captions, references=references, judgements=judged)


def people(data, rows, split="val"):
    """The captions that people (or the scenes' grammar) gave pictures: a list of strings for each row."""
    known = data.get(f"{split}_references")
    if known is None:
        names = data["vocab"]["idx_to_token"]
        return [[text] for text in decode_captions(data[f"{split}_captions"][rows], names, specials=False)]
    return [known[row] for row in rows]


def caption_pictures(model, images, idx_to_word, max_length=16, batch_size=64, **options):
    """Caption any number of pictures, greedily or by the options of `decode_pictures`. images (n, 3, H, W).

    A frozen encoder computes their features just as it did for training. Returns a list of n strings; for an attention
    model also the weights (n, max_length, h, w). Raises ValueError.
    """
    if len(images) == 0:
        return []
    if options:
        found = decode_pictures(model, images, max_length, batch_size, **options)
        words, maps = found.words[:, 0], None if found.weights is None else found.weights[:, 0]
    else:
        parts = _in_batches(model, images, batch_size, lambda part: model.sample(part, max_length))
        pairs = [part if isinstance(part, tuple) else (part, None) for part in parts]
        words, maps = (None if each[0] is None else torch.cat(each).cpu() for each in zip(*pairs))
    captions = decode_captions(words, idx_to_word, specials=False)
    return captions if maps is None else (captions, maps)


def score_captioner(model, data, max_length=16, **options):
    """A captioner's captions of a data file's val pictures against all that people said: (captions, Evaluation).

    options: as for `caption_pictures`. See eecs598.metrics. Raises ValueError.
    """
    images = data["val_images"]
    captions = caption_pictures(model, images, data["vocab"]["idx_to_token"], max_length, **options)
    captions = captions[0] if isinstance(captions, tuple) else captions
    return captions, metrics.evaluate_captions(captions, people(data, range(len(images))))


def decode_pictures(model, images, max_length=16, batch_size=64, *, mirror=False, **options):
    """Several captions of each of any number of pictures, with their probabilities. images (n, 3, H, W), n at least 1.

    mirror: look at each picture's mirror image too, see eecs598.decoding.Mirrored. options: those of
    eecs598.decoding.decode. Returns eecs598.decoding.Captions, on the CPU. Raises ValueError.
    """
    _check_steps(model)
    if len(images) == 0:
        raise ValueError("there are no pictures to caption")
    speaker = decoding.Mirrored(model) if mirror else model
    decode = functools.partial(decoding.decode, speaker, max_length=max_length, **options)
    parts = zip(*_in_batches(model, images, batch_size, decode, mirror))
    return decoding.Captions(*(None if part[0] is None else torch.cat(part).cpu() for part in parts))


def _missing_steps(model):
    """What a captioner, as one for the published assignment, lacks of what all decoding but the greedy one takes."""
    return [name for name in ("begin", "step") if not hasattr(model, name)]


def _check_steps(model):
    if missing := _missing_steps(model):
        raise ValueError(f"{type(model).__name__} has no {' and no '.join(missing)}, which all decoding but the greedy "
                         "one takes: caption without options, or with this project's rnn_lstm_captioning.py")


@torch.no_grad()
def _in_batches(model, images, batch_size, decode, mirror=False):
    """[decode(part) for parts of the images], with the model in evaluation mode and a frozen encoder's features.

    mirror: the parts are (N, 2, ...), each picture and its mirror image.
    """
    device, encoder = next(model.parameters()).device, encoders.get_encoder(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(decoding.evaluating(model))  # a student's sample() may leave that to its caller
        views = [images, images.flip(-1)] if mirror else [images]
        if encoders.is_frozen(encoder):
            views = [encoders.encode_images(encoder, view, device=device, progress=False) for view in views]
            stack.enter_context(encoders.fed_with_features(model))
        images = torch.stack(views, dim=1) if mirror else views[0]
        return [decode(part.to(device)) for part in images.split(batch_size)]


# ---------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------


def save_captioner(model, path, data, hidden_dim, wordvec_dim):
    """Write a captioner and all that captioning a new picture takes: vocabulary, encoder, picture preparation."""
    side, encoder = data["train_images"].shape[-1], encoders.get_encoder(model)
    checkpoint = {
        "model": {"cell_type": model.cell_type, "hidden_dim": hidden_dim, "wordvec_dim": wordvec_dim},
        "vocab": dict(data["vocab"]),
        "encoder": encoders.describe_encoder(encoder),
        "preprocessing": dict(data.get("preprocessing") or {"image_size": side, "fit": "stretch"}),
        "state": {name: value.cpu() for name, value in model.state_dict().items()},
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_whole(checkpoint, path)


def load_captioner(path):
    """Read what `save_captioner` wrote. Returns model, idx_to_token, preprocessing. Raises DataError."""
    from rnn_lstm_captioning import CaptioningRNN

    if not Path(path).is_file():
        raise DataError(f"{path}: no such checkpoint; {TRAIN}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on a file that is refused next
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        options, vocab = checkpoint["model"], checkpoint["vocab"]
        preparation = dict(checkpoint["preprocessing"])
        encoder = encoders.rebuild_encoder(checkpoint["encoder"])
        model = make_captioner(CaptioningRNN, {"vocab": vocab}, encoder=encoder, **options)
        model.load_state_dict(checkpoint["state"])
    except ImportError as error:
        raise DataError(f"{path}: its image encoder cannot be made here ({error})") from None
    except Exception as error:  # whatever the unpickler, or a part that is not what it should be, raises
        raise DataError(f"{path}: not a captioner's checkpoint, or a damaged one ({type(error).__name__})") from None
    return model.eval(), vocab["idx_to_token"], preparation


def last_captioner(folder=BUILD):
    """The checkpoint that `train` wrote last, in a folder or in one of its folders. Raises DataError."""
    found = [path for cell_type in CELL_TYPES for place in ("", "*/") for path in folder.glob(f"{place}{cell_type}.pt")]
    if not found:
        raise DataError(f"no captioner in {folder} nor in its folders; {TRAIN}, or name one: --checkpoint FILE")
    return max(found, key=lambda path: path.stat().st_mtime)


# ---------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------


def train_command(options):
    """Train a captioner of each kind asked for; print their scores, and captions of val pictures next to people's."""
    with processes.joined(torch.device(options.device or default_device())) as device:
        _train(options, device)


def _train(options, device):
    from rnn_lstm_captioning import CaptioningRNN

    everyone = processes.current()
    data = load_coco_captions(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    with everyone.one_after_the_first():  # it may have to be downloaded
        encoder = encoder_for(data, name=options.encoder)
    data = with_mirror_images(data) if options.mirror else data
    captions, image_index = data["train_captions"], None
    if options.captions == "all":
        captions, image_index = all_captions(data)
    elif options.captions == "together":
        captions = captions_together(data)
    extras = _given(options, solver.Extras)
    losses, said, scores = {}, {}, {}
    for cell_type in options.cell:
        reset_seed(options.seed)
        where = f"{everyone.count} processes, the first on {device}" if everyone.count > 1 else device
        print(f"\n{cell_type}: {len(captions):,} captions, {options.epochs} epochs on {where}")
        model = make_captioner(
            CaptioningRNN, data, cell_type, copy.deepcopy(encoder), options.hidden, options.wordvec,
            **_model_options(options),
        )  # fmt: skip
        model, losses[cell_type] = train_captioner(
            model, data["train_images"], captions, options.epochs, options.batch_size, options.learning_rate,
            options.lr_decay, device, image_index=image_index, extras=extras,
            **_shared_options(options, data, cell_type),
        )  # fmt: skip
        if options.self_critical:
            losses[f"{cell_type}, self-critical"] = _practise(model, data, options, device, extras)
        if everyone.first:
            path = options.out / f"{cell_type}.pt"
            save_captioner(model, path, data, options.hidden, options.wordvec)
            last_epoch = losses[cell_type][-math.ceil(len(captions) / options.batch_size) :]
            print(f"{path}: training loss {sum(last_epoch) / len(last_epoch):.3f} over the last epoch")
            said[cell_type], evaluation = score_captioner(model, data)
            scores[cell_type] = evaluation.scores
    if everyone.first:
        vis.plot_losses(losses).savefig(options.out / "losses.png")
        print(f"\n{len(data['val_images']):,} val pictures, greedy, against all that people said of each")
        print(metrics.format_scores(scores))
        _print_examples(said, data, options.show)


def _shared_options(options, data, folder):
    """What `train_captioner` takes in both phases; folder: of the phase's checkpoints."""
    count = range(len(data["val_images"]))
    return {
        "val_data": (data["val_images"], data["val_captions"]), "seed": options.seed, "precision": options.precision,
        "accumulate": options.accumulate, "checkpoint_dir": options.checkpoint_dir and options.checkpoint_dir / folder,
        "checkpoint_every": options.checkpoint_every, "freeze_encoder": options.freeze_encoder,
        "val_references": (people(data, count), data["vocab"]["idx_to_token"]) if options.score else None,
    }  # fmt: skip


def _practise(model, data, options, device, extras):
    """Self-critical training of a captioner that was trained on people's captions. Returns its losses."""
    _check_steps(model)
    count = len(data["train_images"])
    print(f"self-critical: {options.samples} captions of each of {count:,} pictures, {options.self_critical} epochs")
    references = [[text.split() for text in texts] for texts in people(data, range(count), "train")]
    practice = selfcritical.Practice(references, data["vocab"], options.samples, bleu=options.self_critical_bleu)
    if options.sharpen != 1:
        selfcritical.sharpen(model, options.sharpen)
    return train_captioner(
        model, data["train_images"], data["train_captions"], options.self_critical, options.self_critical_batch,
        options.self_critical_rate, 1, device, extras=extras, practice=practice,
        **_shared_options(options, data, f"{model.cell_type}-self-critical"),
    )[1]  # fmt: skip


def _given(options, kind):
    """A dataclass of options, each of them from the command line's option of its name."""
    return kind(**{field.name: getattr(options, field.name) for field in dataclasses.fields(kind)})


def _model_options(options):
    """The captioner's own options that are in use: a student's captioner knows none."""
    names = ("dropout", "label_smoothing", "tie_embeddings", "doubly_stochastic", "attention_entropy",
             "scheduled_sampling")  # fmt: skip
    return {name: getattr(options, name) for name in names if getattr(options, name)}


def _print_examples(said, data, count):
    """Each val picture's captions by the models, then by people."""
    for row, texts in enumerate(people(data, range(min(count, len(data["val_images"]))))):
        print(f"\nval picture {row}")
        for cell_type, captions in said.items():
            print(f"  {cell_type:>6}: {captions[row]}")
        for text in texts[:2]:
            print(f"  person: {text}")


def _drawing_names(photos):
    """A PNG's name for each photograph, after its own; numbered where several have one."""
    seen, names = collections.Counter(), []
    for photo in photos:
        stem = Path(photo).stem
        seen[stem] += 1
        names.append(f"{stem}.png" if seen[stem] == 1 else f"{stem}-{seen[stem]}.png")
    return names


def caption_command(options):
    """Caption photographs, by the captioner that was trained last; draw where an attention model looked."""
    checkpoint = options.checkpoint or last_captioner()
    if not options.checkpoint:
        print(f"captioner: {checkpoint}")
    model, idx_to_word, preparation = load_captioner(checkpoint)
    model.to(options.device or default_device())
    decoder = _decoder(options)
    if decoder.keys() <= {"mirror"} and not _missing_steps(model):
        decoder["beam_size"] = 3
    drawings = _drawing_names(options.photos)
    for photo, drawing in zip(options.photos, drawings):
        images = read_photographs([photo], **preparation)
        if decoder:
            text, weights = _print_captions(photo, decode_pictures(model, images, **decoder), idx_to_word)
        else:
            captions = caption_pictures(model, images, idx_to_word)
            text, weights = (captions[0][0], captions[1][0]) if isinstance(captions, tuple) else (captions[0], None)
            print(f"{photo}: {text}")
        if weights is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            words = text.split() or ["(nothing)"]
            vis.show_attention(images[0], words, weights[: len(words)]).savefig(options.out / drawing)
            print(f"  where it looked: {options.out / drawing}")


def evaluate_command(options):
    """Caption a folder's pictures and score the captions against all that people said of them."""
    model, idx_to_word, preparation = load_captioner(options.checkpoint)
    model.to(options.device or default_device())
    decoder = _decoder(options)
    decoding_options = {name: value for name, value in decoder.items() if name != "generator"}
    pictures = find_pictures(options.images, options.captions)[: options.limit]
    captions = _caption_files(model, idx_to_word, preparation, pictures, decoder)
    evaluation = metrics.evaluate_captions(captions, [picture.captions for picture in pictures])
    how = ", ".join(f"{name} {value}" for name, value in decoding_options.items()) or "greedy"
    count = sum(len(picture.captions) for picture in pictures)
    print(f"{len(pictures):,} pictures, {count:,} captions by people; decoding: {how}")
    print(metrics.format_scores({options.checkpoint.stem: evaluation.scores}))
    print("CIDEr-D is what papers and COCO's own code print as CIDEr.")
    _print_best_and_worst(pictures, captions, evaluation, options.show)
    if options.json:
        each = [{"image_id": picture.id, "file_name": picture.file_name, "caption": caption,
                 **{name: scores[i] for name, scores in evaluation.pictures.items()}}
                for i, (picture, caption) in enumerate(zip(pictures, captions))]  # fmt: skip
        report = {"checkpoint": str(options.checkpoint), "images": str(options.images),
                  "captions": str(options.captions), "decoding": decoding_options, "scores": evaluation.scores,
                  "pictures": each}  # fmt: skip
        write_whole(options.json, lambda file: file.write(json.dumps(report, indent=1).encode()))


def _caption_files(model, idx_to_word, preparation, pictures, decoder, batch_size=64):
    """A caption of each of some eecs598.coco.captions.Pictures, prepared as those that the model was trained on."""
    captions, batch = [], []
    ready = prepare_in_order(pictures, **preparation, workers=os.cpu_count() or 1)
    with tqdm(total=len(pictures), desc="captions", unit="picture", mininterval=0.5) as bar:
        for _, image in ready:
            if isinstance(image, DataError):
                raise image
            batch.append(image)
            if len(batch) == batch_size or len(captions) + len(batch) == len(pictures):
                said = caption_pictures(model, torch.stack(batch), idx_to_word, **decoder)
                captions += said[0] if isinstance(said, tuple) else said
                bar.update(len(batch))
                batch = []
    return captions


def _print_best_and_worst(pictures, captions, evaluation, count):
    ranked, cider = metrics.rank_captions(evaluation), evaluation.pictures["CIDEr-D"]
    count = min(count, len(ranked) // 2)
    for title, rows in {"best": ranked[:count], "worst": ranked[len(ranked) - count :]}.items() if count > 0 else ():
        print(f"\n{title} by CIDEr-D")
        for row in rows:
            print(f"{cider[row]:6.3f}  {pictures[row].file_name}\n         model: {captions[row]}\n"
                  f"        person: {' '.join(pictures[row].captions[0].split())}")


def _decoder(options):
    """The options for eecs598.decoding.decode that were given on the command line; none: greedy."""
    names = ("beam_size", "num_captions", "length_penalty", "no_repeat_ngram", "temperature", "top_k", "top_p",
             "mirror")  # fmt: skip
    given = {name: getattr(options, name, None) for name in names if getattr(options, name, None) is not None}
    if given.keys() & {"temperature", "top_k", "top_p"}:
        given["generator"] = torch.Generator().manual_seed(options.seed)
    return given


def _print_captions(photo, captions, idx_to_word):
    """A photograph's captions under its name, each after its probability. Returns the first one and its weights."""
    print(f"{photo}:")
    texts = decode_captions(captions.words[0], idx_to_word, specials=False)
    for text, log_prob in zip(texts, captions.log_probs[0].tolist()):
        if log_prob > -math.inf:  # the beam may be wider than there are captions
            print(f"  {math.exp(log_prob):8.2g}  {text}")
    return texts[0], None if captions.weights is None else captions.weights[0, 0]


def _parser():
    parser = commands.Parser(prog="helpers.py", description="Train captioners, and caption photographs.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    train = subparsers.add_parser("train", help="train captioners on a data file")
    add = train.add_argument
    add("--data", type=Path, required=True, metavar="FILE", help="a data file: see python -m eecs598.coco build --help")
    add("--out", type=Path, required=True, metavar="DIR", help="where the checkpoints and the loss curves go")
    add("--cell", nargs="+", choices=CELL_TYPES, default=list(CELL_TYPES), help="which (all)")
    add("--recipe", choices=tuple(RECIPES), help="options that were found to go well with a data set; others that are "
        "given go before it")  # fmt: skip
    add("--captions", choices=("one", "all", "together"), default="one", help="captions of a picture to train on; "
        "together: all of them in the same step (one)")  # fmt: skip
    add("--mirror", action=argparse.BooleanOptionalAction, default=False, help="learn each picture's mirror image too: "
        "an epoch then has twice as many")  # fmt: skip
    add("--epochs", type=commands.positive, default=10, help="how often each caption is seen (10)")
    add("--batch-size", type=commands.positive, default=128, help="captions in a step; together: pictures (128)")
    add("--learning-rate", type=commands.above_zero, default=1e-3, help="Adam's (0.001)")
    add("--lr-decay", type=commands.above_zero, default=0.9, help="multiplies the learning rate after each epoch (0.9)")
    add("--hidden", type=commands.positive, default=512, help="size of the hidden state (512)")
    add("--wordvec", type=commands.positive, default=256, help="size of a word vector (256)")
    add("--show", type=commands.not_negative, default=8, metavar="N", help="val pictures captioned at the end (8)")
    add("--device", type=commands.device, help="cpu, cuda, ... (cuda where it is)")
    add("--encoder", choices=("auto", *encoders.ENCODERS), default="auto", help="of pictures; lite2 is the better "
        "and the slower (auto: lite0)")  # fmt: skip
    add("--freeze-encoder", action=argparse.BooleanOptionalAction, help="train the decoder alone, on image features "
        "computed once (on a CPU yes, elsewhere no)")  # fmt: skip
    add("--seed", type=commands.seed, default=0, help="weights and order (0)")
    add("--precision", choices=("auto", *solver.PRECISIONS), default="auto", help="auto: the faster one here (auto)")
    add("--accumulate", type=commands.positive, default=1, metavar="K", help="compute a step in K parts, to fit in "
        "memory (1)")  # fmt: skip
    add("--checkpoint-dir", type=Path, metavar="DIR", help="keep each run in DIR/CELL, and go on from what is there")
    add("--checkpoint-every", type=commands.positive, metavar="N", help="also after every N steps (each epoch's end)")
    add("--score", **SWITCH, help="score greedy captions of the val pictures after each epoch")
    _add_extras(train)
    train.set_defaults(run=train_command, parser=train)
    evaluate = subparsers.add_parser("evaluate", help="score a captioner on pictures that people have captioned")
    add = evaluate.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="written by train")
    add("--images", type=Path, required=True, metavar="DIR", help="pictures of any size")
    add("--captions", type=Path, required=True, metavar="JSON", help="their captions, in COCO's official format")
    add("--json", type=Path, metavar="FILE", help="write the scores, and each picture's caption and scores")
    add("--limit", type=commands.positive, metavar="N", help="the first N pictures only, by their ids (all)")
    add("--show", type=commands.not_negative, default=3, metavar="N", help="how many of the best and of the worst "
        "captions to print (3)")  # fmt: skip
    add("--device", type=commands.device, help="cpu, cuda, ... (cuda where it is)")
    _add_decoding(evaluate.add_argument_group("instead of the greedy caption, the best one found or one drawn"))
    evaluate.set_defaults(run=evaluate_command)
    caption = subparsers.add_parser("caption", help="caption photographs of any size and kind")
    add = caption.add_argument
    add("--checkpoint", type=Path, metavar="FILE", help=f"written by train (the last one below {BUILD})")
    add("--out", type=Path, default=BUILD / "captions", metavar="DIR", help="where an attention model's looks are "
        f"drawn, a PNG a photograph ({BUILD / 'captions'})")  # fmt: skip
    add("--device", type=commands.device, help="cpu, cuda, ... (cuda where it is)")
    add("photos", nargs="+", metavar="PHOTO", help="a file of any size and kind, or a web address")
    group = caption.add_argument_group("instead of the three best captions that a beam of 3 finds")
    _add_decoding(group)
    group.add_argument("--number", type=commands.positive, dest="num_captions", metavar="N",
                       help="captions a photo (the beam; 1)")  # fmt: skip
    caption.set_defaults(run=caption_command)
    return parser


def _add_extras(train):
    """The options that the published recipe does without."""
    add = train.add_argument_group("against learning by heart; all off unless given").add_argument
    add("--dropout", type=float, default=0.0, metavar="P", help="of features, word vectors and states")
    add("--label-smoothing", type=float, default=0.0, metavar="P", help="probability spread over all words")
    add("--tie-embeddings", **SWITCH, help="word vectors are the output's weights; --wordvec as --hidden")
    add("--doubly-stochastic", type=float, default=0.0, metavar="W", help="attn: look at all of the picture in the end")
    add("--attention-entropy", type=float, default=0.0, metavar="W", help="attn: look at few cells at a time")
    add("--scheduled-sampling", type=float, default=0.0, metavar="P", help="words before that the model chose itself")
    add("--weight-decay", type=float, default=0.0, metavar="W", help="AdamW's")
    add("--clip-norm", type=float, default=0.0, metavar="G", help="the gradient's norm, at most")
    add("--warmup", type=commands.not_negative, default=0, metavar="N", help="steps in which the learning rate rises")
    add("--cosine", **SWITCH, help="the learning rate falls along a cosine; take --lr-decay 1 with it")
    add("--averaging", type=float, default=0.0, metavar="D", help="end with a moving average of the weights, as 0.99")
    add = train.add_argument_group("self-critical training, afterwards: on the model's own captions").add_argument
    add("--self-critical", type=commands.not_negative, default=0, metavar="EPOCHS", help="how often each picture is "
        "captioned (0)")  # fmt: skip
    add("--self-critical-rate", type=commands.above_zero, default=3e-4, metavar="R", help="the learning rate (0.0003)")
    add("--self-critical-batch", type=commands.positive, default=64, metavar="N", help="pictures in a step (64)")
    add("--self-critical-bleu", type=commands.zero_or_more, default=0.0, metavar="W", help="a caption's score is its "
        "CIDEr-D and W times BLEU's mean precision of runs of 1 to 4 words (0)")  # fmt: skip
    add("--samples", type=commands.at_least(2), default=5, metavar="K", help="captions drawn of each picture (5)")
    add("--sharpen", type=commands.above_zero, default=1.0, metavar="T", help="first divide the scores by T (1)")


def _add_decoding(group):
    """The options that `_decoder` reads."""
    add = group.add_argument
    add("--beam", type=commands.positive, dest="beam_size", metavar="K", help="search for the best with a beam of K")
    add("--length-penalty", type=float, metavar="A", help="order by log p / length^A; 0 likes short ones (0)")
    add("--mirror", action="store_true", default=None, help="look at the mirror image too; say a word by the mean "
        "probability")  # fmt: skip
    add("--temperature", type=float, metavar="T", help="draw at random: below 1 likely words more often, above 1 less")
    add("--top-k", type=commands.positive, metavar="K", help="draw from the K likeliest words only")
    add("--top-p", type=float, metavar="P", help="draw from the fewest words that have probability P together")
    add("--no-repeat", type=commands.positive, dest="no_repeat_ngram", metavar="N", help="no N words in a row twice")
    add("--seed", type=commands.seed, default=0, help="of what is drawn (0)")


def _parse(arguments):
    """The options; those of a recipe stand in for the defaults, so that what is given goes before them."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if getattr(options, "recipe", None):
        options.parser.set_defaults(**RECIPES[options.recipe])
        options = parser.parse_args(arguments)
    if getattr(options, "self_critical", 0) and options.tie_embeddings and options.sharpen != 1:
        parser.error("--sharpen changes the output's weights, which --tie-embeddings makes those of the words too")
    return options


def main(arguments=None):
    options = _parse(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, NotImplementedError, solver.TrainingError, processes.ProcessLostError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:  # in training a TrainingError says what to lower
        if not solver.is_out_of_memory(error):
            raise
        told = str(error).partition("\n")[0] or "MemoryError"
        print(f"error: out of memory: lower the sizes, as --hidden, or take fewer pictures ({told})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
