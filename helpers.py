"""What the notebook calls to load, train, decode and show; and the same as commands.

    python helpers.py train --data FILE --out DIR [--cell rnn lstm attn]
    python helpers.py evaluate --checkpoint FILE --images DIR --captions JSON
    python helpers.py caption [--checkpoint FILE] PHOTO...

`load_coco_captions`, `train_captioner` and `decode_captions` are the published assignment's. The work is done in
`eecs598`: `captioner`, `notebook`, `training` and, for the commands, `cli`.
"""

import hashlib
import sys
from pathlib import Path

from eecs598 import captioner, cli, coco, encoders, notebook, vis
from eecs598.captioner import (
    caption_pictures,
    decode_captions,
    decode_pictures,
    default_device,
    make_captioner,
    people,
    read_photographs,
    save_captioner,
    score_captioner,
)
from eecs598.notebook import check, explain_todos, leave_out_missing, show_examples, show_source
from eecs598.scenes import make_scenes
from eecs598.training import checkpoints, run
from eecs598.training.examples import all_captions, captions_together, open_data_file, print_summary
from eecs598.training.objective import choose_fast
from eecs598.training.options import Options

__all__ = [
    "Options", "all_captions", "caption_pictures", "captions_together", "check", "choose_fast", "decode_captions",
    "decode_pictures", "default_device", "encoder_for", "explain_todos", "fingerprint", "leave_out_missing",
    "load_captioner", "load_coco_captions", "make_captioner", "open_data", "open_photographs", "people",
    "read_photographs", "save_captioner", "score_captioner", "show_examples", "show_source", "train_captioner",
]  # fmt: skip

DATASETS = Path(__file__).resolve().parent / "datasets"


def load_coco_captions(path=DATASETS / "coco.pt"):
    """Open a data file, check it and print what is in it. Returns its dict; the pictures stay on disk until used."""
    return open_data_file(path)


def open_data(name="scenes", num_train=10_000, num_val=500):
    """The data by one switch: "scenes", drawn here once; or the path of a data file."""
    if name != "scenes":
        return load_coco_captions(name)
    path = DATASETS / f"scenes-{num_train}-{num_val}.pt"
    if not path.exists():
        drawn = make_scenes(num_train, num_val)
        try:
            coco.save_data(drawn, path)
        except coco.DataError as error:
            print(f"note: the scenes are not kept, and drawn anew each time ({error})")
            return print_summary(drawn)
    return load_coco_captions(path)


def open_photographs(folder=None, num_train=10_000, num_val=500, minutes=5):
    """A data file of photographs, from whatever source has one, opened as by `load_coco_captions`.

    folder: keeps what is fetched; None: datasets/coco_images. See eecs598.coco.find_photographs, which says in a line
    each what it tries. Raises PhotographsError, which leaves a notebook's cell out, and those that need its data.
    """
    path = coco.find_photographs(folder, num_train, num_val, minutes)
    if path is None:
        raise notebook.PhotographsError("there are no photographs")
    return load_coco_captions(path)


def encoder_for(data, captioner_class=None):
    """The image encoder that suits a data file's dict, in a form that the captioner's class takes; it is printed.

    See eecs598.encoders.encoder_for and, for a class of a student's file, eecs598.captioner.fit_encoder.
    """
    encoder = encoders.encoder_for(data)
    return encoder if captioner_class is None else captioner.fit_encoder(captioner_class, encoder, data["train_images"])


def train_captioner(
    model, image_data, caption_data, num_epochs, batch_size, learning_rate, lr_decay=1, device=None, *,
    image_index=None, val_data=None, freeze_encoder=None, fast=False, checkpoint_dir=None, options=None,
):  # fmt: skip
    """Train a captioner; all examples are seen once an epoch, in a new order. Returns model, loss_history.

    image_data (n, 3, H, W) pictures; caption_data (m, T + 1) int64; image_index (m,): each caption's picture, where m
    is not n. device: CUDA where there is a GPU, if None. val_data: (pictures, captions), for the validation loss after
    each epoch. freeze_encoder: train the decoder alone, on features that are computed once; if None, on a CPU yes and
    elsewhere no. fast: compute the same loss faster, with `eecs598.fast`; False: by the model's own forward and
    backward. checkpoint_dir: a folder for this run's checkpoints, from which the same call goes on. options: an
    `Options`, with a field for each option beyond the published recipe.
    loss_history: the loss of every iteration. In a notebook it is drawn at the end.
    Raises ValueError and eecs598.training.solver.TrainingError; see eecs598.training.run.train_captioner.
    """
    options = options or Options()
    history = run.train_captioner(
        model, image_data, caption_data, num_epochs, batch_size, learning_rate, lr_decay, device,
        image_index=image_index, val_data=val_data, freeze_encoder=freeze_encoder, fast=fast,
        checkpoint_dir=checkpoint_dir, options=options,
    )  # fmt: skip
    if options.plot:
        notebook.show(vis.plot_losses(history.losses, history.val_losses or None))
    return model, history.losses


def load_captioner(path):
    """Read what `save_captioner` wrote. Returns model, idx_to_token, preprocessing. Raises DataError."""
    return captioner.load_captioner(path, _captioner_class())


def fingerprint(module, data):
    """8 digits that change with a module's source and with the captions: a run of old code is not gone on with."""
    digest = hashlib.sha256(Path(module.__file__).read_bytes())
    digest.update(checkpoints.hash_tensors([data["train_captions"]]).encode())
    return digest.hexdigest()[:8]


def main(arguments=None):
    """Run a command, train, evaluate or caption, for this folder's captioner; returns the exit status."""
    return cli.main(arguments, _captioner_class())


def _captioner_class():
    """CaptioningRNN of the rnn_lstm_captioning.py that is found, ours or a student's."""
    try:
        from rnn_lstm_captioning import CaptioningRNN
    except RuntimeError:  # from its own `import torchvision`, whose operators may not fit torch
        encoders.import_torchvision()
        from rnn_lstm_captioning import CaptioningRNN
    return CaptioningRNN


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "helpers":  # in a notebook: now, so that a student's own `import torchvision` works after it
    encoders.import_torchvision()
