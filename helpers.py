"""Functions that the notebook calls to load data, train, decode and display, and the commands.

    python helpers.py train --data FILE --out DIR [--cell rnn lstm attn]
    python helpers.py evaluate --checkpoint FILE --images DIR --captions FILE
    python helpers.py caption [--checkpoint FILE] PHOTO...

`load_coco_captions`, `train_captioner` and `decode_captions` have the signatures of the published assignment. The
implementation is in `eecs598`: `captioner`, `notebook`, `training` and, for the commands, `cli`.
"""

import hashlib
import sys
from pathlib import Path

from eecs598 import DATASETS, captioner, cli, coco, encoders, notebook, vis
from eecs598.captioner import (
    caption_pictures,
    decode_pictures,
    default_device,
    make_captioner,
    read_photographs,
    references_of,
    save_captioner,
    score_captioner,
)
from eecs598.coco import decode_captions
from eecs598.notebook import check, explain_todos, leave_out_missing, show_examples, show_source
from eecs598.scenes import make_scenes
from eecs598.training import checkpoints, run
from eecs598.training.examples import all_captions, captions_together, open_data_file, print_summary
from eecs598.training.objective import choose_fast
from eecs598.training.options import Options

__all__ = [
    "Options", "all_captions", "caption_pictures", "captions_together", "check", "choose_fast", "decode_captions",
    "decode_pictures", "default_device", "encoder_for", "explain_todos", "fingerprint", "leave_out_missing",
    "load_captioner", "load_coco_captions", "make_captioner", "open_data", "open_photographs", "read_photographs",
    "references_of", "save_captioner", "score_captioner", "show_examples", "show_source", "train_captioner",
]  # fmt: skip


def load_coco_captions(path=DATASETS / "coco.pt"):
    """Open a data file, check it and print a summary. Returns its dict, with the pictures memory-mapped."""
    return open_data_file(path)


def open_data(name="scenes", num_train=10_000, num_val=500):
    """Open a data set. name: "scenes" for the embedded scenes, which are drawn on first use, or a data file's path."""
    if name != "scenes":
        return load_coco_captions(name)
    path = DATASETS / f"scenes-{num_train}-{num_val}.pt"
    if path.exists():
        try:
            return load_coco_captions(path)
        except coco.DataError as error:  # perhaps cut short by the synchronization of a Drive
            print(f"note: the scenes are drawn again ({error})")
    drawn = make_scenes(num_train, num_val)
    try:
        coco.save_data(drawn, path)
    except coco.DataError as error:
        print(f"note: the scenes cannot be saved and are drawn again each time ({error})")
        return print_summary(drawn)
    return load_coco_captions(path)


def open_photographs(folder=None, num_train=10_000, num_val=500, minutes=5):
    """A data file of photographs from the first source that has one, opened as by `load_coco_captions`.

    folder: for downloads; None: datasets/coco_images. eecs598.coco.find_photographs prints each source that it tries.
    Raises PhotographsError, upon which a notebook skips the cell and the cells that need its data.
    """
    path = coco.find_photographs(folder, num_train, num_val, minutes)
    if path is None:
        raise notebook.PhotographsError("there are no photographs")
    return load_coco_captions(path)


def encoder_for(data, captioner_class=None):
    """The image encoder for a data file's dict, adapted to the captioner's class. Prints which one it is.

    See eecs598.encoders.encoder_for and, for the class in a student's file, eecs598.captioner.fit_encoder.
    """
    encoder = encoders.encoder_for(data)
    return encoder if captioner_class is None else captioner.fit_encoder(captioner_class, encoder, data["train_images"])


def train_captioner(
    model, image_data, caption_data, num_epochs, batch_size, learning_rate, lr_decay=1, device=None, *,
    image_index=None, val_data=None, freeze_encoder=None, fast=False, checkpoint_dir=None, options=None,
):  # fmt: skip
    """Train a captioner. Each epoch visits all examples once, in a new random order. Returns model, loss_history.

    image_data (n, 3, H, W): pictures. caption_data (m, T + 1) int64, or (n, K, T + 1) for K captions of each picture.
    image_index (m,): the index of each caption's picture, if m is not n. device: if None, CUDA if available. val_data:
    (pictures, captions), for the validation loss after each epoch. freeze_encoder: train only the decoder, on features
    computed once; if None, True on a CPU. fast: compute the same loss faster, with `eecs598.fast`, instead of the
    model's own forward and backward. checkpoint_dir: a folder for the checkpoints of this run, from which the same call
    resumes. options: an `Options`, for all options beyond the published recipe. loss_history: the loss of every
    iteration, which a notebook plots at the end. Raises ValueError and eecs598.training.solver.TrainingError; see
    eecs598.training.run.train_captioner.
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
    """Load a captioner saved by `save_captioner`. Returns model, idx_to_token, preprocessing. Raises DataError."""
    return captioner.load_captioner(path, _captioner_class())


def fingerprint(module, data):
    """8 hex digits of a hash of a module's source and the captions, so that changed code starts a new run."""
    digest = hashlib.sha256(Path(module.__file__).read_bytes())
    digest.update(checkpoints.hash_tensors([data["train_captions"]]).encode())
    return digest.hexdigest()[:8]


def main(arguments=None):
    """Run `train`, `evaluate` or `caption` with the CaptioningRNN of this folder. Returns the exit status."""
    return cli.main(arguments, _captioner_class)


def _captioner_class():
    """Import CaptioningRNN from the rnn_lstm_captioning.py on the path, ours or a student's."""
    try:
        from rnn_lstm_captioning import CaptioningRNN
    except RuntimeError:  # a student's `import torchvision`, whose operators may not match torch
        encoders.import_torchvision()
        from rnn_lstm_captioning import CaptioningRNN
    return CaptioningRNN


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "helpers":  # in a notebook: so that a later `import torchvision` in a student's file works
    encoders.import_torchvision()
