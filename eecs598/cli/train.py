"""`train`: train a captioner of each cell type on a data file; also under torchrun."""

import argparse
import copy
from pathlib import Path

import torch

from eecs598 import captioner, commands, encoders, metrics, vis
from eecs598.captioner import CELL_TYPES
from eecs598.coco.captions import MAX_WORDS
from eecs598.training import examples, processes, selfcritical
from eecs598.training.objective import Objective, ObjectiveError
from eecs598.training.options import NAMES, PRECISIONS, Options
from eecs598.training.recipes import RECIPES
from eecs598.training.run import train_captioner
from eecs598.utils import reset_seed

SWITCH = {"action": argparse.BooleanOptionalAction, "default": False}


# ---------------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------------


def add_options(parser):
    parser.usage = "helpers.py train --data FILE --out DIR [option ...]"
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FILE", help="a data file: see python -m eecs598.coco build --help")
    add("--out", type=Path, required=True, metavar="DIR", help="where the checkpoints and the loss curves go")
    add("--cell", nargs="+", choices=CELL_TYPES, default=list(CELL_TYPES), help="which (all)")
    add("--recipe", choices=tuple(RECIPES), help="options that work well for a data set; options given explicitly "
        "override it")  # fmt: skip
    add("--captions", choices=("one", "all", "together"), default="one", help="captions of a picture to train on; "
        "together: all of them in the same step (one)")  # fmt: skip
    add("--epochs", type=commands.positive, default=10, help="how often each caption is seen (10)")
    add("--batch-size", type=commands.positive, default=128, help="captions in a step; together: pictures (128)")
    add("--learning-rate", type=commands.above_zero, default=1e-3, help="Adam's (0.001)")
    add("--checkpoint-dir", type=Path, metavar="DIR", help="keep each run in DIR/CELL, and resume from what is there")
    add("--device", type=commands.device, help="cpu, cuda, ... (cuda where it is)")
    for add_group in (_add_model, _add_regularization, _add_optimizer, _add_self_critical, _add_run):
        add_group(parser)


def _add_model(parser):
    add = parser.add_argument_group("model and pictures").add_argument
    add("--hidden", type=commands.positive, default=512, help="size of the hidden state (512)")
    add("--wordvec", type=commands.positive, default=256, help="size of a word vector (256)")
    add("--encoder", choices=("auto", *encoders.ENCODERS), default="auto", help="image encoder; lite2 is better and "
        "slower (auto: lite0)")  # fmt: skip
    add("--freeze-encoder", action=argparse.BooleanOptionalAction, help="train the decoder alone, on image features "
        "computed once (on a CPU yes, elsewhere no)")  # fmt: skip
    add("--mirror", **SWITCH, help="augmentation: each picture's mirror image too, so twice as many in an epoch")


def _add_regularization(parser):
    add = parser.add_argument_group("regularization (off by default)").add_argument
    add("--dropout", type=float, default=0.0, metavar="P", help="of features, word vectors and states")
    add("--label-smoothing", type=float, default=0.0, metavar="P", help="probability spread over all words")
    add("--tie-embeddings", **SWITCH, help="word vectors are the output's weights too; --wordvec as --hidden")
    add("--doubly-stochastic", type=float, default=0.0, metavar="W", help="attn: weight of the penalty that asks for "
        "attention to all of the picture")  # fmt: skip
    add("--attention-entropy", type=float, default=0.0, metavar="W", help="attn: weight of the attention's entropy, so "
        "that few cells are attended to at a time")  # fmt: skip
    add("--scheduled-sampling", type=float, default=0.0, metavar="P", help="probability that an input word is the "
        "model's own prediction")  # fmt: skip


def _add_optimizer(parser):
    add = parser.add_argument_group("optimizer (beyond Adam's learning rate)").add_argument
    add("--lr-decay", type=commands.above_zero, default=0.9, help="multiplies the learning rate after each epoch (0.9)")
    add("--warmup", type=commands.not_negative, default=0, metavar="N", help="steps in which the learning rate rises")
    add("--cosine", **SWITCH, help="the learning rate falls along a cosine; take --lr-decay 1 with it")
    add("--weight-decay", type=float, default=0.0, metavar="W", help="AdamW's")
    add("--clip-norm", type=float, default=0.0, metavar="G", help="gradient clipping: the gradient's norm at most")
    add("--averaging", type=float, default=0.0, metavar="D", help="end with an exponential moving average of the "
        "weights, as 0.99")  # fmt: skip


