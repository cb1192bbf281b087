"""Whole files in the form of the published assignment, as the test of the grader and of the notebook takes them.

Each is the student's file of tests/support/student with habits of those that finish the published notebook: RIGHT files
pass all of its cells; WRONG ones, by name, lose the parts that stand beside them. OLDER is a file of 2019.
"""

import textwrap

from support import ROOT

STUDENT = (ROOT / "tests" / "support" / "student" / "rnn_lstm_captioning.py").read_text(encoding="utf-8")
LOSSES = ("rnn_captioner_loss", "lstm_captioner_loss", "attn_captioner_loss")
SAMPLES = ("rnn_captioner_sample", "lstm_captioner_sample", "attn_captioner_sample")


def change(source, *changes):
    """The source with pieces replaced: (old, new), each of which must be there."""
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


def append(source, code):
    return f"{source}\n\n{textwrap.dedent(code)}"


# Nearly every file hands ignore_index on, which takes no None, and has the grid of 4 x 4 written in.
USUAL = change(
    STUDENT,
    ("    if ignore_index is None:\n        ignore_index = -100\n", ""),
    (
        "    N, H, D_a, D_b = A.shape\n    A_flat = A.reshape(N, H, -1)\n",
        "    N, H, D_a, _ = A.shape\n    A_flat = A.reshape(N, H, D_a * D_a)\n",
    ),
    ("weights.reshape(N, D_a, D_b)", "weights.reshape(N, D_a, D_a)"),
)

# What a captioner's affine map of the features may be.
LINEAR = "self.affine = nn.Linear(input_dim, hidden_dim)"
CONVOLUTION = "self.affine = nn.Conv2d(input_dim, hidden_dim, kernel_size=1)"
POOLED, POOLED_IN_SAMPLE = (
    '        if self.cell_type != "attn":\n            features = features.mean(dim=(2, 3))\n',
    "h = self.affine(features.mean(dim=(2, 3)))",
)


def with_features(linear, pooled="features", convolution=CONVOLUTION):
    """Changes of USUAL to another way from the features to the first state. pooled: what goes into the affine map."""
    return [
        (LINEAR, linear),
        (CONVOLUTION, convolution),
        (POOLED, POOLED.replace("features.mean(dim=(2, 3))", pooled)),
        (POOLED_IN_SAMPLE, f"h = self.affine({pooled})"),
    ]


