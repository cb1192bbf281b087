"""The course's own data file, COCO 2014: downloaded and verified."""

from eecs598 import DATASETS
from eecs598.coco.datafile import check_whole, load_data
from eecs598.coco.download import COURSE_FILE_URLS, download

COURSE_FILE = DATASETS / "coco.pt"


def download_course_file(path=COURSE_FILE, urls=COURSE_FILE_URLS, **options):
    """Download the course's data file, COCO 2014, 378 MB, to `path`. Returns `path`.

    urls: an address, or several mirrors in order. options: as in `eecs598.coco.download.download` (`progress`,
    `retries`, ...). The file gets its final name only after its length and CRCs are verified and `load_data` accepts
    it. An existing valid file is left as it is. After an interruption, the same call resumes. Raises DownloadError.
    """
    return download(urls, path, check=_check_download, **options)


def _check_download(path):
    check_whole(path)
    load_data(path)
