"""Progress bars for work that takes long only with much data."""

from tqdm import tqdm

DELAY = 2  # seconds


def late_bar(total, description, unit="picture", shown=True):
    """A tqdm bar that appears after DELAY seconds and is cleared at the end, so that short work prints nothing."""
    return tqdm(total=total, desc=description, unit=unit, delay=DELAY, mininterval=0.5, leave=False, disable=not shown)
