"""Scores of captions: the field's own, without Java."""

import json
import math
import subprocess
import sys
from collections import Counter

import pytest
from support import ROOT

from eecs598 import metrics
from eecs598.metrics import evaluate_captions, format_scores, rank_captions, score_captions
from eecs598.metrics.ptb import tokenize

REFERENCES = [
    ["A dog runs on the beach.", "The brown dog is running on sand."],
    ["Two men play football.", "Men are playing with a ball on the grass!", "Two players"],
    ["A child's red ball (and a bat)", "a red ball"],
]
CAPTIONS = ["a dog is running on the beach", "two men play the ball", "a red ball"]


def official_scores(captions, references):
    """pycocoevalcap as COCO's evaluation calls it, from tokens: {score: value} and CIDEr-D of each picture."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    res = {i: [" ".join(words)] for i, words in enumerate(captions)}
    gts = {i: [" ".join(words) for words in texts] for i, texts in enumerate(references)}
    scores = {f"BLEU-{n}": score for n, score in enumerate(Bleu(4).compute_score(gts, res, verbose=0)[0], 1)}
    cider, each = Cider().compute_score(gts, res)
    return {**scores, "CIDEr-D": cider, "ROUGE-L": Rouge().compute_score(gts, res)[0]}, each


def test_scores_of_thousands_of_real_captions_are_those_of_the_java_pipeline(real_data, stanford_tokens):
    path = real_data / "flickr8k" / "captions_train.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    texts = {}
    for entry in json.loads(path.read_bytes())["annotations"]:
        texts.setdefault(entry["image_id"], []).append(entry["caption"])
    texts = [captions for captions in texts.values() if len(captions) == 5][:1000]
    words = iter(stanford_tokens([caption for captions in texts for caption in captions]))
    words = [[next(words) for _ in captions] for captions in texts]
    expected, each = official_scores([tokens[0] for tokens in words], [tokens[1:] for tokens in words])
    found = evaluate_captions([captions[0] for captions in texts], [captions[1:] for captions in texts])
    assert {name: found.scores[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert found.pictures["CIDEr-D"] == pytest.approx(list(each), abs=1e-3)
    assert 0.1 < expected["BLEU-4"] < 0.3  # it is people that are compared with people here


def test_bleu_by_hand():
    scores = score_captions(["the the the cat"], [["the cat sat down", "a cat the the bird is here"]])
    # "the" counts twice at most: 3 of 4 words; "the the" and "the cat" once each, 2 of 3 pairs; of no run of three
    assert scores["BLEU-1"] == pytest.approx(3 / 4)  # as long as the closest reference: nothing is taken off
    assert scores["BLEU-2"] == pytest.approx(math.sqrt(3 / 4 * 2 / 3))
    assert scores["BLEU-3"] < 1e-4
    short = score_captions(["the cat"], [["the cat sat down"]])
    assert short["BLEU-1"] == pytest.approx(math.exp(1 - 4 / 2))  # the brevity penalty


def test_bleu_counts_over_all_pictures_and_rouge_is_a_mean():
    scores, pictures = evaluate_captions(["a dog", "cat"], [["a dog"], ["the bird flies off"]])
    assert scores["BLEU-1"] == pytest.approx(2 / 3 * math.exp(1 - 6 / 3))
    assert pictures["ROUGE-L"] == pytest.approx([1, 0]) and scores["ROUGE-L"] == pytest.approx(0.5)
    # the longest common subsequence of "a b c" and "a x c" has 2 words: precision and recall 2 / 3, so F too
    assert score_captions(["a b c"], [["a x c"]])["ROUGE-L"] == pytest.approx(2 / 3)


def cider_by_the_paper(caption, references, corpus):
    """CIDEr of one picture: equations 1 to 3 of the paper, as plainly as possible."""

    def runs(words, n):
        return Counter(zip(*(words[i:] for i in range(n))))

    def weights(words, n):
        counts = runs(words, n)
        frequency = {run: sum(any(run in runs(text, n) for text in texts) for texts in corpus) for run in counts}
        return {run: count * math.log(len(corpus) / max(1, frequency[run])) for run, count in counts.items()}

    total = 0
    for n in range(1, 5):
        for text in references:
            a, b = weights(caption, n), weights(text, n)
            lengths = math.sqrt(sum(w * w for w in a.values()) * sum(w * w for w in b.values()))
            total += sum(a[run] * b.get(run, 0) for run in a) / lengths if lengths else 0
    return 10 * total / (4 * len(references))


def test_cider_is_the_papers_and_cider_d_punishes_what_it_does_not():
    corpus = [[tokenize(text) for text in texts] for texts in REFERENCES]
    found = evaluate_captions(CAPTIONS, REFERENCES).pictures["CIDEr"]
    wanted = [cider_by_the_paper(tokenize(caption), texts, corpus) for caption, texts in zip(CAPTIONS, corpus)]
    assert found == pytest.approx(wanted, rel=1e-9)
    texts = "dog runs on the beach", "dog runs on the beach " * 3
    honest, repeated = (evaluate_captions([text, *CAPTIONS[1:]], REFERENCES).pictures for text in texts)
    assert repeated["CIDEr"][0] > 0.8 * honest["CIDEr"][0]
    assert repeated["CIDEr-D"][0] < 0.2 * honest["CIDEr-D"][0]


def test_the_best_caption_is_one_that_everyone_gave():
    same = [["a red ball on grass"] * 3, ["two men play football here"] * 2]
    scores = score_captions([texts[0] for texts in same], same)
    assert all(scores[f"BLEU-{n}"] == pytest.approx(1) for n in range(1, 5))
    assert scores["ROUGE-L"] == pytest.approx(1) and scores["CIDEr-D"] == scores["CIDEr"] == pytest.approx(10)


def test_case_and_punctuation_do_not_count():
    plain = ["a dog 's ball", "two men play", "red ball"]
    loud = ["A dog's ball!", "Two men, play.", '"Red" ball...']
    assert score_captions(plain, REFERENCES) == score_captions(loud, REFERENCES)


def test_captions_without_a_word_score_nothing():
    scores = score_captions(["", ".", ""], REFERENCES)
    assert set(scores) == set(metrics.SCORES) and max(scores.values()) < 1e-6


@pytest.mark.parametrize("captions, references, message", [
    ([], [], "no captions to score"),
    (["a"], [["a"], ["b"]], "1 captions but references for 2 pictures"),
    (["a", "b"], [["a"], []], "picture 1 has no references"),
    ([7], [["a"]], r"captions\[0\] is 7; it must be a string"),
    (["a", "b"], [["."], [""]], "no reference contains a word"),
    (["a"], ["a dog"], r"references\[0\] is 'a dog'; it must be a list of strings"),
])  # fmt: skip
def test_what_cannot_be_scored_is_named(captions, references, message):
    with pytest.raises(ValueError, match=message):
        score_captions(captions, references)


def test_without_the_scorer_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="pip install pycocoevalcap"):
        score_captions(["a"], [["a"]])


def test_no_java_and_nothing_heavy():
    code = """
import subprocess, sys
def fail(*args, **kwargs):
    raise SystemExit("a program was started")
subprocess.Popen = fail
from eecs598.metrics import score_captions
score_captions(["a dog", "a cat"], [["a dog"], ["the cat"]])
print(*sorted({"torch", "matplotlib", "pycocotools", "scipy", "pandas"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_a_table_and_the_best_first():
    found = evaluate_captions(CAPTIONS, REFERENCES)
    assert rank_captions(found)[0] == 2 and sorted(rank_captions(found)) == [0, 1, 2]
    lines = format_scores({"attn": found.scores}).splitlines()
    assert lines[0].split() == ["model", *metrics.SCORES] and len(lines[0]) == len(lines[1])
    cells = dict(zip(metrics.SCORES, map(float, lines[1].split()[1:])))
    assert cells["BLEU-1"] == pytest.approx(100 * found.scores["BLEU-1"], abs=0.05)
    assert cells["CIDEr-D"] == pytest.approx(found.scores["CIDEr-D"], abs=0.0005)
