"""Four ways to inflate BLEU-4: each does what it says, and nothing else."""

import pytest
import torch
from support.captioner import CELLS, VOCABULARY, WORDS, batch, make_model

from eecs598 import inflation
from eecs598.metrics import score_captions

CAPTIONS = [["a", "dog", "runs", "on", "sand"], ["two", "men", "play"]]
REFERENCES = [[["a", "dog", "runs", "on", "a", "beach"], ["the", "dog"]], [["two", "men", "play", "football"]]]


def test_bleu_is_the_score_of_the_texts():
    texts = [" ".join(words) for words in CAPTIONS]
    references = [[" ".join(words) for words in several] for several in REFERENCES]
    scores = score_captions(texts, references)
    assert inflation.bleu(CAPTIONS, REFERENCES) == pytest.approx([scores[f"BLEU-{n}"] for n in (1, 2, 3, 4)])
    assert 0.1 < scores["BLEU-4"] < scores["BLEU-1"] < 0.9


def test_a_full_stop_adds_one_right_word_to_each_caption():
    captions, references = inflation.add_full_stop(CAPTIONS, REFERENCES)
    assert captions[1] == ["two", "men", "play", "."] and references[1] == [["two", "men", "play", "football", "."]]
    assert inflation.bleu(captions, references)[0] > inflation.bleu(CAPTIONS, REFERENCES)[0]  # 9 of 10, not 7 of 8
    assert CAPTIONS[1][-1] == "play"  # the originals are left as they were


def test_the_references_choose_the_best_of_several():
    worse = [["some", "words"], ["two", "men"]]
    candidates = [[bad, good] for bad, good in zip(worse, CAPTIONS)]
    assert inflation.choose_by_references(candidates, REFERENCES) == CAPTIONS
    assert inflation.choose_by_references([[["x"], ["y"]]], [[["z"]]]) == [["x"]]  # equal: the first


@CELLS
def test_teacher_forcing_takes_the_likeliest_word_after_a_persons_words(cell_type, monkeypatch):
    monkeypatch.setattr(inflation, "BATCH", 3)  # so that there are two batches
    model, (images, captions) = make_model(cell_type), batch(5)
    model.word_embedding.W_embed.data *= 20  # so that the words before matter
    vocab = {"idx_to_token": WORDS, "token_to_idx": VOCABULARY}
    forced = inflation.teacher_force(model, images, captions, vocab)
    for words, image, caption in zip(forced, images, captions):
        count, expected = int((caption == VOCABULARY["<END>"]).nonzero()), []
        state = model.begin(image[None])
        for word in caption[:count]:  # from <START> to the last word before <END>
            scores, state, _ = model.step(word[None], state)
            expected.append(WORDS[scores.argmax()])
        expected = [inflation.tokenize(word) for word in expected if word != "<END>"]
        assert words == [word for each in expected for word in each]
    assert len({tuple(words) for words in forced}) > 2


def test_each_row_compares_the_same_captioner_with_itself(capsys):
    model, (images, captions) = make_model("attn"), batch(6)
    model.output_projection.bias.data[VOCABULARY["<NULL>"]] = model.output_projection.bias.data[3] = -50
    references = [["a red ball", "a ball on grass"]] * 6
    data = {"val_images": images, "train_images": images, "val_captions": captions, "val_references": references,
            "train_references": references, "vocab": {"idx_to_token": WORDS, "token_to_idx": VOCABULARY}}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inflation, "BEAM", 2)
        ways = inflation.inflate_bleu(model, data, pictures=4)
        patch.setattr(inflation, "missing_steps", lambda model: ["begin", "step"])  # as the published assignment's
        assert inflation.inflate_bleu(model, data, 4) == {name: ways[name] for name in ("full stop", "train pictures")}
    assert "no begin and no step: best of several, teacher forcing" in capsys.readouterr().out
    assert list(ways) == ["full stop", "best of several", "train pictures", "teacher forcing"]
    assert ways["train pictures"].proper == ways["train pictures"].inflated  # here they are the same pictures
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inflation, "BEAM", 2)
        patch.setattr(inflation, "choose_by_references", lambda candidates, references: [["ball"]] * len(candidates))
        chosen = inflation.inflate_bleu(model, data, 4)["best of several"]
    assert chosen.inflated == inflation.bleu([["ball"]] * 4, [[text.split() for text in references[0]]] * 4)
    assert chosen.proper == ways["best of several"].proper
    assert ways["full stop"].proper == ways["teacher forcing"].proper == ways["train pictures"].proper
    assert ways["teacher forcing"].inflated != ways["teacher forcing"].proper
    table = inflation.format_inflation({"a way": inflation.Inflated([0.5, 0, 0, 0.1234], [0.4, 0, 0, 0.15])})
    assert table.splitlines()[-1].split() == ["a", "way", "50.0", "40.0", "-10.0", "12.3", "15.0", "+2.7"]


def test_splits_with_another_number_of_references_are_compared_with_equally_many():
    model, (images, captions) = make_model("rnn"), batch(4)
    data = {"val_images": images, "train_images": images, "val_captions": captions,
            "val_references": [["a ball", "a red ball on grass"]] * 4, "train_references": [["a ball"]] * 4,
            "vocab": {"idx_to_token": WORDS, "token_to_idx": VOCABULARY}}  # fmt: skip
    proper, inflated = inflation.leak_pictures(model, data)
    assert proper == inflated


def test_the_leak_scores_the_pictures_of_each_split_against_their_own_references(monkeypatch):
    said = ["a red ball on grass", "a dog runs on sand", "two men play a game", "a dog runs on sand"]
    monkeypatch.setattr(inflation, "caption_pictures", lambda model, images, words: [said[i] for i in images])
    data = {"val_images": torch.tensor([0, 1]), "train_images": torch.tensor([2, 3]), "vocab": {"idx_to_token": WORDS},
            "val_references": [["a red ball on a lawn"], ["the cat"]],
            "train_references": [[text] for text in said[2:]]}  # fmt: skip
    proper, inflated = inflation.leak_pictures(None, data)
    assert inflated == pytest.approx([1, 1, 1, 1])
    assert proper == inflation.bleu([text.split() for text in said[:2]], [[["a", "red", "ball", "on", "a", "lawn"]],
                                                                          [["the", "cat"]]])  # fmt: skip
