"""Four ways to raise a captioner's BLEU without making its captions any better, each easy to do by accident.

    full stop         the final full stop counts as a word, in the captions and in the references: a word that is always
                      correct
    best of several   of several captions of a picture, the one to be scored is chosen with the references
    train pictures    the pictures that are scored were in the training set, as happens if pairs of picture and caption
                      are split at random: most of the other captions of each picture are then trained on
    teacher forcing   each word that is scored was predicted from a person's previous words, and the caption is as
                      long as that person's: more single words are correct, but they need not fit each other, so that
                      longer n-grams may lose
"""

from typing import NamedTuple

from eecs598.captioner import caption_pictures, captions_alone, decode_pictures, missing_steps, references_of
from eecs598.coco import decode_captions
from eecs598.metrics import import_scorers
from eecs598.metrics.ptb import tokenize
from eecs598.teacher_forcing import explain_captions

BEAM = 5
BATCH = 100


class Inflated(NamedTuple):
    """BLEU-1 to 4, as fractions: as they should be measured, and as one of the four ways measures them."""

    proper: list[float]
    inflated: list[float]


def inflate_bleu(model, data, pictures=500):
    """The four ways, with a data file's first validation pictures (and training pictures): {name: Inflated}.

    model: a captioner; one without `begin` and `step` can do the first and the third. data: the data file's dict;
    pictures: how many of each split, at most. Raises ValueError, ImportError.
    """
    count = _count(data, pictures)
    images, known = data["val_images"][:count], _references(data, "val", count)
    greedy = _caption(model, images, data)
    proper = bleu(greedy, known)
    ways = {"full stop": Inflated(proper, bleu(*add_full_stop(greedy, known)))}
    if missing := missing_steps(model):
        print(f"left out, as the captioner has no {' and no '.join(missing)}: best of several, teacher forcing")
        return ways | {"train pictures": leak_pictures(model, data, pictures)}
    beam = decode_pictures(model, images, beam_size=BEAM).words
    several = [[tokenize(text) for text in decode_captions(words, data["vocab"]["idx_to_token"], specials=False)]
               for words in beam]  # fmt: skip
    most_probable = [captions[0] for captions in several]
    forced = teacher_force(model, images, data["val_captions"][:count], data["vocab"])
    return ways | {
        "best of several": Inflated(bleu(most_probable, known), bleu(choose_by_references(several, known), known)),
        "train pictures": leak_pictures(model, data, pictures),
        "teacher forcing": Inflated(proper, bleu(forced, known)),
    }


def leak_pictures(model, data, pictures=500):
    """The third way alone: Inflated, validation pictures against training pictures.

    Both have the same number of references. Raises ValueError, ImportError.
    """
    count, splits = _count(data, pictures), ("val", "train")
    references = {split: _references(data, split, count) for split in splits}
    least = min(len(texts) for split in splits for texts in references[split])
    captions = {split: _caption(model, data[f"{split}_images"][:count], data) for split in splits}
    return Inflated(*(bleu(captions[split], [texts[:least] for texts in references[split]]) for split in splits))


def bleu(captions, references):
    """BLEU-1 to 4 over all pictures. captions: lists of words; references: for each picture, lists of words."""
    return _score(captions, references)[0]


def add_full_stop(captions, references):
    """The same captions and references with "." as the last word of each."""
    return [[*words, "."] for words in captions], [[[*words, "."] for words in texts] for texts in references]


def choose_by_references(candidates, references):
    """For each picture, the candidate with the highest BLEU-4 by itself; of equal ones, the first."""
    chosen = []
    for several, known in zip(candidates, references):
        each = _score(several, [known] * len(several))[1][3]
        chosen.append(several[each.index(max(each))])
    return chosen


def teacher_force(model, images, captions, vocab):
    """The most probable word at each position of people's captions, given their previous words: lists of words.

    images (n, 3, H, W); captions (n, T + 1) int64, as in a data file.
    """
    texts, forced = decode_captions(captions, vocab["idx_to_token"], specials=False), []
    for start in range(0, len(texts), BATCH):
        part = slice(start, start + BATCH)
        explained = explain_captions(model, images[part], texts[part], vocab, num_alternatives=1)
        for words, probabilities, others in zip(explained.captions, explained.probabilities, explained.alternatives):
            pairs = zip(words, probabilities, (other for (other,) in others))
            predicted = [word if p >= q else other for word, p, (other, q) in pairs]
            forced.append(tokenize(" ".join(word for word in predicted if word != "<END>")))
    return forced


def format_inflation(ways):
    """A table of what `inflate_bleu` returns, as text: BLEU-1 and BLEU-4, times 100."""
    width = max(map(len, ways))
    columns = f"{'proper':>8}{'inflated':>10}{'gain':>7}"
    lines = [f"{'':{width}}{'BLEU-1':>{len(columns)}}{'BLEU-4':>{len(columns)}}", f"{'':{width}}{columns}{columns}"]
    for name, (proper, inflated) in ways.items():
        pairs = [(100 * proper[n], 100 * inflated[n]) for n in (0, 3)]
        lines.append(f"{name:{width}}" + "".join(f"{a:8.1f}{b:10.1f}{b - a:+7.1f}" for a, b in pairs))
    return "\n".join(lines)


def _count(data, pictures):
    return min(pictures, len(data["val_images"]), len(data["train_images"]))


def _references(data, split, count):
    return [[tokenize(text) for text in texts] for texts in references_of(data, range(count), split)]


def _caption(model, images, data):
    captions = captions_alone(caption_pictures(model, images, data["vocab"]["idx_to_token"]))
    return [tokenize(text) for text in captions]


def _score(captions, references):
    """BLEU-1 to 4 over all captions, and of each caption."""
    scorer = import_scorers()[0](n=4)
    for words, texts in zip(captions, references):
        scorer += " ".join(words), [" ".join(text) for text in texts]
    return scorer.compute_score(option="closest")