def _add_self_critical(parser):
    add = parser.add_argument_group("self-critical training, afterwards, on captions sampled from the model"
                                    ).add_argument  # fmt: skip
    add("--self-critical", type=commands.not_negative, default=0, metavar="EPOCHS", help="epochs over the pictures (0)")
    add("--self-critical-rate", type=commands.above_zero, default=3e-4, metavar="R", help="learning rate (0.0003)")
    add("--self-critical-batch", type=commands.positive, default=64, metavar="N", help="pictures in a step (64)")
    add("--self-critical-bleu", type=commands.zero_or_more, default=0.0, metavar="W", help="a caption's reward is its "
        "CIDEr-D plus W times its mean n-gram precision, n = 1 to 4, as in BLEU (0)")  # fmt: skip
    add("--samples", type=commands.at_least(2), default=5, metavar="K", help="captions sampled for each picture (5)")
    add("--sharpen", type=commands.above_zero, default=1.0, metavar="T", help="first divide the logits by the "
        "temperature T (1)")  # fmt: skip


def _add_run(parser):
    add = parser.add_argument_group("computation and output").add_argument
    add("--fast", action=argparse.BooleanOptionalAction, help="compute the loss with eecs598.fast, not by the "
        "captioner's own forward (where the captioner fits)")  # fmt: skip
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="auto: the faster one here (auto)")
    add("--accumulate", type=commands.positive, default=1, metavar="K", help="gradient accumulation: compute a step in "
        "K parts, to fit in memory (1)")  # fmt: skip
    add("--seed", type=commands.seed, default=0, help="of the weights and the order of examples (0)")
    add("--checkpoint-every", type=commands.positive, metavar="N", help="also after every N steps (each epoch's end)")
    add("--score", **SWITCH, help="score greedy captions of the val pictures after each epoch")
    add("--show", type=commands.not_negative, default=8, metavar="N", help="val pictures captioned at the end (8)")


# ---------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------


def run(options, captioner_class):
    """Train a captioner of each cell type; print their scores, and captions of val pictures next to people's."""
    with processes.joined(torch.device(options.device or captioner.default_device())) as device:
        everyone = processes.current()
        data = examples.open_data_file(options.data)
        commands.make_folder(options.out)
        for name in (*(f"{cell_type}.pt" for cell_type in options.cell), "losses.png"):
            commands.check_output(options.out / name, [options.data])
        with everyone.one_after_the_first():  # it may have to be downloaded
            encoder = encoders.encoder_for(data, name=options.encoder)
        data = examples.with_mirror_images(data) if options.mirror else data
        histories, captions, scores = {}, {}, {}
        for cell_type in options.cell:
            reset_seed(options.seed)
            model = captioner.make_captioner(
                captioner_class, data, cell_type, copy.deepcopy(encoder), options.hidden, options.wordvec
            )
            histories |= _train(model, cell_type, data, options, device)
            if everyone.first:
                path = options.out / f"{cell_type}.pt"
                captioner.save_captioner(model, path, data, options.hidden, options.wordvec)
                print(f"{path}: training loss {_last_loss(histories[cell_type]):.3f} over the last epoch")
                captions[cell_type], evaluation = captioner.score_captioner(model, data)
                scores[cell_type] = evaluation.scores
        if everyone.first:
            losses = {name: history.losses for name, history in histories.items()}
            vis.plot_losses(losses).savefig(options.out / "losses.png")
            print(f"\n{len(data['val_images']):,} val pictures, greedy, against all that people said of each")
            print(metrics.format_scores(scores))
            _print_examples(captions, data, options.show)


