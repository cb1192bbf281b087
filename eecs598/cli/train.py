"""`train`: train a captioner of each cell type on a data file. Also runs under torchrun."""

import argparse
import copy
import functools
import math
from pathlib import Path

import torch
from tqdm import tqdm

from eecs598 import captioner, commands, encoders, features, metrics, reranking, vis
from eecs598.captioner import CELL_TYPES
from eecs598.coco.captions import END, MAX_WORDS, NULL, START
from eecs598.training import examples, processes, selfcritical, solver
from eecs598.training.objective import Objective, choose_fast
from eecs598.training.options import NAMES, PRECISIONS, Options
from eecs598.training.recipes import RECIPES
from eecs598.training.run import describe_training_pictures, encode_again, train_captioner
from eecs598.training.selfcritical import SelfCritical
from eecs598.utils import reset_seed

SWITCH = {"action": argparse.BooleanOptionalAction, "default": False}


# ---------------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------------


def add_options(parser):
    parser.usage = "helpers.py train --data FILE --out DIR [option ...]"
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FILE", help="a data file: see python -m eecs598.coco build --help")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for captioners and loss curves")
    add("--cell", nargs="+", choices=CELL_TYPES, default=list(CELL_TYPES), help="cell types to train (all)")
    add("--recipe", choices=tuple(RECIPES), help="options that work well for a data set; options given explicitly "
        "override it")  # fmt: skip
    add("--captions", choices=("one", "all", "together"), default="one", help="captions of each picture to train on; "
        "together: all of them in the same step (one)")  # fmt: skip
    add("--epochs", type=commands.positive, default=10, help="passes over the training captions (10)")
    add("--batch-size", type=commands.positive, default=128, help="captions in a batch; with --captions together, "
        "pictures (128)")  # fmt: skip
    add("--learning-rate", type=commands.above_zero, default=1e-3, help="for Adam (0.001)")
    add("--checkpoint-dir", type=Path, metavar="DIR", help="save checkpoints of each run in DIR/CELL (and of "
        "self-critical training in DIR/CELL-self-critical), and resume from there")  # fmt: skip
    add("--device", type=commands.device, help="cpu, cuda, ... (cuda if available)")
    for add_group in (_add_model, _add_regularization, _add_optimizer, _add_self_critical, _add_run):
        add_group(parser)


def _add_model(parser):
    add = parser.add_argument_group("model and pictures").add_argument
    add("--hidden", type=commands.positive, default=512, help="size of the hidden state (512)")
    add("--wordvec", type=commands.positive, default=256, help="size of a word vector (256)")
    add("--output-heads", type=commands.not_negative, default=0, metavar="N", help="attn: predict each word from the "
        "state, the previous word and a second look at the picture with N heads (0: from the state)")  # fmt: skip
    add("--encoder", choices=("auto", *encoders.ENCODERS), default="auto", help="image encoder; lite2 is better and "
        "slower (auto: lite0)")  # fmt: skip
    add("--freeze-encoder", action=argparse.BooleanOptionalAction, help="train only the decoder, on image features "
        "computed once (default on a CPU)")  # fmt: skip
    add("--mirror", **SWITCH, help="augmentation: also train on the mirror image of each picture, which doubles an "
        "epoch")  # fmt: skip


def _add_regularization(parser):
    add = parser.add_argument_group("regularization (off by default)").add_argument
    add("--dropout", type=commands.fraction, default=0.0, metavar="P", help="dropout on features, word vectors and "
        "states")  # fmt: skip
    add("--label-smoothing", type=commands.fraction, default=0.0, metavar="P", help="probability mass spread over all "
        "words")  # fmt: skip
    add("--tie-embeddings", **SWITCH, help="share the word vectors with the output weights; needs --wordvec equal to "
        "--hidden")  # fmt: skip
    add("--doubly-stochastic", type=commands.zero_or_more, default=0.0, metavar="W", help="attn: weight of the "
        "penalty for attention that leaves parts of the picture out")  # fmt: skip
    add("--attention-entropy", type=commands.zero_or_more, default=0.0, metavar="W", help="attn: weight of the "
        "entropy penalty, for attention to few cells at a time")  # fmt: skip
    add("--scheduled-sampling", type=commands.fraction, default=0.0, metavar="P", help="probability that an "
        "input word is sampled from the model")  # fmt: skip


