"""CIDEr-D of single captions is what the field's scorer gives for all of them together."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider.cider_scorer import CiderScorer

from eecs598.metrics import evaluate_captions
from eecs598.metrics.cider import CiderD

WORDS = st.lists(st.sampled_from(["a", "dog", "red", "ball", "runs", "on"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=4)), min_size=1, max_size=6))
def test_cider_d_is_the_fields_scorers(pictures):
    assume(any(words for _, texts in pictures for words in texts))  # else the field's scorer fails
    field = CiderScorer(n=4)
    for words, texts in pictures:
        field += " ".join(words), [" ".join(text) for text in texts]
    wanted = pytest.approx([float(score) for score in field.compute_score()[1]], abs=1e-9)
    scorer = CiderD([texts for _, texts in pictures])
    assert [scorer.score(i, words) for i, (words, _) in enumerate(pictures)] == wanted
    captions = [" ".join(words) for words, _ in pictures]
    references = [[" ".join(words) for words in texts] for _, texts in pictures]
    assert evaluate_captions(captions, references).pictures["CIDEr-D"] == wanted


def test_words_can_be_anything_that_can_be_counted():
    by_id, by_word = CiderD([[(4, 5)], [(6,)]]), CiderD([[["a", "dog"]], [["cat"]]])
    assert by_id.score(0, (4, 5)) == by_word.score(0, ["a", "dog"]) > 0
