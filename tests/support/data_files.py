"""Folders of pictures with captions, and what a data file made of them must hold."""

import json

import pytest
import torch
from PIL import Image

from eecs598.coco import DataError, validate_data

PEAK = """
import re
def memory():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 2**10
"""


def colour(number):
    return (number * 37 % 256, number * 91 % 256, number * 53 % 256)


def message(call, *arguments, **options):
    """The one line that a failing call says."""
    with pytest.raises(DataError) as caught:
        call(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        assert same, key


def write_folder(folder, numbers, name="captions.json", change=lambda content: None):
    """A plain picture a number, in its own colour, and a captions file with three captions each."""
    (folder / "images").mkdir(exist_ok=True)
    content = {"images": [], "annotations": []}
    for number in numbers:
        file_name = f"{number:03}.png"
        Image.new("RGB", (12, 9), colour(number)).save(folder / "images" / file_name)
        content["images"].append({"id": number, "file_name": file_name, "height": 9, "width": 12})
        for caption in (f"A picture, {number}.", f"picture number {number}", "very " * 20 + "long"):
            content["annotations"].append({"id": 0, "image_id": number, "caption": caption})
    change(content)
    (folder / name).write_text(json.dumps(content))
    return folder / "images", folder / name


def numbers_of(data, split):
    """The picture numbers, checked to be those of its pixels, captions and references, row by row."""
    validate_data(data)
    numbers = data[f"{split}_image_ids"].tolist()
    ids = data["vocab"]["token_to_idx"]
    for row, number in enumerate(numbers):
        assert data[f"{split}_images"][row, :, 0, 0].tolist() == list(colour(number))
        references = data[f"{split}_references"][row]
        assert sorted(references) == [f"a picture {number}", f"picture number {number}", "very " * 20 + "long"]
        words = references[0].split()
        assert len(words) == 3  # the long caption never stands for its picture
        assert data[f"{split}_captions"][row, 1:4].tolist() == [ids.get(word, ids["<UNK>"]) for word in words]
    return numbers
