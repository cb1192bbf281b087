"""Teacher forcing with a trained captioner: how probable each word of a given caption is, and where the model looks."""

from typing import NamedTuple

import torch

from eecs598.captioner import in_batches, require_steps

BATCH_SIZE = 64  # pictures run through a captioner at a time


class Explanation(NamedTuple):
    """N captions word by word, as `vis.attention_viewer` takes them. The last word of each is <END>."""

    captions: list  # N lists of words
    weights: list | None  # N tensors (T, h, w): attention weights for each word; None for an rnn or lstm
    probabilities: list  # N lists of T numbers: the model's probability of each word
    alternatives: list  # N lists of T lists of (word, probability): other words, most likely first


@torch.no_grad()
def explain_captions(model, images, captions, vocab, num_alternatives=4):
    """Run any captions through a captioner by teacher forcing, for word probabilities and attention weights.

    model: any captioner with `begin` and `step`, see `eecs598.decoding`. images (N, 3, H, W). captions: N strings, or
    N lists of words; <END> is added. vocab: dict with `idx_to_token`, `token_to_idx`. Probabilities are the softmax of
    the scores over the whole vocabulary, given the previous words. Returns Explanation. Raises ValueError.
    """
    names, size = vocab["idx_to_token"], len(vocab["idx_to_token"])
    _check_explained(model, images, captions, num_alternatives, size)
    captions = [[word for word in _split(caption) if word != "<END>"] + ["<END>"] for caption in captions]
    ids = [[_find_word(word, vocab) for word in words] for words in captions]
    T = max(map(len, ids))
    device = next(model.parameters()).device
    words = torch.tensor([row + [model.null] * (T - len(row)) for row in ids], device=device)  # (N, T)
    probs, maps = _run_through(model, images, words)
    likely = probs.topk(min(num_alternatives + 1, size), dim=2)  # one more, as the word itself may be among them
    explained = Explanation([], None if maps is None else [], [], [])
    for n, row in enumerate(ids):
        explained.captions.append([names[word] for word in row])
        explained.probabilities.append([probs[n, t, word].item() for t, word in enumerate(row)])
        pairs = [list(zip(likely.indices[n, t].tolist(), likely.values[n, t].tolist())) for t in range(len(row))]
        others = [[(names[i], p) for i, p in at if i != word][:num_alternatives] for at, word in zip(pairs, row)]
        explained.alternatives.append(others)
        if maps is not None:
            explained.weights.append(maps[n, : len(row)])
    return explained


def _run_through(model, images, words):
    """The probabilities of all words at each step (N, T, V), and the attention weights (N, T, h, w) or None."""

    def read(part, rows):
        probs, maps = [], []
        state, before = model.begin(part), torch.full_like(words[rows, 0], model.start)
        for word in words[rows].t():
            scores, state, weights = model.step(before, state)
            probs.append(scores.float().softmax(1).cpu())
            maps.append(weights)
            before = word
        return torch.stack(probs, 1), None if maps[0] is None else torch.stack(maps, 1).float().cpu()

    parts = zip(*in_batches(model, images, BATCH_SIZE, read))
    return (None if part[0] is None else torch.cat(part) for part in parts)


def _check_explained(model, images, captions, num_alternatives, size):
    require_steps(model)
    if len(images) == 0 or isinstance(captions, str) or len(captions) != len(images):
        raise ValueError(f"{len(images)} pictures, captions {captions!r:.60}: pass a list with one for each picture")
    if not 0 <= num_alternatives < size:
        raise ValueError(f"num_alternatives is {num_alternatives}: it must be at least 0 and at most {size - 1}")


def _split(caption):
    return caption.split() if isinstance(caption, str) else caption


def _find_word(word, vocab):
    found = vocab["token_to_idx"].get(word, vocab["token_to_idx"].get("<UNK>"))
    if found is None:
        raise ValueError(f"{word!r} is not in the vocabulary, which has no <UNK> either: leave it out")
    return found
