"""The commands: `python -m eecs598.coco download | subset | build | check | show`, each with a `--help` of its own."""

import argparse
import sys
from pathlib import Path

from eecs598.coco.builder import CACHE, IMAGE_URLS, build_data
from eecs598.coco.course_file import COURSE_FILE, download_course_file
from eecs598.coco.download import COCO_HOSTS, COCO_IMAGE_URL, COURSE_FILE_URLS, DownloadError
from eecs598.coco.inspection import check, show
from eecs598.coco.pictures import FITS
from eecs598.coco.subset import build_subset
from eecs598.commands import Parser, above_zero, check_output, command, positive

DESCRIPTION = """Get, build, check and show data files: pictures, a caption for each, a vocabulary.

  download   the course's own file, COCO 2014, 10,000 + 500 pictures (378 MB)
  subset     as many pictures of COCO 2014 as some minutes allow
  build      a file of any size, from COCO's pictures (fetched, or from folders) or your own
  check      what is in a file, and is it whole?
  show       a sheet of its pictures with their captions"""

EPILOG = """examples:
  python -m eecs598.coco download
  python -m eecs598.coco check datasets/coco.pt
  python -m eecs598.coco show datasets/coco.pt --out sheet.png
  python -m eecs598.coco build --num-train 1000 --num-val 100 --out datasets/coco1k.pt

Each command has its own --help, with more examples. An interrupted download or build is not lost:
give the same command again, and it goes on. No network at all? python -m eecs598.scenes FILE
draws 10,000 captioned pictures in a minute."""

DOWNLOAD_EXAMPLES = """examples:
  python -m eecs598.coco download
  from another address, when the course's server is down:
    python -m eecs598.coco download --url https://example.org/coco.pt

What arrives is kept in FILE.part, and the file gets its name once it is whole and checked: its
length, its CRCs, its content. A file that is there and passes is not fetched again."""

SUBSET_EXAMPLES = """examples:
  10,000 + 500 pictures of COCO 2014, or as many as 5 minutes allow:
    python -m eecs598.coco subset --out datasets/photographs.pt
  fewer, and what is fetched kept elsewhere:
    python -m eecs598.coco subset --out datasets/photographs.pt --train 2000 --val 200 --folder /mnt/coco

After 100 pictures it says how long the rest takes. Give the same command again, and it goes on: nothing is
fetched twice, and the pictures are the first of the same order. The captions (241 MB) come first, once."""

BUILD_EXAMPLES = """examples:
  10,000 + 500 pictures of COCO 2014, as in the course's own file, fetched one by one (1.7 GB) with
  their captions (241 MB) into datasets/coco_images:
    python -m eecs598.coco build --out datasets/coco10k.pt
  less, for a first try; of COCO 2017; at the size that a frozen encoder wants:
    python -m eecs598.coco build --num-train 1000 --num-val 100 --year 2017 --image-size 224 \\
      --out datasets/coco1k.pt
  from the folders of the official archives, nothing fetched:
    python -m eecs598.coco build --images train2014 --val-images val2014 \\
      --train-captions annotations/captions_train2014.json \\
      --val-captions annotations/captions_val2014.json \\
      --num-train 10000 --num-val 500 --out datasets/coco10k.pt
  Flickr8k by its own captions; its split lists are found beside them, others named by --split-lists:
    python -m eecs598.coco build --images Flicker8k_Dataset --captions Flickr8k.token.txt \\
      --out datasets/flickr8k.pt
  the Karpathy split (train and restval are trained on, test is left out); --images may be left out
  for COCO's:
    python -m eecs598.coco build --images Flicker8k_Dataset --captions dataset_flickr8k.json \\
      --out datasets/flickr8k.pt
  your own pictures and a table of file name and caption, a tenth of the pictures kept for validation:
    python -m eecs598.coco build --images photos --captions captions.csv --out datasets/photos.pt

Interrupted, or the connection lost? Give the same command again: fetched and decoded pictures are
kept until the file is written, and it is there only once it is whole.

Pictures of 112 x 112 are what the course trains an encoder on; for a frozen encoder take --image-size 224.

A captions file, told by its content, is JSON in COCO's format, {"images": [{"id": 1, "file_name":
"a.jpg"}, ...], "annotations": [{"image_id": 1, "caption": "a dog runs"}, ...]}, or in Karpathy's; lines
like a.jpg#0<tab>a dog runs or a.jpg| 0| a dog runs; or a CSV or TSV of file name and caption. Each picture
gets one row in the data file, with one of its captions; all its captions are kept beside it,
tokenized, as references."""

CHECK_EXAMPLES = """examples:
  python -m eecs598.coco check datasets/coco.pt
  python -m eecs598.coco check --quick datasets/coco.pt

Lines that begin with "warning:" tell what spoils training or scores without an error, as pictures that
are in both splits, or captions that are cut; --quick leaves out the pictures'.

Exit status 0: a whole data file, whatever the warnings. 1: it is not, and one line says why: missing,
truncated, damaged, a web page saved under the name, a wrong shape, code in it (never run: only tensors
and plain values are read)."""

