"""`caption`: caption photographs, by default with the captioner that was trained last."""

import collections
import math
from pathlib import Path

from eecs598 import captioner, commands, vis
from eecs598.cli import decoder


def add_options(parser):
    add, build = parser.add_argument, captioner.BUILD
    add("--checkpoint", type=Path, metavar="FILE", help=f"written by train (the last one below {build})")
    add("--out", type=Path, default=build / "captions", metavar="DIR", help="where an attention model's maps are "
        f"drawn, a PNG for each photograph ({build / 'captions'})")  # fmt: skip
    add("--device", type=commands.device, help="cpu, cuda, ... (cuda where it is)")
    add("photos", nargs="+", metavar="PHOTO", help="a file of any size and kind, or a web address")
    group = parser.add_argument_group("decoding, instead of the three best captions of a beam of 3")
    decoder.add_options(group)
    group.add_argument("--number", type=commands.positive, dest="num_captions", metavar="N",
                       help="captions of each photo (the beam; 1)")  # fmt: skip


def run(options, captioner_class):
    """Caption photographs, and draw where an attention model looked."""
    checkpoint = options.checkpoint or captioner.last_captioner()
    if not options.checkpoint:
        print(f"captioner: {checkpoint}")
    model, idx_to_word, preparation = captioner.load_captioner(checkpoint, captioner_class)
    model.to(options.device or captioner.default_device())
    decoding = decoder.read(options)
    if decoding.keys() <= {"mirror"} and not captioner.missing_steps(model):
        decoding["beam_size"] = 3
    for photo, drawing in zip(options.photos, _drawing_names(options.photos)):
        images = captioner.read_photographs([photo], **preparation)
        text, weights = _caption(model, photo, images, idx_to_word, decoding)
        if weights is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            words = text.split() or ["(nothing)"]
            vis.show_attention(images[0], words, weights[: len(words)]).savefig(options.out / drawing)
            print(f"  where it looked: {options.out / drawing}")


def _caption(model, photo, images, idx_to_word, decoding):
    """Print a photograph's captions. Returns the first one and its attention weights or None."""
    if decoding:
        found = captioner.decode_pictures(model, images, **decoding)
        texts = captioner.decode_captions(found.words[0], idx_to_word, specials=False)
        print(f"{photo}:")
        for text, log_prob in zip(texts, found.log_probs[0].tolist()):
            if log_prob > -math.inf:  # the beam may be wider than there are captions
                print(f"  {math.exp(log_prob):8.2g}  {text}")
        return texts[0], None if found.weights is None else found.weights[0, 0]
    captioned = captioner.caption_pictures(model, images, idx_to_word)
    text = captioner.captions_alone(captioned)[0]
    print(f"{photo}: {text}")
    return text, captioned[1][0] if isinstance(captioned, tuple) else None


def _drawing_names(photos):
    """A PNG's name for each photograph, after its own; numbered where several have one."""
    seen, names = collections.Counter(), []
    for photo in photos:
        stem = Path(photo).stem
        seen[stem] += 1
        names.append(f"{stem}.png" if seen[stem] == 1 else f"{stem}-{seen[stem]}.png")
    return names