def _add_optimizer(parser):
    add = parser.add_argument_group("optimizer").add_argument
    add("--lr-decay", type=commands.above_zero, default=0.9, help="multiply the learning rate by this "
        "after each epoch (0.9)")  # fmt: skip
    add("--warmup", type=commands.not_negative, default=0, metavar="N", help="linear warmup over N steps (0)")
    add("--cosine", **SWITCH, help="cosine learning rate schedule; best with --lr-decay 1")
    add("--weight-decay", type=commands.zero_or_more, default=0.0, metavar="W", help="decoupled weight decay (AdamW)")
    add("--clip-norm", type=commands.zero_or_more, default=0.0, metavar="G", help="clip the gradient to norm G")
    add("--encoder-rate", type=commands.above_zero, default=1.0, metavar="F", help="learning rate of the image "
        "encoder, where it is trained, as a multiple of the decoder's (1)")  # fmt: skip
    add("--averaging", type=commands.fraction, default=0.0, metavar="D", help="use an exponential moving average "
        "of the weights with decay D, such as 0.99")  # fmt: skip


def _add_self_critical(parser):
    add = parser.add_argument_group("self-critical training (afterwards, on captions sampled from the model)"
                                    ).add_argument  # fmt: skip
    add("--self-critical", type=commands.not_negative, default=0, metavar="EPOCHS", help="epochs over the pictures (0)")
    add("--self-critical-rate", type=commands.above_zero, default=3e-4, metavar="R", help="learning rate (0.0003)")
    add("--self-critical-batch", type=commands.positive, default=64, metavar="N", help="pictures in a batch (64)")
    add("--self-critical-bleu", type=commands.zero_or_more, default=0.0, metavar="W", help="reward: CIDEr-D plus W "
        "times the mean n-gram precision, n = 1 to 4, as in BLEU (0)")  # fmt: skip
    add("--samples", type=commands.at_least(2), default=5, metavar="K", help="captions sampled for each picture (5)")
    add("--kept-samples", type=commands.positive, metavar="M", help="of these, train on the M distinct ones "
        "whose advantages are largest in absolute value (all)")  # fmt: skip
    add("--finetune-blocks", type=commands.not_negative, default=0, metavar="N", help="with a frozen encoder, also "
        "train its last N blocks (0)")  # fmt: skip
    add("--sharpen", type=commands.above_zero, default=1.0, metavar="T", help="divide the logits by the temperature T "
        "first (1)")  # fmt: skip


def _add_run(parser):
    add = parser.add_argument_group("computation and output").add_argument
    add("--fast", action=argparse.BooleanOptionalAction, help="compute the loss with eecs598.fast instead of "
        "the captioner's own forward (default where the captioner is supported)")  # fmt: skip
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="auto: the faster one on this device (auto)")
    add("--accumulate", type=commands.positive, default=1, metavar="K", help="gradient accumulation over K parts of a "
        "batch, to save memory (1)")  # fmt: skip
    add("--seed", type=commands.seed, default=0, help="random seed for weights and the order of examples (0)")
    add("--checkpoint-every", type=commands.positive, metavar="N", help="write checkpoints after every N steps, too "
        "(only after each epoch)")  # fmt: skip
    add("--reranker", **SWITCH, help="afterwards, fit a regression from pictures to the n-grams of their captions, for "
        "evaluate --rerank")  # fmt: skip
    add("--reranker-encoders", nargs="+", choices=tuple(encoders.ENCODERS), default=[], metavar="NAME", help="also fit "
        f"it to the features of these image encoders: {', '.join(encoders.ENCODERS)} (only the captioner's own)")
    add("--score", **SWITCH, help="score greedy captions of the validation pictures after each epoch")
    add("--show", type=commands.not_negative, default=8, metavar="N", help="validation pictures to caption at the end "
        "(8)")  # fmt: skip


