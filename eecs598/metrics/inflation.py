"""Four ways to raise a captioner's BLEU-4 without making its captions any better; each has been published.

    full stop         the final full stop counts as a word, in the captions and in the references: a word that is always
                      right, and so are the runs of words that end with it
    best of several   of several captions of a picture, the one that is scored is chosen by the references
    train pictures    the pictures that are scored were in the training set, as happens where pairs of picture and
                      caption are split at random: most of the other captions of each picture are then trained on
    teacher forcing   each word that is scored was predicted from a person's words before it, and the caption is as long
                      as that person's
"""

from typing import NamedTuple

from eecs598.captioner import caption_pictures, captions_alone, decode_captions, decode_pictures, people
from eecs598.metrics.ptb import tokenize
from eecs598.metrics.scores import import_scorers
from eecs598.vis.viewer import explain_captions

BEAM = 5
BATCH = 100


class Inflated(NamedTuple):
    """BLEU-4 as it should be measured, and as this way measures it; fractions."""

    honest: float
    inflated: float


def inflate_bleu(model, data, pictures=500):
    """The four ways, on a data file's first validation pictures (and training pictures): {name: Inflated}.

    model: a captioner with `begin` and `step`; data: the data file's dict; pictures: at most so many of each split.
    Raises ValueError, ImportError.
    """
    rows = range(min(pictures, len(data["val_images"]), len(data["train_images"])))
    references = {split: [[tokenize(text) for text in texts] for texts in people(data, rows, split)]
                  for split in ("val", "train")}  # fmt: skip
    images, known = data["val_images"][rows.start : rows.stop], references["val"]
    greedy = _caption(model, images, data)
    honest = bleu4(greedy, known)
    beam = decode_pictures(model, images, beam_size=BEAM).words
    candidates = [[tokenize(text) for text in decode_captions(words, data["vocab"]["idx_to_token"], specials=False)]
                  for words in beam]  # fmt: skip
    forced = teacher_force(model, images, data["val_captions"][rows.start : rows.stop], data["vocab"])
    seen = _caption(model, data["train_images"][rows.start : rows.stop], data)
    count = min(len(texts) for split in references.values() for texts in split)  # equally many for both splits
    val, train = ([texts[:count] for texts in references[split]] for split in ("val", "train"))
    return {
        "full stop": Inflated(honest, bleu4(*add_full_stop(greedy, known))),
        "best of several": Inflated(
            bleu4([texts[0] for texts in candidates], known), bleu4(choose_by_references(candidates, known), known)),
        "train pictures": Inflated(bleu4(greedy, val), bleu4(seen, train)),
        "teacher forcing": Inflated(honest, bleu4(forced, known)),
    }  # fmt: skip


def bleu4(captions, references):
    """BLEU-4 over all pictures. captions: lists of words; references: for each picture, lists of words."""
    return _score(captions, references)[0][3]


def add_full_stop(captions, references):
    """The same captions and references with "." as the last word of each."""
    return [[*words, "."] for words in captions], [[[*words, "."] for words in texts] for texts in references]


def choose_by_references(candidates, references):
    """Of each picture's candidates, the one with the highest BLEU-4 of its own; the first of equal ones."""
    chosen = []
    for several, known in zip(candidates, references):
        each = _score(several, [known] * len(several))[1][3]
        chosen.append(several[each.index(max(each))])
    return chosen


def teacher_force(model, images, captions, vocab):
    """The likeliest word at each place of people's captions, given their words before it: lists of words.

    images (n, 3, H, W); captions (n, T + 1) int64, as in a data file.
    """
    texts, forced = decode_captions(captions, vocab["idx_to_token"], specials=False), []
    for start in range(0, len(texts), BATCH):
        part = slice(start, start + BATCH)
        explained = explain_captions(model, images[part], texts[part], vocab, num_alternatives=1)
        for words, probabilities, others in zip(explained.captions, explained.probabilities, explained.alternatives):
            pairs = zip(words, probabilities, (other for (other,) in others))
            likeliest = [word if p >= q else other for word, p, (other, q) in pairs]
            forced.append(tokenize(" ".join(word for word in likeliest if word != "<END>")))
    return forced


def format_inflation(ways):
    """A table of what `inflate_bleu` returns, as text, times 100."""
    width = max(map(len, ways))
    lines = [f"{'BLEU-4':<{width}}  honest  inflated    gain"]
    for name, (honest, inflated) in ways.items():
        lines.append(f"{name:<{width}}  {100 * honest:6.1f}  {100 * inflated:8.1f}  {100 * (inflated - honest):+6.1f}")
    return "\n".join(lines)


def _caption(model, images, data):
    captions = captions_alone(caption_pictures(model, images, data["vocab"]["idx_to_token"]))
    return [tokenize(text) for text in captions]


def _score(captions, references):
    """BLEU-1 to 4 over all captions, and of each one."""
    scorer = import_scorers()[0](n=4)
    for words, texts in zip(captions, references):
        scorer += " ".join(words), [" ".join(text) for text in texts]
    return scorer.compute_score(option="closest")
