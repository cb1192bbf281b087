"""The scorer's tokenizer: the words that the field's Java program finds, without Java."""

import json

import pytest

from eecs598.metrics.ptb import tokenize

CAPTIONS = """
    A man 's dog 's ball , isn't it ? Don't ! They've , we'll , I'm , he'd and you're cannot , gonna , wanna !
    The dogs' ball at 10:30 o'clock costs $5.00 or 1,000 -- "half" of 50% ; and/or a t-shirt/jeans ...
    Two 3-4 year-olds #1 (one in red) play [football] at the U.S. Open , Main St. , Washington D.C. with Mr. Smith Jr.
    'Tis a '60s rock 'n' roll band ; y'all at&t e-mail me@site.com or see www.site.com/page now
    A white-and-brown dog jumps over a 1/2 fence.The cat sleeps .
    a café naïve and a jalapeño ‘quoted’ “twice” – dash — long… end
    The number is 555-1234 . A plan b. The dog .
    He said : `` wow '' !!! Really ?!
""".strip().split("\n")


def test_words_of_a_caption():
    assert tokenize("A dog's ball: don't (cannot) drop it!") == (
        ["a", "dog", "'s", "ball", "do", "n't", "-lrb-", "can", "not", "-rrb-", "drop", "it"]
    )
    assert tokenize("") == tokenize(" . , ") == []


def test_odd_captions_are_tokenized_as_by_stanfords_program(stanford_tokens):
    captions = [caption.strip() for caption in CAPTIONS]
    assert [tokenize(caption) for caption in captions] == stanford_tokens(captions)


def test_every_real_caption_is_tokenized_as_by_stanfords_program(stanford_tokens, real_data):
    files = [real_data / "flickr8k" / f"captions_{split}.json" for split in ("train", "val")]
    files += [real_data / "coco_sample" / "captions.json"]
    if missing := [file for file in files if not file.is_file()]:
        pytest.skip(f"{missing[0]} is not there")
    captions = [entry["caption"] for file in files for entry in json.loads(file.read_bytes())["annotations"]]
    assert len(captions) > 30_000
    different = [pair for pair in zip(map(tokenize, captions), stanford_tokens(captions)) if pair[0] != pair[1]]
    assert different == []


def test_a_last_letter_with_a_full_stop_does_not_depend_on_the_next_caption(stanford_tokens):
    captions = ["a shirt of size S.", "the dog", "a shirt of size S.", "The dog"]
    assert [words[-1] for words in stanford_tokens(captions)[::2]] == ["s.", "s"]  # what differs on purpose
    assert [tokenize(caption)[-1] for caption in captions[::2]] == ["s.", "s."]
