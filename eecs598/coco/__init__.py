"""Data files by command, and in Python: `find_photographs`, `download_course_file`, `build_data`, `check`, `show`.

    python -m eecs598.coco download                       the course's file
    python -m eecs598.coco subset --out FILE              as many COCO pictures as some minutes allow
    python -m eecs598.coco build --out FILE               a file of your own choice
    python -m eecs598.coco check FILE
    python -m eecs598.coco show FILE --out sheet.png

`datasets/README.md` describes the file. A command's complaint is one line on standard error.

`captions.py` has the words, `forms.py` reads captions files in the forms that people have, `pictures.py` prepares the
pictures, `builder.py` makes a data file of both, `datafile.py` reads, writes and checks it, `inspection.py` says and
shows what is in it, `download.py` fetches what is large, `course_file.py` the course's own file, `subset.py`
photographs from whatever host is alive, `__main__.py` is the commands.
"""

from eecs598.coco.builder import build_data
from eecs598.coco.captions import SPECIAL_TOKENS, DataError, build_vocabulary, encode_captions, tokenize
from eecs598.coco.course_file import download_course_file
from eecs598.coco.datafile import describe_data, load_data, save_data, validate_data
from eecs598.coco.download import DownloadError
from eecs598.coco.inspection import check, show
from eecs598.coco.pictures import prepare_image
from eecs598.coco.subset import build_subset, find_photographs

__all__ = [
    "SPECIAL_TOKENS", "DataError", "DownloadError", "build_data", "build_subset", "build_vocabulary", "check",
    "describe_data", "download_course_file", "encode_captions", "find_photographs", "load_data", "prepare_image",
    "save_data", "show", "tokenize", "validate_data",
]  # fmt: skip
