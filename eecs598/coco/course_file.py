"""The course's own data file, COCO 2014: fetched, and checked before it gets its name."""

from pathlib import Path

from eecs598.coco.datafile import load_data
from eecs598.coco.download import COURSE_FILE_URLS, check_torch_file, download

COURSE_FILE = Path(__file__).parents[2] / "datasets" / "coco.pt"


def download_course_file(path=COURSE_FILE, urls=COURSE_FILE_URLS, **options):
    """Fetch the course's data file, COCO 2014, 378 MB, to `path`; returns `path`.

    urls: an address, or several mirrors in order. options: as for `eecs598.coco.download.download` (`progress`,
    `retries`, ...). The file gets its name only once its length and CRCs are right and `load_data` takes it;
    one that is there and passes is left as it is. After an interruption the same call goes on. Raises
    DownloadError.
    """
    return download(urls, path, check=_check_download, **options)


def _check_download(path):
    check_torch_file(path)
    load_data(path)