# Options that do nothing without another one.
NEEDED = {
    "checkpoint_every": "checkpoint_dir", "reranker_encoders": "reranker", "self_critical_rate": "self_critical",
    "self_critical_batch": "self_critical", "self_critical_bleu": "self_critical", "samples": "self_critical",
    "kept_samples": "self_critical", "finetune_blocks": "self_critical", "sharpen": "self_critical",
}  # fmt: skip


# The options of self-critical training, by the arguments of `train_captioner` that they set.
SELF_CRITICAL = {
    "num_epochs": "--self-critical", "batch_size": "--self-critical-batch", "learning_rate": "--self-critical-rate",
}  # fmt: skip


def check_options(options):
    """End the program with one line if options contradict each other, or if one would do nothing."""
    parser, from_recipe = options.parser, RECIPES.get(options.recipe, {})
    if options.self_critical and options.tie_embeddings and options.sharpen != 1:
        parser.error("--sharpen scales the output weights, which --tie-embeddings shares with the word vectors")
    if options.kept_samples is not None and options.kept_samples > options.samples:
        parser.error(f"--kept-samples {options.kept_samples} is more than --samples {options.samples}: give "
                     f"--kept-samples {options.samples}, or more samples")  # fmt: skip
    if options.tie_embeddings and options.wordvec != options.hidden:
        parser.error(f"--tie-embeddings needs --wordvec equal to --hidden; they are {options.wordvec} and "
                     f"{options.hidden}")  # fmt: skip
    if options.output_heads and set(options.cell) != {"attn"}:
        parser.error("--output-heads look at a grid, which only attn has: add --cell attn, or --output-heads 0")
    if options.output_heads and options.hidden % options.output_heads:
        parser.error(f"--output-heads {options.output_heads} does not divide --hidden {options.hidden}")
    for name, needed in NEEDED.items():
        given = getattr(options, name) != parser.get_default(name)
        if given and not getattr(options, needed) and needed not in from_recipe:  # a recipe's may be turned off
            one, other = (f"--{each.replace('_', '-')}" for each in (name, needed))
            parser.error(f"{one} does nothing without {other}: add {other}, or leave out {one}")


# ---------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------


def run(options, captioner_class):
    """Train a captioner of each cell type; print scores, and example captions with the references."""
    _read_options(options)  # an error should come now, not after hours
    metrics.import_scorers()
    with processes.joined(torch.device(options.device or captioner.default_device())) as device:
        everyone = processes.current()
        data = examples.open_data_file(options.data)
        commands.make_folder(options.out)
        plots = ("losses.png", "rewards.png") if options.self_critical else ("losses.png",)
        for name in (*(f"{cell_type}.pt" for cell_type in options.cell), *plots):
            commands.check_output(options.out / name, [options.data])
        with everyone.first_before_the_rest():  # weights may have to be downloaded
            encoder = encoders.encoder_for(data, name=options.encoder)
            encoder = captioner.fit_encoder(captioner_class, encoder, data["train_images"])
            size = encoders.describe_encoder(encoder)["image_size"]
            others = reranking.load_encoders(options.reranker_encoders, size) if options.reranker else []
        if options.reranker:
            reranking.check_vocabulary(len(data["vocab"]["idx_to_token"]))
        data = examples.with_mirror_images(data) if options.mirror else data
        histories, captions, scores = {}, {}, {}
        for cell_type in options.cell:
            reset_seed(options.seed)
            model = captioner.make_captioner(
                captioner_class, data, cell_type, copy.deepcopy(encoder), options.hidden, options.wordvec,
                options.output_heads,
            )  # fmt: skip
            histories |= _train(model, cell_type, data, options, device)
            if everyone.first:
                path = options.out / f"{cell_type}.pt"
                captioner.save_captioner(model, path, data, options.hidden, options.wordvec)
                if options.reranker:
                    model.reranker = _fit_reranker(model, others, data, options, device)
                    captioner.save_captioner(model, path, data, options.hidden, options.wordvec)
                print(f"{path}: training loss {histories[cell_type].last_loss:.3f} over the last epoch")
                captions[cell_type], evaluation = _score(model, data, options, device)
                scores[cell_type] = evaluation.scores
        if everyone.first:
            _plot(histories, options.out)
            print(f"\n{len(data['val_images']):,} validation pictures, greedy captions against all references")
            print(metrics.format_scores(scores))
            _print_examples(captions, data, options.show)