# Habits, as changes of USUAL. Each of FEATURES is another way from the features to the first state.
FEATURES = {
    "as most are": [],
    "400 channels written into the layers": with_features(
        "self.affine = nn.Linear(400, hidden_dim)",
        "features.mean(dim=(2, 3))",
        "self.affine = nn.Conv2d(400, hidden_dim, 1)",
    ),
    "a convolution for every cell, then the mean": [
        (LINEAR, CONVOLUTION.replace("input_dim", "400")),
        (POOLED, ""),
        ("self.affine(features))\n        return temporal", "self._start_of(features))\n        return temporal"),
        (POOLED_IN_SAMPLE, "h = self._start_of(features)"),
        (
            "    def sample(self, images, max_length=15):\n",
            "    def _start_of(self, features):\n        A = self.affine(features)\n"
            '        return A if self.cell_type == "attn" else A.mean(dim=(2, 3))\n\n'
            "    def sample(self, images, max_length=15):\n",
        ),
    ],
    "the grid flattened": with_features(
        "self.affine = nn.Linear(input_dim * 16, hidden_dim)", "features.view(features.shape[0], -1)"
    ),
    "the grid flattened in a Sequential": with_features(
        "self.affine = nn.Sequential(nn.Flatten(), nn.Linear(400 * 4 * 4, hidden_dim))"
    ),
    "pooled by 4": with_features(
        "self.pool = nn.AvgPool2d(4); self.affine = nn.Linear(input_dim, hidden_dim)", "self.pool(features).flatten(1)"
    ),
    "pooled by 4 in a Sequential": with_features(
        "self.affine = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(start_dim=1), nn.Linear(400, hidden_dim))"
    ),
    "parameters of its own": [
        *with_features("self.affine = Affine(input_dim, hidden_dim)", "features.mean(dim=(2, 3))"),
        (
            "class CaptioningRNN(",
            textwrap.dedent("""
                class Affine(nn.Module):
                    def __init__(self, C, H):
                        super().__init__()
                        self.kernel, self.offset = nn.Parameter(torch.randn(H, C) / 20), nn.Parameter(torch.zeros(H))

                    def forward(self, x):
                        return x.mm(self.kernel.t()) + self.offset


                class CaptioningRNN(""").lstrip(),
        ),
    ],
}
OTHERS = {
    "unused layers": [
        (
            LINEAR,
            f"{LINEAR}\n            self.old_affine = nn.Linear(input_dim * 16, hidden_dim)\n"
            "            self.dropout = nn.Dropout(0.5)",
        ),
        (
            "self.temporal = nn.Linear(hidden_dim, vocab_size)",
            "self.temporal = nn.Linear(hidden_dim, vocab_size)\n        self.conv = nn.Conv2d(input_dim, 8, 3)",
        ),
    ],
    "other names": [
        ("self.cnn = ImageEncoder", "self.feature_extractor = ImageEncoder"),
        ("self.cnn(", "self.feature_extractor("),
        ("self.affine", "self.image_proj"),
        ("self.temporal", "self.out_layer"),
        ("self.embed", "self.wordEmbedding"),
        ("self.rnn", "self.core"),
    ],
    "a squeeze that drops a batch of one, prints, float32 states": [
        (".squeeze(1).div(math.sqrt(H))", ".squeeze().div(math.sqrt(H))"),
        (
            "hn = torch.zeros((x.shape[0], x.shape[1], h0.shape[1]), dtype=h0.dtype, device=h0.device)",
            "hn = torch.zeros(x.shape[0], x.shape[1], h0.shape[1]).to(x.device)",
        ),
        (
            "    captions_out = captions[:, 1:]\n",
            "    captions_out = captions[:, 1:]\n        print(captions_out.shape)\n",
        ),
    ],
    "nn.Embedding": [("self.embed = WordEmbedding(", "self.embed = nn.Embedding(")],
    "the loss in a loop over time": [
        (
            "class CaptioningRNN(",
            textwrap.dedent("""
                def temporal_softmax_loss(x, y, ignore_index=None):
                    loss = 0
                    for t in range(x.shape[1]):
                        loss += F.cross_entropy(x[:, t], y[:, t], ignore_index=ignore_index, reduction="sum")
                    return loss / x.shape[0]


                class CaptioningRNN(""").lstrip(),
        )
    ],
    "a 4 x 4 grid in numbers": [
        ("A.reshape(N, H, D_a * D_a)", "A.view(N, H, 16)"),
        ("weights.reshape(N, D_a, D_a)", "weights.view(-1, 4, 4)"),
    ],
    "an image encoder that always downloads": [
        (
            "weights = torchvision.models.RegNet_X_400MF_Weights.IMAGENET1K_V1 if pretrained else None",
            "weights = torchvision.models.RegNet_X_400MF_Weights.IMAGENET1K_V1",
        ),
        ("ImageEncoder(pretrained=image_encoder_pretrained)", "ImageEncoder()"),
    ],
}
RIGHT = {name: change(USUAL, *changes) for name, changes in (FEATURES | OTHERS).items()}
# The same habits in fewer files, for what takes long: one way to the first state in each, of those most unlike.
TOGETHER = {
    " and ".join([feature, *others]): change(
        USUAL, *FEATURES[feature], *(each for other in others for each in OTHERS[other])
    )
    for feature, *others in [
        ("as most are", "unused layers", "nn.Embedding"),
        ("400 channels written into the layers", "other names"),
        ("a convolution for every cell, then the mean", "a squeeze that drops a batch of one, prints, float32 states"),
        ("pooled by 4", "the loss in a loop over time", "a 4 x 4 grid in numbers"),
        ("the grid flattened in a Sequential", "an image encoder that always downloads"),
    ]
}

WRONG = {
    "loss averaged over time": (
        ["temporal_softmax_loss"],
        change(USUAL, ('reduction="sum") / N', 'reduction="sum") / (N * T)')),
    ),
    "sum instead of mean over the batch": (
        ["temporal_softmax_loss"],
        change(USUAL, ('reduction="sum") / N', 'reduction="sum")')),
    ),
    "softmax of the loss over the wrong axis": (
        ["temporal_softmax_loss"],
        append(
            USUAL,
            """
        def temporal_softmax_loss(x, y, ignore_index=None):
            log_p = F.log_softmax(x, dim=1).reshape(-1, x.shape[2])
            return F.nll_loss(log_p, y.reshape(-1), ignore_index=ignore_index, reduction="sum") / x.shape[0]
    """,
        ),
    ),
    "h0 and c0 from the wrong mean": (
        ["attention_lstm_module"],
        change(
            USUAL,
            (
                "        h0 = A.mean(dim=(2, 3))\n        c0 = h0\n",
                "        h0 = A[:, :, 0].mean(dim=2)\n        c0 = h0\n",
            ),
        ),
    ),
    "gate order": (
        ["lstm_module"],
        change(
            USUAL,
            (
                "o = torch.sigmoid(a[:, 2 * H : 3 * H])\n        g = torch.tanh(a[:, 3 * H :])",
                "g = torch.tanh(a[:, 2 * H : 3 * H])\n        o = torch.sigmoid(a[:, 3 * H :])",
            ),
        ),
    ),
    "softmax of the attention over the wrong axis": (
        ["dot_product_attention"],
        change(USUAL, ("F.softmax(weights, dim=1)", "F.softmax(weights, dim=0)")),
    ),
    "1 / sqrt(H) missing": (
        ["dot_product_attention"],
        change(USUAL, (".div(math.sqrt(H))\n    weights", "\n    weights")),
    ),
    "the cell state not carried while sampling": (
        ["lstm_captioner_sample"],
        change(
            USUAL,
            (
                "                h, c = self.rnn.step_forward(x, h, c)\n",
                "                h, _ = self.rnn.step_forward(x, h, c)\n",
            ),
        ),
    ),
    "the start word fed again at each step": (
        list(SAMPLES),
        change(
            USUAL,
            (
                "            words = self.temporal(h).argmax(dim=1)\n            captions[:, t] = words",
                "            captions[:, t] = self.temporal(h).argmax(dim=1)",
            ),
        ),
    ),
    "the projection to the vocabulary forgotten": (
        list(LOSSES),
        change(USUAL, ("temporal_softmax_loss(self.temporal(hn),", "temporal_softmax_loss(hn,")),
    ),
    "the projection of the features forgotten while sampling": (
        ["attn_captioner_sample"],
        change(USUAL, ("            A = self.affine(features)\n", "            A = features\n")),
    ),
    "bias summed over the wrong axis": (
        ["rnn_step_backward"],
        change(USUAL, ("db = torch.sum(dtanh, dim=0)", "db = torch.sum(dtanh, dim=1)")),
    ),
    # The published cell does not see it in the attention captioner: there it is advice.
    "teacher forcing by one place off": (
        list(LOSSES[:2]),
        change(USUAL, ("captions_in = captions[:, :-1]", "captions_in = captions[:, 1:]")),
    ),
    "the state not carried over the sequence": (
        ["rnn_forward"],
        append(
            USUAL,
            """
        def rnn_forward(x, h0, Wx, Wh, b):
            steps = [rnn_step_forward(x[:, t], h0, Wx, Wh, b) for t in range(x.shape[1])]
            return torch.stack([h for h, _ in steps], dim=1), [cache for _, cache in steps]
    """,
        ),
    ),
}