def _train(model, cell_type, data, options, device):
    """Train on people's captions, then if asked for on sampled ones. Returns the History of each phase by name."""
    fast, everyone = _choose_fast(model, options), processes.current()
    captions, image_index = _training_captions(data, options.captions)
    where = f"{everyone.count} processes, the first on {device}" if everyone.count > 1 else device
    count, cut = captions[..., 0].numel(), examples.count_cut(captions, data["vocab"])
    print(f"\n{cell_type}: {count:,} captions, {options.epochs} epochs on {where}")
    if cut:
        print(f"note: {cut:,} captions of more than {MAX_WORDS} words are cut there, and do not teach where to end")
    shared = _shared_arguments(data, options, device)
    histories = {cell_type: train_captioner(
        model, data["train_images"], captions, options.epochs, options.batch_size, options.learning_rate,
        options.lr_decay, image_index=image_index, fast=fast, checkpoint_dir=_checkpoint_dir(options, cell_type),
        **shared,
    )}  # fmt: skip
    if options.self_critical:
        kept = _checkpoint_dir(options, f"{cell_type}-self-critical")
        histories[f"{cell_type}, self-critical"] = _train_self_critically(model, data, options, kept, shared)
    return histories


def _last_loss(history):
    """The mean training loss of the last epoch."""
    losses = history.losses[-history.iterations_per_epoch :]
    return sum(losses) / len(losses)


def _choose_fast(model, options):
    """Whether eecs598.fast computes the loss: as asked for, by default where it can."""
    fast = options.fast
    if fast is None:
        try:
            fast = Objective(model).fast
        except ObjectiveError as error:
            print(f"note: trained by the captioner's own forward and backward ({error})")
            fast = False
    if options.self_critical:
        captioner.require_steps(model)  # before anything is trained
        if not fast:
            raise ValueError("--self-critical takes eecs598.fast, and a captioner that fits it")
    return fast


def _training_captions(data, which):
    """The captions to train on, and their rows of the pictures or None. which: one, all or together."""
    if which == "all":
        return examples.all_captions(data)
    return examples.captions_together(data) if which == "together" else data["train_captions"], None


def _shared_arguments(data, options, device):
    """What `train_captioner` is called with in both phases."""
    rows = range(len(data["val_images"]))
    return {
        "device": device, "freeze_encoder": options.freeze_encoder, "options": _read_options(options),
        "val_data": (data["val_images"], data["val_captions"]),
        "val_references": (captioner.people(data, rows), data["vocab"]["idx_to_token"]) if options.score else None,
    }  # fmt: skip


def _read_options(options):
    """The `Options` of a run, each from the command line's option of its name."""
    return Options(**{name: getattr(options, name) for name in NAMES if hasattr(options, name)}, plot=False)


def _checkpoint_dir(options, name):
    return options.checkpoint_dir and options.checkpoint_dir / name


def _train_self_critically(model, data, options, checkpoint_dir, shared):
    """Train a captioner, already trained on people's captions, on captions sampled from it. Returns the History."""
    count = len(data["train_images"])
    print(f"self-critical: {options.samples} captions of each of {count:,} pictures, {options.self_critical} epochs")
    references = [[text.split() for text in texts] for texts in captioner.people(data, range(count), "train")]
    if options.sharpen != 1:
        selfcritical.scale_logits(model, options.sharpen)
    loss = selfcritical.SelfCritical(
        Objective(model, shared["options"]), references, data["vocab"], options.samples,
        bleu=options.self_critical_bleu,
    )  # fmt: skip
    return train_captioner(
        model, data["train_images"], torch.arange(count), options.self_critical, options.self_critical_batch,
        options.self_critical_rate, loss=loss, checkpoint_dir=checkpoint_dir, **shared,
    )  # fmt: skip


def _print_examples(captions, data, count):
    """Each val picture's captions by the models, then by people."""
    for row, texts in enumerate(captioner.people(data, range(min(count, len(data["val_images"]))))):
        print(f"\nval picture {row}")
        for cell_type, captioned in captions.items():
            print(f"  {cell_type:>6}: {captioned[row]}")
        for text in texts[:2]:
            print(f"  person: {text}")