def _train(model, cell_type, data, options, device):
    """Cross-entropy training and then, if asked for, self-critical training. Returns the History of each by name."""
    if options.reranker:
        captioner.require_steps(model)  # before anything is trained: without them nothing can be reranked
    fast, everyone = _choose_fast(model, options), processes.current()
    captions, image_index = _training_captions(data, options.captions)
    where = f"{everyone.count} processes, the first on {device}" if everyone.count > 1 else device
    count, cut = captions[..., 0].numel(), examples.count_cut(captions, data["vocab"])
    print(f"\n{cell_type}: {count:,} captions, {options.epochs} epochs on {where}")
    if cut:
        print(f"note: {cut:,} captions are cut to {MAX_WORDS} words, without <END>")
    shared = _shared_arguments(data, options, device)
    self_critical = _make_self_critical(model, data, options) if options.self_critical else None
    histories = {cell_type: train_captioner(
        model, data["train_images"], captions, options.epochs, options.batch_size, options.learning_rate,
        options.lr_decay, image_index=image_index, fast=fast, checkpoint_dir=_checkpoint_dir(options, cell_type),
        after_epoch=self_critical and functools.partial(_print_time_left, self_critical, options), finetune=False,
        **shared,
    )}  # fmt: skip
    if self_critical:
        shared["checkpoint_dir"] = _checkpoint_dir(options, f"{cell_type}-self-critical")
        histories[f"{cell_type}, self-critical"] = _train_self_critically(model, self_critical, data, options, shared)
    return histories


def _print_time_left(self_critical, options, history, images):
    """After an epoch of cross-entropy, print about how long it and self-critical training will still take."""
    epochs, everyone = len(history.losses) // history.iterations_per_epoch, processes.current()
    part = math.ceil(options.self_critical_batch / everyone.count / options.accumulate)  # no more would fit in memory
    step = options.accumulate * self_critical.time_step(images, part, options.precision)
    if everyone.first:
        before = (options.epochs - epochs) * history.seconds / epochs
        after = options.self_critical * math.ceil(len(images) / options.self_critical_batch) * step
        tqdm.write(f"epoch {epochs}/{options.epochs} is done; about {max(1, round((before + after) / 60))} min left: "
                   f"{before / 60:.0f} of cross-entropy, {after / 60:.0f} of self-critical training")  # fmt: skip


def _choose_fast(model, options):
    """Whether eecs598.fast computes the loss: as the option says, or by default where it can."""
    fast = options.fast
    if fast is None:
        fast, _ = choose_fast(model, Options())
    if options.self_critical:
        captioner.require_steps(model)  # before anything is trained
        if not fast:
            given = ", but --no-fast is given" if options.fast is False else " and a captioner that it supports"
            raise ValueError(f"--self-critical needs eecs598.fast{given}")
    return fast


def _training_captions(data, which):
    """The captions to train on, and the index of each one's picture, or None. which: one, all or together."""
    if which == "all":
        return examples.all_captions(data)
    return examples.captions_together(data) if which == "together" else data["train_captions"], None


def _shared_arguments(data, options, device):
    """The arguments of `train_captioner` that both phases share."""
    references = captioner.references_of(data, range(len(data["val_images"])))
    return {
        "device": device, "freeze_encoder": options.freeze_encoder, "options": _read_options(options),
        "finetune_blocks": _count_finetuned(options),
        "val_data": (data["val_images"], data["val_captions"]),
        "val_references": (references, data["vocab"]["idx_to_token"]) if options.score else None,
    }  # fmt: skip


