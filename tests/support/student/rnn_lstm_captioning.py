"""A student's answer to the published assignment (EECS 498-007 WI2022, A5 part 1), in a student's style.

Only the published names, nothing of this project. `tests/lesson/test_student_file.py` puts it in the place of ours.
Scripts outside the project find it by the link `tests/student`.
"""

import math

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor


class ImageEncoder(nn.Module):
    def __init__(self, pretrained: bool = True, verbose: bool = True):
        super().__init__()
        weights = torchvision.models.RegNet_X_400MF_Weights.IMAGENET1K_V1 if pretrained else None
        self.cnn = torchvision.models.regnet_x_400mf(weights=weights)
        self.backbone = create_feature_extractor(self.cnn, return_nodes={"trunk_output.block4": "c5"})
        dummy_out = self.backbone(torch.randn(2, 3, 64, 64))["c5"]
        self._out_channels = dummy_out.shape[1]
        if verbose:
            print("For input images in NCHW format, shape (2, 3, 64, 64)")
            print(f"Shape of output c5 features: {dummy_out.shape}")
        self.normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    @property
    def out_channels(self):
        return self._out_channels

    def forward(self, images: torch.Tensor):
        if images.dtype == torch.uint8:
            images = images.to(dtype=torch.float32) / 255.0
        return self.backbone(self.normalize(images))["c5"]


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    next_h = torch.tanh(x.mm(Wx) + prev_h.mm(Wh) + b)
    cache = (x, prev_h.clone(), Wx, Wh, next_h.clone())
    return next_h, cache


def rnn_step_backward(dnext_h, cache):
    x, prev_h, Wx, Wh, next_h = cache
    dtanh = dnext_h * (1 - next_h**2)
    dx = dtanh.mm(Wx.t())
    dprev_h = dtanh.mm(Wh.t())
    dWx = x.t().mm(dtanh)
    dWh = prev_h.t().mm(dtanh)
    db = torch.sum(dtanh, dim=0)
    return dx, dprev_h, dWx, dWh, db


def rnn_forward(x, h0, Wx, Wh, b):
    N, T, D = x.shape
    cache = []
    h = []
    prev_h = h0
    for t in range(T):
        prev_h, step_cache = rnn_step_forward(x[:, t, :], prev_h, Wx, Wh, b)
        h.append(prev_h)
        cache.append(step_cache)
    return torch.stack(h, dim=1), cache


def rnn_backward(dh, cache):
    N, T, H = dh.shape
    x, _, Wx, Wh, _ = cache[0]
    dx = torch.zeros((N, T, x.shape[1]), dtype=dh.dtype, device=dh.device)
    dWx = torch.zeros_like(Wx)
    dWh = torch.zeros_like(Wh)
    db = torch.zeros(H, dtype=dh.dtype, device=dh.device)
    dprev_h = torch.zeros((N, H), dtype=dh.dtype, device=dh.device)
    for t in range(T - 1, -1, -1):
        dx[:, t, :], dprev_h, dWx_t, dWh_t, db_t = rnn_step_backward(dh[:, t, :] + dprev_h, cache[t])
        dWx += dWx_t
        dWh += dWh_t
        db += db_t
    return dx, dprev_h.clone(), dWx, dWh, db


class RNN(nn.Module):
    def __init__(self, input_dim: int, hidden_dim: int):
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, hidden_dim).div(math.sqrt(input_dim)))
        self.Wh = nn.Parameter(torch.randn(hidden_dim, hidden_dim).div(math.sqrt(hidden_dim)))
        self.b = nn.Parameter(torch.zeros(hidden_dim))

    def forward(self, x, h0):
        hn, _ = rnn_forward(x, h0, self.Wx, self.Wh, self.b)
        return hn

    def step_forward(self, x, prev_h):
        next_h, _ = rnn_step_forward(x, prev_h, self.Wx, self.Wh, self.b)
        return next_h


class WordEmbedding(nn.Module):
    def __init__(self, vocab_size: int, embed_size: int):
        super().__init__()
        self.W_embed = nn.Parameter(torch.randn(vocab_size, embed_size).div(math.sqrt(vocab_size)))

    def forward(self, x):
        return self.W_embed[x]


def temporal_softmax_loss(x, y, ignore_index=None):
    N, T, V = x.shape
    if ignore_index is None:
        ignore_index = -100
    return F.cross_entropy(x.reshape(N * T, V), y.reshape(N * T), ignore_index=ignore_index, reduction="sum") / N


class LSTM(nn.Module):
    def __init__(self, input_dim: int, hidden_dim: int):
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, hidden_dim * 4).div(math.sqrt(input_dim)))
        self.Wh = nn.Parameter(torch.randn(hidden_dim, hidden_dim * 4).div(math.sqrt(hidden_dim)))
        self.b = nn.Parameter(torch.zeros(hidden_dim * 4))

    def step_forward(self, x: torch.Tensor, prev_h: torch.Tensor, prev_c: torch.Tensor):
        H = prev_h.shape[1]
        a = x.mm(self.Wx) + prev_h.mm(self.Wh) + self.b
        i = torch.sigmoid(a[:, :H])
        f = torch.sigmoid(a[:, H : 2 * H])
        o = torch.sigmoid(a[:, 2 * H : 3 * H])
        g = torch.tanh(a[:, 3 * H :])
        next_c = f * prev_c + i * g
        next_h = o * torch.tanh(next_c)
        return next_h, next_c

    def forward(self, x: torch.Tensor, h0: torch.Tensor):
        c0 = torch.zeros_like(h0)
        hn = torch.zeros((x.shape[0], x.shape[1], h0.shape[1]), dtype=h0.dtype, device=h0.device)
        prev_h, prev_c = h0, c0
        for t in range(x.shape[1]):
            prev_h, prev_c = self.step_forward(x[:, t, :], prev_h, prev_c)
            hn[:, t, :] = prev_h
        return hn


