"""`caption`: caption photographs, by default with the most recently trained captioner."""

import math
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from eecs598 import captioner, commands, vis
from eecs598.cli import decoder
from eecs598.coco import DataError, decode_captions
from eecs598.files import shorten_name

MADE_HERE = {"Source": "helpers.py caption"}  # metadata in each PNG: only files that have it are overwritten


def add_options(parser):
    add, build = parser.add_argument, captioner.BUILD
    add("--checkpoint", type=Path, metavar="FILE", help=f"written by train (the most recent one in {build})")
    add("--out", type=Path, default=build / "captions", metavar="DIR", help="folder for attention maps, one PNG for "
        f"each photograph ({build / 'captions'})")  # fmt: skip
    add("--device", type=commands.device, help="cpu, cuda, ... (cuda if available)")
    add("photos", nargs="+", metavar="PHOTO", help="an image file of any size and format, or a web address")
    group = parser.add_argument_group("decoding (by default the three best captions of a beam of 3)")
    decoder.add_options(group)
    group.add_argument("--number", type=commands.positive, dest="num_captions", metavar="N",
                       help="captions for each photo (all in the beam, or 1 when sampling)")  # fmt: skip


def run(options, captioner_class):
    """Caption photographs and plot attention maps. Returns 1 if a photograph could not be read, else 0."""
    checkpoint = options.checkpoint or captioner.last_captioner()
    if not options.checkpoint:
        print(f"captioner: {checkpoint}")
    model, idx_to_word, preparation = captioner.load_captioner(checkpoint, captioner_class)
    device = options.device or captioner.default_device()
    model.to(device)
    decoding = decoder.read(options, device)
    if not decoding.keys() & {"beam_size", *decoder.SAMPLING} and not captioner.missing_steps(model):
        decoding["beam_size"] = 3
    if model.cell_type == "attn":
        commands.make_folder(options.out)
    status, used = 0, set()
    for photo in options.photos:
        try:
            images = captioner.read_photographs([photo], **preparation)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
            continue
        text, weights = _caption(model, photo, images, idx_to_word, decoding)
        if weights is not None:
            words, drawing = text.split() or ["(nothing)"], _choose_drawing(options.out, photo, used)
            figure = vis.show_attention(images[0], words, weights[: len(words)])
            figure.savefig(drawing, metadata=MADE_HERE)
            print(f"  attention maps: {drawing}")
    return status


def _caption(model, photo, images, idx_to_word, decoding):
    """Print the captions of a photograph. Returns the first one, and its attention weights or None."""
    if decoding:
        found = captioner.decode_pictures(model, images, **decoding)
        texts = decode_captions(found.words[0], idx_to_word, specials=False)
        print(f"{photo}:")
        for text, log_prob in zip(texts, found.log_probs[0].tolist()):
            if log_prob > -math.inf:  # there may be fewer captions than the beam has room for
                print(f"  {math.exp(log_prob):8.2g}  {text}")
        return texts[0], None if found.weights is None else found.weights[0, 0]
    captioned = captioner.caption_pictures(model, images, idx_to_word)
    text = captioner.captions_alone(captioned)[0]
    print(f"{photo}: {text}")
    return text, captioned[1][0] if isinstance(captioned, tuple) else None


def _choose_drawing(folder, photo, used):
    """A path for the plot of a photograph, named after it. It overwrites no foreign file, and is added to `used`."""
    path = unquote(urlsplit(photo).path) if photo.startswith(("http://", "https://")) else photo
    stem = shorten_name(re.sub(r"[^\w .-]", "_", Path(path).stem), 80).strip(" .") or "photo"  # safe on every system
    for count in range(1, 10**6):
        drawing = folder / (f"{stem}.png" if count == 1 else f"{stem}-{count}.png")
        if drawing.name.lower() not in used and _is_ours(drawing):
            used.add(drawing.name.lower())
            return drawing


def _is_ours(drawing):
    """Whether a path is free or holds a plot that this command made."""
    if not drawing.exists():
        return True
    try:
        with Image.open(drawing) as image:
            return image.info.get("Source") == MADE_HERE["Source"]
    except OSError:
        return False
