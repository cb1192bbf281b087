"""Make, save and load a captioner, and caption pictures with it.

The captioner's class is an argument: the CaptioningRNN of this project or of a student's rnn_lstm_captioning.py.
"""

import contextlib
import functools
import io
import warnings
from pathlib import Path

import requests
import torch
import torch.nn.functional as F

from eecs598 import decoding, encoders, features, metrics, reranking
from eecs598.coco import DataError, prepare_image
from eecs598.coco.captions import END, MAX_LENGTH, NULL, START, decode_captions
from eecs598.deep_output import with_deep_output
from eecs598.encoders import PublishedForm
from eecs598.files import save_whole
from eecs598.progress import late_bar

CELL_TYPES = ("rnn", "lstm", "attn")
BUILD = Path("build")  # where the commands in README.md write captioners, and where the latest one is looked for
TRAIN = f"`python helpers.py train --data FILE --out {BUILD / 'mine'}` trains one"


class StepsError(ValueError):
    """A captioner without `begin` and `step`, as in the published assignment, cannot do more than greedy decoding."""


def default_device():
    """CUDA if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_captioner(captioner_class, data, cell_type, encoder, hidden_dim=512, wordvec_dim=256, output_heads=0):
    """An untrained captioner for a data file's dict, with `encoder` instead of its RegNet, which is not created.

    output_heads: if not 0, for attn, with a deep output layer (`eecs598.deep_output`). Raises ValueError for an invalid
    vocabulary or size.
    """
    token_to_idx = data["vocab"]["token_to_idx"]
    _check_vocabulary(token_to_idx)
    for name, size in {"hidden_dim": hidden_dim, "wordvec_dim": wordvec_dim}.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} is {size!r}; it must be a whole number, at least 1")
    further = {"output_heads": output_heads} if output_heads else {}
    with features.without_image_encoder(captioner_class, encoder.out_channels):
        model = (with_deep_output(captioner_class) if output_heads else captioner_class)(
            word_to_idx=token_to_idx, input_dim=encoder.out_channels, wordvec_dim=wordvec_dim, hidden_dim=hidden_dim,
            cell_type=cell_type, image_encoder_pretrained=False, ignore_index=token_to_idx[NULL],
            **further,
        )  # fmt: skip
    return encoders.set_encoder(model, encoder)


def fit_encoder(captioner_class, encoder, images):
    """`encoder`, or a version of it that gives features of the published size, if a student's file needs that.

    The published encoder gives 400 channels on a 4 x 4 grid, and some files have these numbers hard-coded. So a small
    captioner of each cell type is tried on features of the encoder's size, then on a 4 x 4 grid, then also with 400
    channels, and the first size that works for most cell types is used. A line is printed if the features are changed.
    images: (n, 3, H, W), like those to be captioned.
    """
    forms = [encoder, PublishedForm(encoder), PublishedForm(encoder, PublishedForm.CHANNELS)]
    with torch.no_grad(), decoding.evaluating(encoder):
        (*_, h, w) = encoder(images[:1]).shape
    sizes = [(encoder.out_channels, h, w), *((form.out_channels, *form.GRID) for form in forms[1:])]
    working = []
    for size in sizes:
        working.append(sum(takes_features(captioner_class, cell_type, size) for cell_type in CELL_TYPES))
        if working[-1] == len(CELL_TYPES):
            break
    best = working.index(max(working))
    if best:
        size = f"{f'{sizes[2][0]} channels' if best == 2 else 'features'} on a 4 x 4 grid"
        print(f"{captioner_class.__name__} only takes {size}: the encoder's features, {sizes[0][0]} channels on "
              f"{h} x {w}, are converted")  # fmt: skip
    return forms[best]


def takes_features(captioner_class, cell_type, size):
    """Whether a small captioner can train on and caption features (C, h, w), and uses every cell of the grid."""
    words = {"vocab": {"token_to_idx": {word: i for i, word in enumerate((NULL, START, END, "a", "thing"))}}}
    captions = torch.tensor([[1, 3, 4, 2], [1, 4, 2, 0]])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would also seed the GPUs, which are not restored
        seen = torch.randn(2, *size, requires_grad=True)
        try:
            stand_in = features.Features(torch.float32, size[0])
            model = make_captioner(captioner_class, words, cell_type, stand_in, hidden_dim=12, wordvec_dim=5)
            (gradient,) = torch.autograd.grad(model(seen, captions), seen)
            model.eval().sample(seen.detach(), max_length=3)
        except Exception:  # a student's code may raise anything
            return False
    return bool((gradient != 0).any(dim=1).all())


def _check_vocabulary(token_to_idx):
    missing = [token for token in (NULL, START, END) if token not in token_to_idx]
    if missing:
        raise ValueError(f"word_to_idx lacks {' '.join(missing)}; build the vocabulary with eecs598.coco")
    if sorted(token_to_idx.values()) != list(range(len(token_to_idx))):
        ids, count = token_to_idx.values(), len(token_to_idx)
        raise ValueError(f"word_to_idx must give its {count} words the ids 0 to {count - 1}, each once; seen "
                         f"{min(ids)} to {max(ids)}")  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Saving and loading
# ---------------------------------------------------------------------------------------------------------


def save_captioner(model, path, data, hidden_dim, wordvec_dim):
    """Save a captioner with all that is needed to caption new pictures: vocabulary, encoder, preprocessing."""
    side, encoder = data["train_images"].shape[-1], encoders.get_encoder(model)
    heads = {"output_heads": model.deep_output.heads} if hasattr(model, "deep_output") else {}
    checkpoint = {
        "model": {"cell_type": model.cell_type, "hidden_dim": hidden_dim, "wordvec_dim": wordvec_dim, **heads},
        "vocab": dict(data["vocab"]),
        "encoder": encoders.describe_encoder(encoder),
        "preprocessing": dict(data.get("preprocessing") or {"image_size": side, "fit": "stretch"}),
        "state": {name: value.cpu() for name, value in model.state_dict().items()},
    }
    if hasattr(model, "reranker"):
        checkpoint["reranker"] = model.reranker.state()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_whole(checkpoint, path)


def load_captioner(path, captioner_class):
    """Load a captioner saved by `save_captioner`. Returns model, idx_to_token, preprocessing. Raises DataError."""
    checkpoint = _read_checkpoint(Path(path))
    try:
        sizes, vocab, state = checkpoint["model"], checkpoint["vocab"], checkpoint["state"]
        preparation = dict(checkpoint["preprocessing"])
        encoder = encoders.rebuild_encoder(checkpoint["encoder"])
        model = make_captioner(captioner_class, {"vocab": vocab}, encoder=encoder, **sizes)
        if other := sorted(state.keys() ^ model.state_dict().keys()):
            raise ValueError(f"it has other parameters than this {captioner_class.__name__}, such as {other[0]}; use "
                             "the rnn_lstm_captioning.py that it was trained with")  # fmt: skip
        model.load_state_dict(state)
        if "reranker" in checkpoint:
            model.reranker = reranking.Reranker(**checkpoint["reranker"])
    except ImportError as error:
        raise DataError(f"{path}: its image encoder is not available ({error})") from None
    except ValueError as error:
        raise DataError(f"{path}: this captioner cannot be loaded: {error}") from None
    except Exception as error:  # malformed contents may raise anything
        raise DataError(f"{path}: not a captioner's checkpoint, or a damaged one ({type(error).__name__})") from None
    return model.eval(), vocab["idx_to_token"], preparation


def _read_checkpoint(path):
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a captioner's file in it, such as {path / 'attn.pt'}")
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint; {TRAIN}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are rejected anyway
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # the unpickler may raise anything
        raise DataError(f"{path}: not a captioner's checkpoint, or a damaged one ({type(error).__name__})") from None
    if isinstance(checkpoint, dict) and {"identity", "run"} <= checkpoint.keys():
        raise DataError(f"{path}: a checkpoint to resume training from; captioners are in the folder given by --out")
    return checkpoint


def last_captioner():
    """The captioner that `train` saved most recently in `BUILD` or its subfolders. Raises DataError."""
    found = [path for cell_type in CELL_TYPES for place in ("", "*/") for path in BUILD.glob(f"{place}{cell_type}.pt")]
    if not found:
        raise DataError(f"no captioner in {BUILD} or its subfolders; {TRAIN}, or name one with --checkpoint FILE")
    return max(found, key=lambda path: path.stat().st_mtime)


# ---------------------------------------------------------------------------------------------------------
# Captions as text
# ---------------------------------------------------------------------------------------------------------


def references_of(data, rows, split="val"):
    """The reference captions of some pictures, given by index: a list of strings for each."""
    references = data.get(f"{split}_references")
    if references is None:
        idx_to_word = data["vocab"]["idx_to_token"]
        return [[text] for text in decode_captions(data[f"{split}_captions"][rows], idx_to_word, specials=False)]
    return [references[row] for row in rows]


# ---------------------------------------------------------------------------------------------------------
# Captioning pictures
# ---------------------------------------------------------------------------------------------------------


def read_photographs(sources, image_size=112, fit="stretch"):
    """Read and preprocess photographs: uint8 (n, 3, image_size, image_size). Each is a path, a web address or bytes.

    image_size, fit: as for the pictures that the model was trained on. Raises DataError.
    """
    if not sources:
        raise DataError("there are no photographs to read; give at least one")
    return torch.stack([prepare_image(_open_photograph(source), image_size, fit) for source in sources])


def _open_photograph(source):
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        try:
            answer = requests.get(source, timeout=30)
            answer.raise_for_status()
        except (requests.RequestException, ValueError) as error:  # ValueError: for some impossible addresses
            raise DataError(f"{source}: cannot be downloaded ({type(error).__name__}: {error!s:.100})") from None
        file = io.BytesIO(answer.content)
        file.name = source  # for error messages
        return file
    return io.BytesIO(source) if isinstance(source, bytes) else source


def caption_pictures(model, images, idx_to_word, max_length=MAX_LENGTH, batch_size=64, **options):
    """Caption any number of pictures, greedily or with the options of `decode_pictures`. images (n, 3, H, W).

    A frozen encoder computes their features exactly as in training. Returns a list of n strings; for an attention
    model also the weights (n, max_length, h, w), unless n is 0. Raises ValueError.
    """
    if len(images) == 0:
        return []
    if options:
        found = decode_pictures(model, images, max_length, batch_size, **options)
        words, maps = [found.words[:, 0]], [None if found.weights is None else found.weights[:, 0]]
    else:
        words, maps = zip(*in_batches(model, images, batch_size, lambda part, _: sample(model, part, max_length)))
    captions = [text for part in words for text in decode_captions(part, idx_to_word, specials=False)]
    if maps[0] is None:
        return captions
    # a student's sample() may stop when all captions of its batch have ended
    return captions, torch.cat([F.pad(part, (0, 0, 0, 0, 0, max_length - part.shape[1])).cpu() for part in maps])


def sample(model, images, max_length):
    """Captions of a batch, and attention weights or None. A single picture is duplicated, for students' squeeze()."""
    alone = len(images) == 1 and missing_steps(model)
    sampled = model.sample(images.repeat_interleave(2, dim=0) if alone else images, max_length)
    captions, weights = sampled if isinstance(sampled, tuple) else (sampled, None)
    return (captions[:1], weights if weights is None else weights[:1]) if alone else (captions, weights)