def _read_options(options):
    """The `Options` of a run, from the command line options of the same names."""
    return Options(**{name: getattr(options, name) for name in NAMES if hasattr(options, name)}, plot=False)


def _count_finetuned(options):
    """How many blocks of a frozen encoder are trained all the same."""
    return options.finetune_blocks if options.self_critical else 0


def _checkpoint_dir(options, name):
    return options.checkpoint_dir and options.checkpoint_dir / name


def _make_self_critical(model, data, options):
    """The loss of self-critical training, with the training captions as references."""
    pictures = range(len(data["train_images"]))
    references = [[text.split() for text in texts] for texts in captioner.references_of(data, pictures, "train")]
    objective = Objective(model, _read_options(options))
    return SelfCritical(objective, references, data["vocab"], options.samples, bleu=options.self_critical_bleu,
                        kept=options.kept_samples)  # fmt: skip


def _train_self_critically(model, loss, data, options, shared):
    """Continue with self-critical training of a captioner trained with cross-entropy. Returns the History."""
    count = len(data["train_images"])
    kept = f" ({options.kept_samples} kept)" if options.kept_samples else ""
    print(f"self-critical: {count:,} pictures, {options.samples} samples each{kept}, {options.self_critical} epochs")
    if options.sharpen != 1:
        selfcritical.scale_logits(model, options.sharpen)
    try:
        return train_captioner(
            model, data["train_images"], torch.arange(count), options.self_critical, options.self_critical_batch,
            options.self_critical_rate, loss=loss, **shared,
        )  # fmt: skip
    except (ValueError, solver.TrainingError) as error:
        raise ValueError(commands.in_options(str(error), SELF_CRITICAL)) from error


# ---------------------------------------------------------------------------------------------------------
# Reranking
# ---------------------------------------------------------------------------------------------------------


def _fit_reranker(model, others, data, options, device):
    """The Reranker of a trained captioner, from its own encoder's features and from those of others.

    others: the loaded options.reranker_encoders. Its own features are averaged with those of mirror images.
    """
    images = data["train_images"]
    count = len(images) // 2 if options.mirror else len(images)
    used = min(count, reranking.MAX_PICTURES)
    views = [slice(first, first + used) for first in range(0, len(images), count)]
    own = describe_training_pictures(model, images, views, device, finetuned=_count_finetuned(options))
    encode = functools.partial(features.cached_features, device=device)
    described = reranking.join([own, *(features.describe_pictures(other, images[:used], encode) for other in others)])
    special = [data["vocab"]["token_to_idx"][token] for token in (NULL, START, END)]
    image_size = encoders.describe_encoder(encoders.get_encoder(model))["image_size"]
    return reranking.Reranker(described, examples.captions_together(data)[:used], special, options.reranker_encoders,
                              image_size)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# What is shown at the end
# ---------------------------------------------------------------------------------------------------------


def _score(model, data, options, device):
    """Greedy captions of the validation pictures, and their Evaluation. Cached features are not computed again."""
    if not encoders.is_frozen(encoders.get_encoder(model)):
        return captioner.score_captioner(model, data)
    seen = encode_again(model, data["val_images"], device, finetuned=_count_finetuned(options))
    with features.fed_with_features(model):
        return captioner.score_captioner(model, {**data, "val_images": seen})


def _plot(histories, folder):
    """Plot the losses of cross-entropy and the rewards of self-critical training, each in a file."""
    losses = {name: history.losses for name, history in histories.items() if not history.rewards}
    vis.plot_losses(losses).savefig(folder / "losses.png")
    if rewards := {name: history.rewards for name, history in histories.items() if history.rewards}:
        vis.plot_losses(rewards, label="reward").savefig(folder / "rewards.png")


def _print_examples(captions, data, count):
    """The models' captions of some validation pictures, and two references of each."""
    for row, texts in enumerate(captioner.references_of(data, range(min(count, len(data["val_images"]))))):
        print(f"\nval picture {row}")
        for cell_type, captioned in captions.items():
            print(f"  {cell_type:>6}: {captioned[row]}")
        for text in texts[:2]:
            print(f"  person: {text}")