OLDER = textwrap.dedent("""
    import math
    import torch
    from torch import nn
    import torch.nn.functional as F
    from a4_helper import *


    def rnn_step_forward(x, prev_h, Wx, Wh, b):
        next_h = torch.tanh(x.mm(Wx) + prev_h.mm(Wh) + b)
        return next_h, (x, prev_h, Wx, Wh, next_h)


    def rnn_step_backward(dnext_h, cache):
        x, prev_h, Wx, Wh, next_h = cache
        da = dnext_h * (1 - next_h ** 2)
        return da.mm(Wx.t()), da.mm(Wh.t()), x.t().mm(da), prev_h.t().mm(da), da.sum(dim=0)


    def temporal_softmax_loss(x, y, ignore_index=-100):
        N, T, V = x.shape
        return F.cross_entropy(x.reshape(N * T, V), y.reshape(N * T), ignore_index=ignore_index, reduction="sum") / N


    class WordEmbedding(nn.Module):
        def __init__(self, vocab_size, embed_size, device="cpu", dtype=torch.float32):
            super().__init__()
            self.W_embed = nn.Parameter(torch.randn(vocab_size, embed_size, device=device, dtype=dtype))

        def forward(self, x):
            return self.W_embed[x]


    def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b, attn=None, Wattn=None):
        a = x.mm(Wx) + prev_h.mm(Wh) + b
        if attn is not None:
            a = a + attn.mm(Wattn)
        i, f, o, g = a.chunk(4, dim=1)
        next_c = torch.sigmoid(f) * prev_c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(next_c), next_c


    def lstm_forward(x, h0, Wx, Wh, b):
        prev_h, prev_c, hn = h0, torch.zeros_like(h0), []
        for t in range(x.shape[1]):
            prev_h, prev_c = lstm_step_forward(x[:, t], prev_h, prev_c, Wx, Wh, b)
            hn.append(prev_h)
        return torch.stack(hn, dim=1)


    def dot_product_attention(prev_h, A):
        N, H, D_a, _ = A.shape
        cells = A.view(N, H, D_a * D_a)
        weights = prev_h.view(N, 1, H).bmm(cells).div(math.sqrt(H)).softmax(dim=2)
        return cells.bmm(weights.view(N, D_a * D_a, 1)).view(N, H), weights.view(N, D_a, D_a)


    def attention_forward(x, A, Wx, Wh, Wattn, b):
        prev_h = prev_c = A.mean(dim=(2, 3))
        hn = []
        for t in range(x.shape[1]):
            attn, _ = dot_product_attention(prev_h, A)
            prev_h, prev_c = lstm_step_forward(x[:, t], prev_h, prev_c, Wx, Wh, b, attn, Wattn)
            hn.append(prev_h)
        return torch.stack(hn, dim=1)


    class CaptioningRNN(nn.Module):
        def __init__(self, word_to_idx, input_dim=512, wordvec_dim=128, hidden_dim=128, cell_type="rnn", device="cpu",
                     ignore_index=None, dtype=torch.float32):
            super().__init__()
            self.featureExtractor = FeatureExtractor(pooling=True, device=device, dtype=dtype)
""")