def decode_pictures(model, images, max_length=MAX_LENGTH, batch_size=64, *, mirror=False, rerank=0.0, **options):
    """Decode several captions for each picture, with their probabilities. images (n, 3, H, W), n at least 1.

    mirror: average with the mirror image, see eecs598.decoding.Mirrored. rerank: if not 0, order the captions also by
    their scores from the captioner's reranker, times this weight, see eecs598.reranking. options: of
    eecs598.decoding.decode. Returns eecs598.decoding.Captions, on the CPU. Raises ValueError.
    """
    require_steps(model)
    if rerank and not hasattr(model, "reranker"):
        raise ValueError("this captioner has no reranker: leave out rerank, or train with --reranker")
    if rerank and max(options.get("beam_size", 1), options.get("num_captions") or 1) == 1:
        raise ValueError("rerank needs more than one caption of each picture: give a beam_size, such as 16")
    if len(images) == 0:
        raise ValueError("images is empty; pass at least one picture")
    decoded = decoding.Mirrored(model) if mirror else model
    length_penalty = options.get("length_penalty", 0.0)
    further = _further_features(model, images) if rerank else []

    def decode(part, rows):
        seen = [each[rows] for each in further]
        reorder = functools.partial(_rerank, model, part, seen, weight=rerank, length_penalty=length_penalty)
        return decoding.decode(decoded, part, max_length=max_length, reorder=reorder if rerank else None, **options)

    parts = zip(*in_batches(model, images, batch_size, decode, mirror))
    return decoding.Captions(*(None if part[0] is None else torch.cat(part).cpu() for part in parts))