def dot_product_attention(prev_h, A):
    N, H, D_a, D_b = A.shape
    A_flat = A.reshape(N, H, -1)
    weights = prev_h.unsqueeze(1).bmm(A_flat).squeeze(1).div(math.sqrt(H))
    weights = F.softmax(weights, dim=1)
    attn = A_flat.bmm(weights.unsqueeze(2)).squeeze(2)
    return attn, weights.reshape(N, D_a, D_b)


class AttentionLSTM(nn.Module):
    def __init__(self, input_dim: int, hidden_dim: int):
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, hidden_dim * 4).div(math.sqrt(input_dim)))
        self.Wh = nn.Parameter(torch.randn(hidden_dim, hidden_dim * 4).div(math.sqrt(hidden_dim)))
        self.Wattn = nn.Parameter(torch.randn(hidden_dim, hidden_dim * 4).div(math.sqrt(hidden_dim)))
        self.b = nn.Parameter(torch.zeros(hidden_dim * 4))

    def step_forward(self, x: torch.Tensor, prev_h: torch.Tensor, prev_c: torch.Tensor, attn: torch.Tensor):
        a = x.mm(self.Wx) + prev_h.mm(self.Wh) + attn.mm(self.Wattn) + self.b
        i, f, o, g = torch.split(a, prev_h.shape[1], dim=1)
        i, f, o, g = torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o), torch.tanh(g)
        next_c = f * prev_c + i * g
        next_h = o * torch.tanh(next_c)
        return next_h, next_c

    def forward(self, x: torch.Tensor, A: torch.Tensor):
        h0 = A.mean(dim=(2, 3))
        c0 = h0
        hn = []
        prev_h, prev_c = h0, c0
        for t in range(x.shape[1]):
            attn, _ = dot_product_attention(prev_h, A)
            prev_h, prev_c = self.step_forward(x[:, t, :], prev_h, prev_c, attn)
            hn.append(prev_h.clone())
        return torch.stack(hn, dim=1)


class CaptioningRNN(nn.Module):
    def __init__(
        self,
        word_to_idx,
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        image_encoder_pretrained: bool = True,
        ignore_index=None,
    ):
        super().__init__()
        if cell_type not in {"rnn", "lstm", "attn"}:
            raise ValueError('Invalid cell_type "%s"' % cell_type)  # noqa: UP031
        self.cell_type = cell_type
        self.word_to_idx = word_to_idx
        self.idx_to_word = {i: w for w, i in word_to_idx.items()}
        vocab_size = len(word_to_idx)
        self._null = word_to_idx["<NULL>"]
        self._start = word_to_idx.get("<START>", None)
        self._end = word_to_idx.get("<END>", None)
        self.ignore_index = ignore_index

        self.cnn = ImageEncoder(pretrained=image_encoder_pretrained)
        self.embed = WordEmbedding(vocab_size, wordvec_dim)
        self.temporal = nn.Linear(hidden_dim, vocab_size)
        if cell_type == "attn":
            self.affine = nn.Conv2d(input_dim, hidden_dim, kernel_size=1)
            self.rnn = AttentionLSTM(wordvec_dim, hidden_dim)
        else:
            self.affine = nn.Linear(input_dim, hidden_dim)
            self.rnn = RNN(wordvec_dim, hidden_dim) if cell_type == "rnn" else LSTM(wordvec_dim, hidden_dim)

    def forward(self, images, captions):
        captions_in = captions[:, :-1]
        captions_out = captions[:, 1:]
        features = self.cnn(images)
        if self.cell_type != "attn":
            features = features.mean(dim=(2, 3))
        hn = self.rnn(self.embed(captions_in), self.affine(features))
        return temporal_softmax_loss(self.temporal(hn), captions_out, ignore_index=self.ignore_index)

    def sample(self, images, max_length=15):
        N = images.shape[0]
        captions = self._null * images.new(N, max_length).fill_(1).long()
        if self.cell_type == "attn":
            attn_weights_all = images.new(N, max_length, 4, 4).float()
        features = self.cnn(images)
        if self.cell_type == "attn":
            A = self.affine(features)
            h = A.mean(dim=(2, 3))
            c = h
        else:
            h = self.affine(features.mean(dim=(2, 3)))
            c = torch.zeros_like(h)
        words = torch.full((N,), self._start, dtype=torch.long, device=images.device)
        for t in range(max_length):
            x = self.embed(words)
            if self.cell_type == "rnn":
                h = self.rnn.step_forward(x, h)
            elif self.cell_type == "lstm":
                h, c = self.rnn.step_forward(x, h, c)
            else:
                attn, attn_weights_all[:, t] = dot_product_attention(h, A)
                h, c = self.rnn.step_forward(x, h, c, attn)
            words = self.temporal(h).argmax(dim=1)
            captions[:, t] = words
        if self.cell_type == "attn":
            return captions, attn_weights_all.cpu()
        return captions
