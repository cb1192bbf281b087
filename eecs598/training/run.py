"""A complete training run of a captioner: device, image features, loss, scores and checkpoints around the solver."""

import contextlib
import functools

import torch
from tqdm import tqdm

from eecs598 import decoding, encoders, features, metrics
from eecs598.captioner import default_device, sample
from eecs598.coco.captions import MAX_LENGTH, decode_captions
from eecs598.progress import late_bar
from eecs598.training import checkpoints, processes, solver
from eecs598.training.objective import Objective
from eecs598.training.options import Options


def train_captioner(
    model, image_data, caption_data, num_epochs, batch_size, learning_rate, lr_decay=1, device=None, *,
    image_index=None, val_data=None, freeze_encoder=None, fast=False, checkpoint_dir=None, options=None,
    loss=None, val_references=None, after_epoch=None, features_folder=None, finetune_blocks=0, finetune=True,
):  # fmt: skip
    """Train a captioner. Each epoch visits all examples once, in a new random order. Returns the History.

    image_data (n, 3, H, W): pictures. caption_data (m, T + 1) int64, with image_index (m,), the index of each caption's
    picture, unless m = n and they correspond; or caption_data (n, K, T + 1), K captions of each picture in the same
    step. device: if None, CUDA if available. val_data: (pictures, captions), for the validation loss after each epoch.
    freeze_encoder: train only the decoder, on features computed once and cached in features_folder (if None,
    datasets/features); if None, True on a CPU. finetune_blocks: with a frozen encoder, all the same train its last
    blocks; the cached features are those from before them. finetune: False to leave these blocks as they are, for a
    later call that trains them on the same features. fast: compute the loss with `eecs598.fast` instead of the model's
    own forward. options: an eecs598.training.options.Options.

    loss: a module to use instead of the captioning loss, called as loss(images, caption_data of those images), such as
    an eecs598.training.selfcritical.SelfCritical; `fast` is then ignored. val_references: (all captions of each picture
    of val_data, idx_to_word), for the scores of greedy captions after each epoch. after_epoch(history, images): called
    after each epoch; images are the pictures or, with a frozen encoder, their features, which the model then takes.

    checkpoint_dir: a folder for the checkpoints of this run, written after each epoch and after every
    options.checkpoint_every iterations. The same call resumes from the last one, with the same result as an
    uninterrupted run. If all epochs are done it returns at once; a larger num_epochs continues the run, unless
    options.cosine is on. An interrupt (Ctrl-C, the stop button of a notebook) takes effect after the current iteration,
    writes a checkpoint and raises KeyboardInterrupt. Raises ValueError, also for a checkpoint_dir of another model,
    data or options, and eecs598.training.solver.TrainingError.
    """
    options = options or Options()
    if val_references and not val_data:
        raise ValueError("val_references are given without val_data: give both, or neither")
    sizes = {"num_epochs": num_epochs, "batch_size": batch_size, "learning_rate": learning_rate, "lr_decay": lr_decay}
    solver.check_arguments(image_data, caption_data, image_index, val_data, **sizes)  # before the features: hours
    for pictures in (image_data, val_data[0]) if val_data else (image_data,):
        encoders.check_pictures(pictures)
    device = torch.device(device or default_device())
    model.to(device)
    freeze = device.type == "cpu" if freeze_encoder is None else freeze_encoder
    encoder, tail, kept = encoders.get_encoder(model).requires_grad_(not freeze), None, None
    cached = encoder
    if finetune_blocks:
        cached, tail = _split(encoder, finetune_blocks, freeze)
        tail.requires_grad_(finetune)
    loss = Objective(model, options, fast) if loss is None else loss
    if checkpoint_dir is not None:
        known = checkpoints.identify_data(image_data, caption_data, image_index, val_data)
        known |= _describe_encoder(encoder) | (loss.describe() if hasattr(loss, "describe") else {})
        kept = checkpoints.Checkpoints(checkpoint_dir, known, options.checkpoint_every)
    with contextlib.ExitStack() as stack:
        if freeze:
            unfinished = kept is None or kept.epochs < num_epochs
            if processes.current().sum(float(unfinished), device):  # else all epochs are done, in all processes
                with processes.current().first_before_the_rest():
                    encode = functools.partial(features.cached_features, cached, folder=features_folder,
                                               device=device, progress=options.progress)  # fmt: skip
                    image_data, val_data = encode(image_data), val_data and (encode(val_data[0]), val_data[1])
            stack.enter_context(features.fed_with_features(model, tail))
            stack.callback(encoder.requires_grad_, False)  # for use, all of it is frozen
        score = val_references and _scorer(val_data[0], *val_references)
        return solver.train(
            model, image_data, caption_data, image_index=image_index, val_data=val_data, loss=loss, score=score,
            after_epoch=after_epoch, checkpoints=kept, options=options, **sizes,
        )  # fmt: skip