def _further_features(model, images):
    """`describe_pictures` with each of the reranker's other encoders: a list of (n, 2, C)."""
    encode = functools.partial(features.encode_images, device=next(model.parameters()).device)
    return [features.describe_pictures(other, images, encode) for other in model.reranker.other_encoders]


def _rerank(model, images, further, captions, weight, length_penalty):
    """Captions in the order of the model's reranker.

    images: (N, 3, H, W) or features, or (N, 2, ...) views of them. further: their `_further_features`.
    """
    views = images if images.ndim == 5 else images.unsqueeze(1)
    grids = encoders.get_encoder(model)(views.flatten(0, 1))
    own = encoders.describe_grids(grids.float()).unflatten(0, views.shape[:2]).mean(1).cpu()
    scores = model.reranker.score(reranking.join([own, *further]), captions.words)
    lengths = (captions.words != model.null).sum(2)
    return reranking.reorder(captions, scores, lengths, weight, length_penalty)


def score_captioner(model, data, **options):
    """Caption the validation pictures and score the captions against all references: (captions, Evaluation).

    options: as for `caption_pictures`. See eecs598.metrics. Raises ValueError.
    """
    images = data["val_images"]
    captions = captions_alone(caption_pictures(model, images, data["vocab"]["idx_to_token"], **options))
    return captions, metrics.evaluate_captions(captions, references_of(data, range(len(images))))


