"""The training examples of a data file: one caption of each picture, all of them, and mirror images."""

import torch

from eecs598.coco import encode_captions, load_data, tokenize
from eecs598.coco.captions import END, MAX_WORDS, NULL


def open_data_file(path):
    """Open a data file, check it and print what is in it. Returns its dict; the pictures stay on disk until used.

    Raises eecs598.coco.DataError.
    """
    return print_summary(load_data(path))


def print_summary(data):
    """Print what is in a data file's dict, and return it."""
    for split in ("train", "val"):
        images, captions = data[f"{split}_images"], data[f"{split}_captions"]
        print(f"{split}: {len(images):,} pictures {tuple(images.shape[1:])}, captions {tuple(captions.shape)}")
    print(f"vocabulary: {len(data['vocab']['idx_to_token']):,} words")
    return data


def all_captions(data, split="train"):
    """Every caption of every picture: captions (m, T + 1), and each one's row of the pictures, (m,).

    One of more than 15 words is cut and gets no <END>, so that no model learns to stop in mid-sentence. Files like
    coco.pt have one caption of each picture: then those.
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
    """How many of some captions (..., T + 1) were cut, so that they have no <END>."""
    return (captions != vocab["token_to_idx"][END]).all(-1).sum().item()


def captions_together(data, split="train"):
    """Every picture's captions in one row: (n, K, T + 1), K the most that a picture has; fewer are repeated.

    A picture's captions are then learned in one step, and its features projected once for all of them.
    """
    captions, image_index = all_captions(data, split)
    rows = [captions[image_index == row] for row in range(int(image_index.max()) + 1)]
    most = max(map(len, rows))
    return torch.stack([row[torch.arange(most) % len(row)] for row in rows])


def with_mirror_images(data):
    """A data file's dict whose training pictures, with their captions, come once as they are and once mirrored.

    A caption that says left or right is wrong for the mirror image; 116 of Flickr8k's 30,000 have one of the words.
    """
    doubled = {name: values + values if isinstance(values, list) else torch.cat([values, values])
               for name, values in data.items() if name in ("train_captions", "train_references", "train_image_ids")}
    images = data["train_images"]
    return {**data, **doubled, "train_images": torch.cat([images, images.flip(-1)])}
