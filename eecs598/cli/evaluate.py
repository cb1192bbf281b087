"""`evaluate`: caption the pictures of a folder and score the captions against all references."""

import json
import os
from pathlib import Path

import torch
from tqdm import tqdm

from eecs598 import captioner, commands, metrics
from eecs598.cli import decoder
from eecs598.coco import DataError
from eecs598.coco.builder import find_pictures
from eecs598.coco.pictures import prepare_in_order
from eecs598.files import write_text

BATCH_SIZE = 64  # pictures captioned at once


def add_options(parser):
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="written by train")
    add("--images", type=Path, required=True, metavar="DIR", help="folder of pictures of any size")
    add("--captions", type=Path, required=True, metavar="FILE", help="reference captions, in any format that "
        "python -m eecs598.coco build reads")  # fmt: skip
    add("--split", choices=("train", "val", "test"), help="the split to score; required if the "
        "captions file has splits")  # fmt: skip
    add("--split-lists", type=Path, nargs="+", metavar="PATH", help="split lists that belong to --captions, or "
        "their folder")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="also write the scores, and the caption and scores of each "
        "picture")  # fmt: skip
    add("--limit", type=commands.positive, metavar="N", help="only the first N pictures, sorted by id (all)")
    add("--show", type=commands.not_negative, default=3, metavar="N", help="print the N best and N worst captions (3)")
    add("--device", type=commands.device, help="cpu, cuda, ... (cuda if available)")
    decoder.add_options(parser.add_argument_group("decoding (greedy by default)"))


def run(options, captioner_class):
    """Print the scores and the best and worst captions; write them to a file if --json names one."""
    if options.json:
        commands.check_output(options.json, [options.checkpoint, options.captions, *(options.split_lists or ())])
    metrics.import_scorers()  # an error should come now, not after the captions
    model, idx_to_word, preparation = captioner.load_captioner(options.checkpoint, captioner_class)
    device = options.device or captioner.default_device()
    model.to(device)
    decoding = decoder.read(options, device)
    pictures = find_pictures(options.images, options.captions, options.split, options.split_lists)
    pictures = pictures[: options.limit]
    captions = _caption_files(model, idx_to_word, preparation, pictures, decoding)
    evaluation, note = _score(captions, [picture.captions for picture in pictures])
    if decoding.pop("generator", None):
        decoding["seed"] = options.seed
    settings = ", ".join(f"{name} {value}" for name, value in decoding.items()) or "greedy"
    if options.json:
        report = {"checkpoint": str(options.checkpoint), "images": str(options.images),
                  "captions": str(options.captions), "decoding": decoding, "scores": evaluation.scores,
                  "pictures": _report_pictures(pictures, captions, evaluation)}  # fmt: skip
        write_text(options.json, json.dumps(report, indent=1))
    count = sum(len(picture.captions) for picture in pictures)
    print(f"{len(pictures):,} pictures, {count:,} reference captions; decoding: {settings}")
    print(metrics.format_scores({options.checkpoint.stem: evaluation.scores}))
    print("CIDEr-D is what papers and COCO's own code call CIDEr.")
    if note:
        print(note)
    _print_best_and_worst(pictures, captions, evaluation, options.show)


def _score(captions, references):
    """The captions' Evaluation, and None or a line that says why METEOR is not in it."""
    evaluation = metrics.evaluate_captions(captions, references)
    try:
        return metrics.add_meteor(evaluation, captions, references), None
    except metrics.MeteorError as error:
        return evaluation, f"METEOR is left out: {error}"


def _caption_files(model, idx_to_word, preparation, pictures, decoding):
    """A caption for each eecs598.coco.forms.Picture, preprocessed like the pictures that the model was trained on."""
    captions, batch = [], []
    with tqdm(total=len(pictures), desc="captions", unit="picture", mininterval=0.5) as bar:
        for image in prepare_in_order(pictures, **preparation, workers=os.cpu_count() or 1):
            if isinstance(image, DataError):
                raise image
            batch.append(image)
            if len(batch) == BATCH_SIZE or len(captions) + len(batch) == len(pictures):
                captioned = captioner.caption_pictures(model, torch.stack(batch), idx_to_word, **decoding)
                captions += captioner.captions_alone(captioned)
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
                  f"        person: {' '.join(pictures[row].captions[0].split())}")  # fmt: skip


def _report_pictures(pictures, captions, evaluation):
    """The id, file, caption and scores of each picture, as plain values for JSON."""
    return [
        {"image_id": picture.id, "file_name": picture.file_name, "caption": caption,
         **{name: scores[i] for name, scores in evaluation.pictures.items()}}
        for i, (picture, caption) in enumerate(zip(pictures, captions))
    ]  # fmt: skip