def captions_alone(captioned):
    """The captions from `caption_pictures` or a captioner's `sample`, without attention weights."""
    return captioned[0] if isinstance(captioned, tuple) else captioned


def missing_steps(model):
    """Which of `begin` and `step` a captioner or its class lacks. Those for the published assignment lack both."""
    return [name for name in ("begin", "step") if not hasattr(model, name)]


def require_steps(model):
    """Raise StepsError for a captioner that supports only greedy decoding."""
    if missing := missing_steps(model):
        raise StepsError(f"{type(model).__name__} has no {' and no '.join(missing)} method, so only greedy decoding is "
                         "possible: leave out the options, or write `begin` and `step`")  # fmt: skip


@torch.no_grad()
def in_batches(model, images, batch_size, decode, mirror=False):
    """decode(part, rows) for parts of the images, in evaluation mode; with a frozen encoder, for their features.

    rows: a slice, which images the part has. mirror: the parts are (N, 2, ...): each picture and its mirror image.
    """
    device, encoder = next(model.parameters()).device, encoders.get_encoder(model)
    many = len(images) > batch_size  # or it is one of many calls, and the caller shows a bar
    with contextlib.ExitStack() as stack:
        stack.enter_context(decoding.evaluating(model))  # a student's sample() may not do that
        views = [images, images.flip(-1)] if mirror else [images]
        if encoders.is_frozen(encoder):
            views = [features.encode_images(encoder, view, device=device, progress=many) for view in views]
            stack.enter_context(features.fed_with_features(model))
        else:
            encoders.check_pictures(images)
        images, decoded = torch.stack(views, dim=1) if mirror else views[0], []
        with late_bar(len(images), "captions", shown=many) as bar:
            for first in range(0, len(images), batch_size):
                rows = slice(first, first + batch_size)
                decoded.append(decode(images[rows].to(device), rows))
                bar.update(len(images[rows]))
        return decoded
