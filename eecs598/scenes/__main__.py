"""The command that draws and captions the embedded data set: `python -m eecs598.scenes --help`."""

import sys
import time
from pathlib import Path

from eecs598 import commands
from eecs598.coco import save_data
from eecs598.scenes.dataset import make_scenes


@commands.command
def main(arguments=None):
    """Run the command; returns the exit status."""
    parser = commands.Parser(prog="python -m eecs598.scenes", description="Draw and caption the embedded data set.")
    parser.add_argument("file", type=Path, metavar="FILE", help="the data file to write")
    add = parser.add_argument
    add("--train", type=commands.positive, default=10_000, metavar="N", help="training pictures (10000)")
    add("--val", type=commands.positive, default=500, metavar="N", help="validation pictures (500)")
    add("--seed", type=commands.seed, default=0, metavar="S", help="random seed (0)")
    add("--image-size", type=commands.positive, default=112, metavar="P", help="side length in pixels (112)")
    options = parser.parse_args(arguments)
    size, begin = options.image_size, time.perf_counter()
    commands.check_output(options.file)
    data = make_scenes(options.train, options.val, options.seed, size)
    save_data(data, options.file)
    words, seconds = len(data["vocab"]["idx_to_token"]) - 4, time.perf_counter() - begin
    print(f"{options.file}: {options.train} train + {options.val} val pictures of {size} x {size}, "
          f"{words} words, {seconds:.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