@torch.no_grad()
def describe_training_pictures(model, images, views, device, features_folder=None, finetuned=0):
    """`encoders.describe_grids` of pictures that a captioner was trained on, from its encoder, averaged over views.

    images (n, 3, H, W): all of them. views: slices of the images, m each: those to describe, and perhaps their mirror
    images. finetuned: how many of a frozen encoder's blocks were trained on the cached features of the others, which
    are used again. Returns (m, 2, C). Raises ValueError, see `eecs598.encoders.check_pictures`.
    """
    encoder = encoders.get_encoder(model)
    if not encoders.is_frozen(encoder):
        encode = functools.partial(features.encode_images, device=device)
        return torch.stack([features.describe_pictures(encoder, images[view], encode) for view in views]).mean(0)
    grids, tail = _read_features(encoder, images, device, features_folder, finetuned)
    described = [[] for _ in views]
    with late_bar(sum(len(grids[view]) for view in views), "features for the reranker") as bar:
        for parts, view in zip(described, views):
            for part in grids[view].split(64):
                parts.append(encoders.describe_grids(tail(part.to(device)).float()).cpu())
                bar.update(len(part))
    return torch.stack([torch.cat(parts) for parts in described]).mean(0)


@torch.no_grad()
def encode_again(model, images, device, features_folder=None, finetuned=0):
    """The features of pictures with which a captioner was trained on cached features: (n, C, h, w), as float16.

    images (n, 3, H, W): such as the validation pictures. finetuned: as for `describe_training_pictures`. Raises
    ValueError.
    """
    grids, tail = _read_features(encoders.get_encoder(model), images, device, features_folder, finetuned)
    return torch.cat([tail(part.to(device)).half().cpu() for part in grids.split(64)])


def _read_features(encoder, images, device, features_folder, finetuned):
    """The cached features of a frozen encoder's blocks that were not trained, and the others, which come after."""
    front, tail = _split(encoder, finetuned, True) if finetuned else (encoder, torch.nn.Identity())
    return features.cached_features(front, images, features_folder, device=device), tail


def _split(encoder, count, freeze):
    """The part of the encoder whose features are cached, and the last blocks. Raises ValueError."""
    if not freeze:
        raise ValueError(f"finetune_blocks is {count}, but the whole encoder is trained; give freeze_encoder=True or 0")
    if not hasattr(encoder, "split"):
        raise ValueError(f"finetune_blocks is {count}, but {type(encoder).__name__} has no blocks to be trained apart; "
                         "give 0, or an EfficientNet-Lite")  # fmt: skip
    return encoder.split(count)


def _scorer(images, references, idx_to_word):
    """A function that scores a model's greedy captions of validation images (or features) and prints the scores."""

    @torch.no_grad()
    def score(model):
        device, captions = next(model.parameters()).device, []
        with decoding.evaluating(model):
            for part in images.split(256):
                sampled, _ = sample(model, part.to(device), MAX_LENGTH)
                captions += decode_captions(sampled, idx_to_word, specials=False)
        scores = metrics.score_captions(captions, references)
        bleu = f"BLEU-1 {100 * scores['BLEU-1']:.1f}, BLEU-4 {100 * scores['BLEU-4']:.1f}"
        if processes.current().first:
            tqdm.write(f"val, greedy: {bleu}, CIDEr-D {scores['CIDEr-D']:.3f}")
        return scores

    return score


def _describe_encoder(encoder):
    """What identifies the encoder of a run. This includes its frozen weights, as no checkpoint has them.

    Features and calibrated statistics (buffers) are left out, as their last bits depend on the machine.
    """
    known = encoders.describe_encoder(encoder)
    if frozen := [parameter for parameter in encoder.parameters() if not parameter.requires_grad]:
        known["weights"] = checkpoints.hash_tensors(frozen)
    return {f"encoder.{name}": value for name, value in known.items()}
