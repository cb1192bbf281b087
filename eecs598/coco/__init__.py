"""Data files, as commands and in Python: `find_photographs`, `download_course_file`, `build_data`, `check`, `show`.

    python -m eecs598.coco download                       the course's file
    python -m eecs598.coco subset --out FILE              a subset of COCO, as large as a time limit allows
    python -m eecs598.coco build --out FILE               from COCO or your own pictures
    python -m eecs598.coco check FILE
    python -m eecs598.coco show FILE --out sheet.png

`datasets/README.md` describes the format. Errors are one line on standard error.

`captions.py` tokenizes captions, `forms.py` reads captions files in all supported formats, `pictures.py` preprocesses
pictures, `builder.py` makes a data file from both, `datafile.py` reads, writes and validates it, `inspection.py`
describes and shows its contents, `download.py` downloads files, `course_file.py` the course's own file, `subset.py`
photographs from any available source, `threads.py` works on many items in threads, and `__main__.py` has the commands.
"""

from eecs598.coco.builder import build_data
from eecs598.coco.captions import (
    SPECIAL_TOKENS,
    DataError,
    build_vocabulary,
    decode_captions,
    encode_captions,
    tokenize,
)
from eecs598.coco.course_file import download_course_file
from eecs598.coco.datafile import describe_data, load_data, save_data, validate_data
from eecs598.coco.download import DownloadError
from eecs598.coco.inspection import check, show
from eecs598.coco.pictures import prepare_image
from eecs598.coco.subset import build_subset, find_photographs

__all__ = [
    "SPECIAL_TOKENS", "DataError", "DownloadError", "build_data", "build_subset", "build_vocabulary", "check",
    "decode_captions", "describe_data", "download_course_file", "encode_captions", "find_photographs", "load_data",
    "prepare_image", "save_data", "show", "tokenize", "validate_data",
]  # fmt: skip
