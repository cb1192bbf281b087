"""The commands `python -m eecs598.coco download | subset | build | check | show`."""

import argparse
import sys
from pathlib import Path

from eecs598.coco.builder import CACHE, COURSE_COUNTS, IMAGE_URLS, build_data
from eecs598.coco.captions import MIN_COUNT
from eecs598.coco.course_file import COURSE_FILE, download_course_file
from eecs598.coco.download import COCO_HOSTS, COCO_IMAGE_URL, COURSE_FILE_URLS
from eecs598.coco.inspection import check, show
from eecs598.coco.pictures import FITS
from eecs598.coco.subset import build_subset
from eecs598.commands import Parser, above_zero, check_output, command, positive, seed

DESCRIPTION = """Download, build, check and show data files: pictures, a caption for each, a vocabulary.

  download   download the course's own file: COCO 2014, 10,000 + 500 pictures (378 MB)
  subset     download as many pictures of COCO 2014 as a time limit allows
  build      make a file of any size, from COCO (downloaded, or from folders) or your own pictures
  check      verify a file and describe its contents
  show       save a sheet of pictures with their captions"""

EPILOG = """examples:
  python -m eecs598.coco download
  python -m eecs598.coco check datasets/coco.pt
  python -m eecs598.coco show datasets/coco.pt --out sheet.png
  python -m eecs598.coco build --num-train 1000 --num-val 100 --out datasets/coco1k.pt

Each command has its own --help, with more examples. After an interruption, run the same command again
to resume. Without a network, python -m eecs598.scenes FILE draws 10,000 captioned pictures in
a few seconds."""

DOWNLOAD_EXAMPLES = """examples:
  python -m eecs598.coco download
  from another address, if the course's server is down:
    python -m eecs598.coco download --url https://example.org/coco.pt

The partial download is FILE.part, which is renamed once its length, CRCs and content are verified.
A valid file that exists is not downloaded again."""

SUBSET_EXAMPLES = """examples:
  10,000 + 500 pictures of COCO 2014, or as many as can be downloaded in 5 minutes:
    python -m eecs598.coco subset --out datasets/photographs.pt
  fewer, with the downloads in another folder:
    python -m eecs598.coco subset --out datasets/photographs.pt --train 2000 --val 200 --folder /mnt/coco

First the captions (241 MB) are downloaded, once. After 100 pictures, the remaining time is printed. Run the
same command again to continue: nothing is downloaded twice, and the order of the pictures is fixed."""

BUILD_EXAMPLES = """examples:
  10,000 + 500 pictures of COCO 2014, as in the course's own file, downloaded one by one (1.7 GB) with
  their captions (241 MB) to datasets/coco_images:
    python -m eecs598.coco build --out datasets/coco10k.pt
  fewer, from COCO 2017, at the size for a frozen encoder:
    python -m eecs598.coco build --num-train 1000 --num-val 100 --year 2017 --image-size 224 \\
      --out datasets/coco1k.pt
  from the folders of the official archives, without downloads:
    python -m eecs598.coco build --images train2014 --val-images val2014 \\
      --train-captions annotations/captions_train2014.json \\
      --val-captions annotations/captions_val2014.json \\
      --num-train 10000 --num-val 500 --out datasets/coco10k.pt
  Flickr8k in its own format; its split lists are found next to the captions, others are given by --split-lists:
    python -m eecs598.coco build --images Flicker8k_Dataset --captions Flickr8k.token.txt \\
      --out datasets/flickr8k.pt
  a Karpathy split file (train and restval for training, test left out); for COCO's, --images is optional:
    python -m eecs598.coco build --images Flicker8k_Dataset --captions dataset_flickr8k.json \\
      --out datasets/flickr8k.pt
  your own pictures with a table of file names and captions, a tenth of them for validation:
    python -m eecs598.coco build --images photos --captions captions.csv --out datasets/photos.pt

After an interruption, run the same command again: downloaded and decoded pictures are kept until the
data file is written, which is done atomically.

Most of the course uses pictures of 112 x 112. A pretrained encoder gets more out of larger ones:
--image-size 224 for the notebook's, 260 for EfficientNet-Lite2 and so for the recipe flickr8k.

The format of a captions file is recognized by its content: JSON in COCO's format, {"images": [{"id": 1,
"file_name": "a.jpg"}, ...], "annotations": [{"image_id": 1, "caption": "a dog runs"}, ...]}, or in
Karpathy's; lines like a.jpg#0<tab>a dog runs or a.jpg| 0| a dog runs; or a CSV or TSV table of file
names and captions. Each picture has one row in the data file, with one of its captions; all of its
captions, tokenized, are its references."""

CHECK_EXAMPLES = """examples:
  python -m eecs598.coco check datasets/coco.pt
  python -m eecs598.coco check --quick datasets/coco.pt

Lines that begin with "warning:" are about problems that spoil training or scores without an error, such
as pictures in both splits or captions that are cut; --quick skips those about pictures.

Exit status 0: a valid data file, regardless of warnings. 1: not a valid one, and one line says why:
missing, truncated, damaged, a web page under that name, a wrong shape, code in it (which is never run:
only tensors and plain values are read)."""

SHOW_EXAMPLES = """examples:
  python -m eecs598.coco show datasets/coco.pt --out sheet.png
  python -m eecs598.coco show datasets/coco.pt --out sheet.png --split train --number 40 --seed 1"""


