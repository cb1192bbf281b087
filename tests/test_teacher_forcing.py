"""Word probabilities and attention maps of given captions are those of the model, step by step."""

import pytest
import torch

import rnn_lstm_captioning as rlc
from eecs598.encoders import get_encoder, set_encoder
from eecs598.teacher_forcing import explain_captions
from eecs598.vis import attention_viewer
from helpers import caption_pictures


@pytest.fixture
def make_model(monkeypatch, mean_encoder):
    """Builds a captioner of small pictures whose captions differ from picture to picture."""
    monkeypatch.setattr(rlc, "ImageEncoder", lambda pretrained=True: mean_encoder)

    def make(cell_type, vocab):
        torch.manual_seed(0)
        model = rlc.CaptioningRNN(vocab["token_to_idx"], 3, 5, 8, cell_type)
        for layer in (model.feature_projection, model.output_projection):
            layer.weight.data *= 6
        return set_encoder(model, mean_encoder)

    return make


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "attn"])
def test_explanation_is_the_models_own(tiny_data, make_model, cell_type):
    vocab, images = tiny_data["vocab"], tiny_data["val_images"]
    model, names = make_model(cell_type, vocab).train(), vocab["idx_to_token"]
    captions = ["a red picture", ["green", "<END>"], "", "picture picture a a a"]
    explained = explain_captions(model, images, captions, vocab, num_alternatives=2)
    said = ["a red picture", "green", "", "picture picture a a a"]
    assert [words[:-1] for words in explained.captions] == [text.split() for text in said]
    assert (explained.weights is None) == (cell_type != "attn") and model.training
    for n, words in enumerate(explained.captions):
        assert words[-1] == "<END>"
        state, before = model.begin(images[n : n + 1]), torch.tensor([model.start])
        for t, word in enumerate(words):
            scores, state, weights = model.step(before, state)
            before = torch.tensor([names.index(word)])
            probs = scores[0].detach().softmax(0)
            assert explained.probabilities[n][t] == pytest.approx(float(probs[before]), rel=1e-4)
            order = [names[i] for i in probs.argsort(descending=True) if names[i] != word]
            assert [other for other, _ in explained.alternatives[n][t]] == order[:2]
            for other, p in explained.alternatives[n][t]:
                assert p == pytest.approx(float(probs[names.index(other)]), rel=1e-4)
            if cell_type == "attn":
                torch.testing.assert_close(explained.weights[n][t], weights[0].detach())


def test_it_is_explained_in_evaluation_mode(tiny_data, make_model):
    """With dropout, or a normalization that learns, a caption would else depend on chance or on its batch."""
    model, modes = make_model("attn", tiny_data["vocab"]).train(), []
    get_encoder(model).register_forward_hook(lambda module, *_: modes.append(module.training))
    explain_captions(model, tiny_data["val_images"][:1], ["a"], tiny_data["vocab"])
    assert modes == [False] and model.training


@pytest.mark.parametrize("frozen", [False, True])
def test_a_models_own_caption_is_its_likeliest_words(tiny_data, make_model, frozen):
    vocab, images = tiny_data["vocab"], tiny_data["val_images"]
    model = make_model("attn", vocab)
    model.image_encoder.requires_grad_(not frozen)
    texts, maps = caption_pictures(model, images, vocab["idx_to_token"], max_length=6)
    assert len(set(texts)) > 1
    explained = explain_captions(model, images, texts, vocab)
    for n, text in enumerate(texts):
        words = explained.captions[n][: len(text.split())]
        assert " ".join(words) == text
        torch.testing.assert_close(explained.weights[n][: len(words)], maps[n, : len(words)])
        for p, others in zip(explained.probabilities[n], explained.alternatives[n][: len(words)]):
            assert p >= others[0][1]
    page = attention_viewer(images, **explained._asdict()).page  # takes it as it is
    assert page.count('"probability":') == sum(map(len, explained.captions))


def test_unknown_words(tiny_data, make_model):
    vocab, images = tiny_data["vocab"], tiny_data["val_images"][:1]
    assert explain_captions(make_model("rnn", vocab), images, ["a zebra"], vocab).captions == [["a", "<UNK>", "<END>"]]
    without = {"token_to_idx": {word: i for word, i in vocab["token_to_idx"].items() if word != "<UNK>"},
               "idx_to_token": vocab["idx_to_token"]}  # fmt: skip
    with pytest.raises(ValueError, match="'zebra' is not in the vocabulary"):
        explain_captions(make_model("rnn", vocab), images, ["a zebra"], without)


@pytest.mark.parametrize(
    "count, captions, options, seen",
    [
        (1, "a red picture", {}, "captions 'a red picture'"),
        (2, ["a"], {}, "2 pictures, captions ['a']"),
        (0, [], {}, "0 pictures"),
        (1, ["a"], {"num_alternatives": 99}, "num_alternatives is 99"),
        (1, ["a"], {"num_alternatives": -1}, "num_alternatives is -1"),
    ],
)
def test_bad_captions_are_a_one_line_error(tiny_data, make_model, count, captions, options, seen):
    vocab = tiny_data["vocab"]
    with pytest.raises(ValueError) as error:
        explain_captions(make_model("attn", vocab), tiny_data["val_images"][:count], captions, vocab, **options)
    assert seen in str(error.value) and "\n" not in str(error.value)


def test_a_captioner_without_steps_is_refused(tiny_data):
    with pytest.raises(ValueError, match="Identity has no begin and no step"):
        explain_captions(torch.nn.Identity(), tiny_data["val_images"][:1], ["a"], tiny_data["vocab"])
