"""The command that draws and captions the embedded data set: `python -m eecs598.scenes --help`."""

import os
import sys
import time
from pathlib import Path

from eecs598.coco import DataError, save_data
from eecs598.commands import Parser
from eecs598.scenes.dataset import make_scenes


def main(arguments=None):
    """Run the command; returns the exit status."""
    parser = Parser(prog="python -m eecs598.scenes", description="Draw and caption the embedded data set.")
    parser.add_argument("file", type=Path, metavar="FILE", help="the data file to write")
    parser.add_argument("--train", type=int, default=10_000, metavar="N", help="training pictures (10000)")
    parser.add_argument("--val", type=int, default=500, metavar="N", help="validation pictures (500)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other scenes (0)")
    parser.add_argument("--image-size", type=int, default=112, metavar="P", help="pixels a side (112)")
    options = parser.parse_args(arguments)
    folder, size, begin = options.file.absolute().parent, options.image_size, time.perf_counter()
    try:
        if not folder.is_dir() or not os.access(folder, os.W_OK) or options.file.is_dir():
            raise DataError(f"{options.file}: not writable; want the name of a file in a folder that exists")
        data = make_scenes(options.train, options.val, options.seed, size)
        save_data(data, options.file)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    words, seconds = len(data["vocab"]["idx_to_token"]) - 4, time.perf_counter() - begin
    print(f"{options.file}: {options.train} train + {options.val} val pictures of {size} x {size}, "
          f"{words} words, {seconds:.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
