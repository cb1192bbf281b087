"""A captioner's training run: device, image features, loss, scores and checkpoints around the solver."""

import contextlib

import torch
from tqdm import tqdm

from eecs598 import decoding, encoders, features, metrics
from eecs598.captioner import captions_alone, decode_captions, default_device
from eecs598.training import checkpoints, processes, solver
from eecs598.training.objective import Objective
from eecs598.training.options import Options


def train_captioner(
    model, image_data, caption_data, num_epochs, batch_size, learning_rate, lr_decay=1, device=None, *,
    image_index=None, val_data=None, freeze_encoder=None, fast=False, checkpoint_dir=None, options=None,
    loss=None, val_references=None, features_folder=None,
):  # fmt: skip
    """Train a captioner; all examples are seen once an epoch, in a new order. Returns its History.

    image_data (n, 3, H, W) pictures; caption_data (m, T + 1) int64; image_index (m,): each caption's picture, where m
    is not n; or caption_data (n, K, T + 1), K captions of each picture, learned in one step. device: CUDA where there
    is a GPU, if None. val_data: (pictures, captions), for the validation loss after each epoch. freeze_encoder: train
    the decoder alone, on features that are computed once and kept in features_folder (if None, in datasets/features);
    if None, on a CPU yes and elsewhere no. fast: compute the loss with `eecs598.fast`, else by the model's own forward.
    options: an eecs598.training.options.Options.

    loss: a module that takes the place of the captioning loss, called as loss(images, caption_data of those images),
    such as an eecs598.training.selfcritical.SelfCritical; `fast` then says nothing. val_references: (all the captions
    of each of val_data's pictures, idx_to_word), for the scores of greedy captions after each epoch.

    checkpoint_dir: a folder for this run's checkpoints, written at the end of each epoch and, within it, after every
    options.checkpoint_every iterations. The same call again goes on from the last one, to the same result as a run
    that was never stopped; when all is done it returns at once, and with more num_epochs goes on. An interrupt (Ctrl-C,
    a notebook's stop button) then waits for the end of the iteration, writes a checkpoint and raises KeyboardInterrupt.
    Raises ValueError, for a checkpoint_dir of another model, other data or options too, and
    eecs598.training.solver.TrainingError.
    """
    options = options or Options()
    sizes = {"num_epochs": num_epochs, "batch_size": batch_size, "learning_rate": learning_rate, "lr_decay": lr_decay}
    solver.check_arguments(image_data, caption_data, image_index, **sizes)  # before hours of image features
    for pictures in (image_data, val_data[0]) if val_data else (image_data,):
        encoders.check_pictures(pictures)
    device = torch.device(device or default_device())
    model.to(device)
    freeze = device.type == "cpu" if freeze_encoder is None else freeze_encoder
    encoder, kept = encoders.get_encoder(model).requires_grad_(not freeze), None
    loss = Objective(model, options, fast) if loss is None else loss
    if checkpoint_dir is not None:
        known = checkpoints.describe_data(image_data, caption_data, image_index, val_data)
        known |= _describe_encoder(encoder) | (loss.describe() if hasattr(loss, "describe") else {})
        kept = checkpoints.Checkpoints(checkpoint_dir, known, options.checkpoint_every)
    with contextlib.ExitStack() as stack:
        if freeze:
            if kept is None or kept.epochs < num_epochs:  # else nothing is left to do
                with processes.current().one_after_the_first():
                    encode = _encoding(encoder, features_folder, device, options.progress)
                    image_data, val_data = encode(image_data), val_data and (encode(val_data[0]), val_data[1])
            stack.enter_context(features.fed_with_features(model))
        score = val_references and _scorer(val_data[0], *val_references)
        return solver.train(
            model, image_data, caption_data, image_index=image_index, val_data=val_data, loss=loss, score=score,
            checkpoints=kept, options=options, **sizes,
        )  # fmt: skip


def _encoding(encoder, folder, device, progress):
    """A function from pictures to their features, kept in `folder`."""
    return lambda pictures: features.cached_features(encoder, pictures, folder, device=device, progress=progress)


def _scorer(images, references, idx_to_word):
    """A function that scores a model's greedy captions of val images, or features, and prints the scores."""

    @torch.no_grad()
    def score(model):
        device, captions = next(model.parameters()).device, []
        with decoding.evaluating(model):
            for part in images.split(256):
                sampled = captions_alone(model.sample(part.to(device), 16))
                captions += decode_captions(sampled, idx_to_word, specials=False)
        scores = metrics.score_captions(captions, references)
        told = f"BLEU-1 {100 * scores['BLEU-1']:.1f}, BLEU-4 {100 * scores['BLEU-4']:.1f}"
        tqdm.write(f"val, greedy: {told}, CIDEr-D {scores['CIDEr-D']:.3f}")
        return scores

    return score


def _describe_encoder(encoder):
    """What tells a run's encoder from another: if it is frozen, its weights too, as no checkpoint holds them.

    Not the features, whose last bits vary with the machine, as do statistics (buffers) calibrated on pictures.
    """
    known = encoders.describe_encoder(encoder)
    if known["frozen"]:
        known["weights"] = checkpoints.hash_tensors(encoder.parameters())
    return {f"encoder.{name}": value for name, value in known.items()}