SHOW_EXAMPLES = """examples:
  python -m eecs598.coco show datasets/coco.pt --out sheet.png
  python -m eecs598.coco show datasets/coco.pt --out sheet.png --split train --number 40 --seed 1"""


def _parser():
    layout = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = Parser(prog="python -m eecs598.coco", description=DESCRIPTION, epilog=EPILOG, **layout)
    commands = parser.add_subparsers(dest="command", required=True, metavar="download | subset | build | check | show")
    add = commands.add_parser(
        "download", description="Fetch the course's own data file.", epilog=DOWNLOAD_EXAMPLES, **layout
    ).add_argument
    add("--out", type=Path, default=COURSE_FILE, metavar="FILE", help=f"where to (datasets/{COURSE_FILE.name})")
    add("--url", action="append", metavar="URL", help="another address; may be given several times, tried in order")
    add = commands.add_parser(
        "subset", description="Fetch as many pictures as some minutes allow.", epilog=SUBSET_EXAMPLES, **layout
    ).add_argument
    _add_subset_options(add)
    add = commands.add_parser(
        "build", description="Make a data file from pictures and their captions.", epilog=BUILD_EXAMPLES, **layout
    ).add_argument
    _add_build_options(add)
    add = commands.add_parser(
        "check", description="Say what is in a data file, or what is wrong with it.", epilog=CHECK_EXAMPLES, **layout
    ).add_argument
    add("file", type=Path)
    add("--quick", action="store_true", help="do not read the pictures")
    add = commands.add_parser(
        "show", description="Write a sheet of pictures with their captions.", epilog=SHOW_EXAMPLES, **layout
    ).add_argument
    add("file", type=Path)
    add("--out", type=Path, required=True, metavar="PNG", help="the picture to write")
    add("--split", choices=("train", "val"), default="val", help="which pictures (val)")
    add("--number", type=positive, default=12, metavar="N", help="how many (12)")
    add("--seed", type=int, default=0, metavar="N", help="chooses them (0)")
    return parser


def _add_subset_options(add):
    add("--out", type=Path, required=True, metavar="FILE", help="the data file to write")
    add("--train", type=positive, default=10000, metavar="N", help="how many training pictures at most (10000)")
    add("--val", type=positive, default=500, metavar="N", help="how many validation pictures at most (500)")
    add("--minutes", type=above_zero, default=5, metavar="M", help="as many as this time allows (5)")
    add("--folder", type=Path, default=CACHE, metavar="DIR", help=f"keeps what is fetched (datasets/{CACHE.name})")
    add("--host", action="append", metavar="URL", help=f"another host with COCO's folders ({COCO_HOSTS[0]})")


def _add_build_options(add):
    add("--out", type=Path, required=True, metavar="FILE", help="the data file to write")
    add("--images", type=Path, metavar="DIR", help="the folder of the pictures; without it they are fetched")
    add("--val-images", type=Path, metavar="DIR", help="validation pictures, if elsewhere")
    add("--captions", type=Path, metavar="FILE", help="captions of all pictures; without any, COCO's own are fetched")
    add("--split-lists", type=Path, nargs="+", metavar="PATH", help="the split lists of --captions, or their folder")
    add("--train-captions", type=Path, metavar="FILE", help="in place of it, the training captions alone")
    add("--val-captions", type=Path, metavar="FILE", help="and the validation captions (without: some of the first)")
    add("--karpathy", type=Path, metavar="JSON", help="as --captions, for a Karpathy split file")
    add("--year", type=int, choices=(2014, 2017), default=2014, help="of COCO's captions, if fetched (2014)")
    add("--cache", type=Path, default=CACHE, metavar="DIR", help=f"keeps what is fetched (datasets/{CACHE.name})")
    add("--image-url", action="append", metavar="URL", help=f"another image host ({COCO_IMAGE_URL})")
    add("--image-size", type=positive, default=112, metavar="S", help="pixels a side (112)")
    add("--fit", choices=FITS, default="stretch", help="make it square so (stretch)")
    add("--num-train", type=positive, metavar="N", help="how many training pictures (all; fetched: 10000)")
    add("--num-val", type=positive, metavar="N", help="validation pictures (all, or a tenth; fetched: 500 at most)")
    add("--min-count", type=positive, default=4, metavar="N", help="rarer words become <UNK> (4)")
    add("--seed", type=int, default=0, metavar="N", help="chooses the pictures and their captions (0)")
    add("--workers", type=positive, metavar="N", help="threads; the file does not depend on it (one a core)")


def _run(command, options):
    """What a command has to say, as text."""
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


INPUTS = ("file", "captions", "karpathy", "train_captions", "val_captions")


@command
def main(arguments=None):
    """Run a command; returns the exit status."""
    options = vars(_parser().parse_args(arguments))
    try:
        if "out" in options:
            check_output(options["out"], [options.get(name) for name in INPUTS])
        print(_run(options.pop("command"), options), flush=True)
    except (ValueError, DownloadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on from here") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
