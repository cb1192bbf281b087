"""Progress bars for work that takes long only with much data, and notes beside them."""

import sys

from tqdm import tqdm

DELAY = 2  # seconds


def late_bar(total, description, unit="picture", shown=True):
    """A tqdm bar that appears after DELAY seconds and is cleared at the end, so that short work prints nothing."""
    return tqdm(total=total, desc=description, unit=unit, delay=DELAY, mininterval=0.5, leave=False, disable=not shown)


def say(line):
    """Print a line on standard error, above any progress bars."""
    tqdm.write(line, file=sys.stderr)