def _parser():
    layout = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = Parser(prog="python -m eecs598.coco", description=DESCRIPTION, epilog=EPILOG, **layout)
    commands = parser.add_subparsers(dest="command", required=True, metavar="download | subset | build | check | show")
    add = commands.add_parser(
        "download", description="Download the course's own data file.", epilog=DOWNLOAD_EXAMPLES, **layout
    ).add_argument
    add("--out", type=Path, default=COURSE_FILE, metavar="FILE", help=f"the data file (datasets/{COURSE_FILE.name})")
    add("--url", action="append", metavar="URL", help="another address; repeat it for several, tried in order")
    add = commands.add_parser(
        "subset", description="Download as many COCO pictures as a time limit allows.", epilog=SUBSET_EXAMPLES, **layout
    ).add_argument
    _add_subset_options(add)
    add = commands.add_parser(
        "build", description="Make a data file from pictures and their captions.", epilog=BUILD_EXAMPLES, **layout
    ).add_argument
    _add_build_options(add)
    add = commands.add_parser(
        "check", description="Verify a data file and describe its contents.", epilog=CHECK_EXAMPLES, **layout
    ).add_argument
    add("file", type=Path)
    add("--quick", action="store_true", help="do not read the pictures")
    add = commands.add_parser(
        "show", description="Save a sheet of pictures with their captions.", epilog=SHOW_EXAMPLES, **layout
    ).add_argument
    add("file", type=Path)
    add("--out", type=Path, required=True, metavar="PNG", help="the image file to write")
    add("--split", choices=("train", "val"), default="val", help="split of the pictures (val)")
    add("--number", type=positive, default=12, metavar="N", help="number of pictures (12)")
    add("--seed", type=seed, default=0, metavar="N", help="random seed for their selection (0)")
    return parser


def _add_subset_options(add):
    add("--out", type=Path, required=True, metavar="FILE", help="the data file to write")
    add("--train", type=positive, default=COURSE_COUNTS["train"], metavar="N", help="maximum number of training "
        f"pictures ({COURSE_COUNTS['train']})")  # fmt: skip
    add("--val", type=positive, default=COURSE_COUNTS["val"], metavar="N", help="maximum number of validation "
        f"pictures ({COURSE_COUNTS['val']})")  # fmt: skip
    add("--minutes", type=above_zero, default=5, metavar="M", help="time limit for the captions, and again for the "
        "pictures (5)")
    add("--folder", type=Path, default=CACHE, metavar="DIR", help=f"folder for downloads (datasets/{CACHE.name})")
    add("--host", action="append", metavar="URL", help=f"another host with COCO's folders ({COCO_HOSTS[0]})")


def _add_build_options(add):
    add("--out", type=Path, required=True, metavar="FILE", help="the data file to write")
    add("--images", type=Path, metavar="DIR", help="folder of pictures; without it they are downloaded")
    add("--val-images", type=Path, metavar="DIR", help="folder of validation pictures, if different")
    add("--captions", type=Path, metavar="FILE", help="captions of all pictures; by default COCO's are downloaded")
    add("--split-lists", type=Path, nargs="+", metavar="PATH", help="split lists that belong to --captions, or "
        "their folder")  # fmt: skip
    add("--train-captions", type=Path, metavar="FILE", help="instead of --captions, training captions only")
    add("--val-captions", type=Path, metavar="FILE", help="with it, validation captions (some of the training ones)")
    add("--year", type=int, choices=(2014, 2017), default=2014, help="edition of COCO, if downloaded (2014)")
    add("--cache", type=Path, default=CACHE, metavar="DIR", help=f"folder for downloads (datasets/{CACHE.name})")
    add("--image-url", action="append", metavar="URL", help=f"another image host ({COCO_IMAGE_URL})")
    add("--image-size", type=positive, default=112, metavar="S", help="side length in pixels (112)")
    add("--fit", choices=FITS, default="stretch", help="how pictures are made square (stretch)")
    add("--num-train", type=positive, metavar="N", help="training pictures (all; if downloaded, 10000)")
    add("--num-val", type=positive, metavar="N", help="validation pictures (all, or a tenth; if downloaded, at most "
        "500)")  # fmt: skip
    add("--min-count", type=positive, default=MIN_COUNT, metavar="N", help=f"rarer words become <UNK> ({MIN_COUNT})")
    add("--seed", type=seed, default=0, metavar="N", help="random seed for the selection (0)")
    add("--workers", type=positive, metavar="N", help="threads (one per core, at most 16); the result does "
        "not depend on it")  # fmt: skip


def _run(command, options):
    """Run a command and return its report."""
    if command == "show":
        show(options.pop("file"), **options)
        return f"{options['out']}: {options['split']} pictures of the data file, with their captions"
    if command == "check":
        return check(options["file"], options["quick"])
    if command == "subset":
        counts, hosts = (options["train"], options["val"]), options["host"] or COCO_HOSTS
        path = build_subset(options["out"], *counts, options["minutes"], folder=options["folder"], hosts=hosts)
    elif command == "download":
        path = download_course_file(options["out"], options["url"] or COURSE_FILE_URLS)
    else:
        build_data(**options | {"image_url": options["image_url"] or IMAGE_URLS})
        path = options["out"]
    return check(path)


INPUTS = ("file", "captions", "train_captions", "val_captions")


@command
def main(arguments=None):
    """Run a command; returns the exit status."""
    options = vars(_parser().parse_args(arguments))
    try:
        if "out" in options:
            split_lists = options.get("split_lists") or ()
            check_output(options["out"], [*(options.get(name) for name in INPUTS), *split_lists])
        print(_run(options.pop("command"), options), flush=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; run the same command again to resume") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
