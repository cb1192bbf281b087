"""Training examples from a data file: one caption or all captions of each picture, and mirror images."""

import torch

from eecs598.coco import encode_captions, load_data, tokenize
from eecs598.coco.captions import END, MAX_WORDS, NULL
from eecs598.progress import late_bar


def open_data_file(path):
    """Open a data file, check it and print a summary. Returns its dict, with the pictures memory-mapped.

    Raises eecs598.coco.DataError.
    """
    return print_summary(load_data(path))


def print_summary(data):
    """Print a summary of a data file's dict, and return the dict."""
    for split in ("train", "val"):
        images, captions = data[f"{split}_images"], data[f"{split}_captions"]
        print(f"{split}: {len(images):,} pictures {tuple(images.shape[1:])}, captions {tuple(captions.shape)}")
    print(f"vocabulary: {len(data['vocab']['idx_to_token']):,} words")
    return data


def all_captions(data, split="train"):
    """All captions of all pictures: captions (m, T + 1), and the index of each one's picture, (m,).

    Captions of more than 15 words are cut without an <END>, so that no model learns to stop in mid-sentence. For files
    without references, such as coco.pt, these are the captions of the file, one for each picture.
    """
    references = data.get(f"{split}_references")
    if references is None:
        return data[f"{split}_captions"], torch.arange(len(data[f"{split}_captions"]))
    captions = [tokenize(caption) for texts in references for caption in texts]
    image_index = torch.tensor([row for row, texts in enumerate(references) for _ in texts])
    encoded, ids = encode_captions(captions, data["vocab"]), data["vocab"]["token_to_idx"]
    cut = torch.tensor([len(words) > MAX_WORDS for words in captions])
    return encoded.masked_fill((encoded == ids[END]) & cut[:, None], ids[NULL]), image_index


def count_cut(captions, vocab):
    """The number of captions (..., T + 1) that were cut and so have no <END>."""
    return (captions != vocab["token_to_idx"][END]).all(-1).sum().item()


def captions_together(data):
    """All training captions by picture: (n, K, T + 1), K the largest number of captions that a picture has.

    If a picture has fewer, they are repeated. The captions of a picture are then in the same batch, and its features
    are projected once for all of them.
    """
    captions, image_index = all_captions(data)
    order, counts = image_index.argsort(stable=True), image_index.bincount().unsqueeze(1)  # (n, 1)
    first = counts.cumsum(0) - counts
    return captions[order[first + torch.arange(int(counts.max())) % counts]]


def with_mirror_images(data):
    """The data with the mirror image of each training picture added, with the same captions.

    A caption that says left or right is wrong for the mirror image; 116 of the 30,000 in Flickr8k do.
    """
    doubled = {name: values + values if isinstance(values, list) else torch.cat([values, values])
               for name, values in data.items() if name in ("train_captions", "train_references", "train_image_ids")}
    return {**data, **doubled, "train_images": _with_mirror_images(data["train_images"])}


def _with_mirror_images(images):
    count, both = len(images), images.new_empty(2 * len(images), *images.shape[1:])
    with late_bar(count, "mirror images") as bar:
        for rows, same, mirrored in zip(*(part.split(256) for part in (images, both[:count], both[count:]))):
            same.copy_(rows)
            mirrored.copy_(rows.flip(-1))
            bar.update(len(rows))
    return both
