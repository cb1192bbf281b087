"""Right answers in other styles, for the test of the grader: each is appended to a student's file and overrides it."""

import textwrap
from typing import NamedTuple

from support import mutants


class Rewrite(NamedTuple):
    what: str
    parts: tuple  # those that it touches
    code: str


def _rewrite(what, parts, code):
    return Rewrite(what, tuple(parts.split()), textwrap.dedent(code))


LOSSES = " ".join(mutants.LOSSES)
SAMPLES = " ".join(mutants.SAMPLES)
STEP_PAIR = "rnn_step_forward rnn_step_backward rnn_forward rnn_backward rnn_module"

REWRITES = [
    _rewrite("a step by einsum", STEP_PAIR, """
        def rnn_step_forward(x, prev_h, Wx, Wh, b):
            next_h = (torch.einsum("nd,dh->nh", x, Wx) + torch.einsum("nk,kh->nh", prev_h, Wh) + b).tanh()
            return next_h, (x, prev_h, Wx, Wh, next_h)
    """),
    _rewrite("a step's cache is a dict", STEP_PAIR.replace(" rnn_backward", ""), """
        def rnn_step_forward(x, prev_h, Wx, Wh, b):
            h = torch.tanh(torch.addmm(b, x, Wx) + prev_h @ Wh)
            return h, {"x": x, "h": h, "prev": prev_h, "weights": [Wx, Wh]}

        def rnn_step_backward(dnext_h, cache):
            Wx, Wh = cache["weights"]
            da = dnext_h - dnext_h * cache["h"].pow(2)
            return [da @ Wx.T, da @ Wh.T, cache["x"].T @ da, cache["prev"].T @ da, da.sum(dim=0)]

        def rnn_backward(dh, cache):
            dprev, total, dxs = 0, None, []
            for t in range(dh.shape[1])[::-1]:
                dx, dprev, *rest = rnn_step_backward(dh[:, t] + dprev, cache[t])
                dxs.insert(0, dx)
                total = rest if total is None else [a + b for a, b in zip(total, rest)]
            return (torch.stack(dxs, dim=1), dprev, *total)
    """),
    _rewrite("a step in place", STEP_PAIR, """
        def rnn_step_forward(x, prev_h, Wx, Wh, b):
            next_h = x.mm(Wx)
            next_h += prev_h.mm(Wh)
            next_h += b
            next_h.tanh_()
            return next_h, [x, prev_h, Wx, Wh, next_h.clone()]
    """),
    _rewrite("prints left in", STEP_PAIR, """
        def rnn_step_forward(x, prev_h, Wx, Wh, b):
            print("x", x.shape, "h", prev_h.shape, x)
            next_h = torch.tanh(x.mm(Wx) + prev_h.mm(Wh) + b)
            print(next_h)
            return next_h, (x, prev_h, Wx, Wh, next_h)
    """),
    _rewrite("a step's backward with matrices from the left", "rnn_step_backward rnn_backward", """
        def rnn_step_backward(dnext_h, cache):
            x, prev_h, Wx, Wh, next_h = cache
            da_t = (dnext_h * (1 + next_h) * (1 - next_h)).transpose(0, 1)
            dx, dprev_h = torch.matmul(Wx, da_t).t(), torch.matmul(Wh, da_t).t()
            dWx, dWh = torch.matmul(da_t, x).t(), torch.matmul(da_t, prev_h).t()
            return dx, dprev_h, dWx, dWh, torch.matmul(da_t, torch.ones_like(x[:, 0]))
    """),
    _rewrite("a sequence written into a tensor", "rnn_forward rnn_backward rnn_module", """
        def rnn_forward(x, h0, Wx, Wh, b):
            N, T, D = x.shape
            h, cache, prev = torch.zeros(N, T, h0.shape[1], dtype=x.dtype, device=x.device), [], h0
            for i in range(T):
                h[:, i, :], step = rnn_step_forward(x[:, i, :], prev, Wx, Wh, b)
                prev = h[:, i, :].clone()
                cache.append(step)
            return h, cache
    """),
    _rewrite("a sequence's cache is tensors, its backward one product", "rnn_forward rnn_backward rnn_module", """
        def rnn_forward(x, h0, Wx, Wh, b):
            h = [h0]
            for x_t in x.unbind(dim=1):
                h.append(torch.tanh(x_t @ Wx + h[-1] @ Wh + b))
            h = torch.stack(h, dim=1)
            return h[:, 1:], (x, h, Wx, Wh)

        def rnn_backward(dh, cache):
            x, h, Wx, Wh = cache
            da, dprev = torch.zeros_like(dh), torch.zeros_like(dh[:, 0])
            for t in reversed(range(dh.shape[1])):
                da[:, t] = (dh[:, t] + dprev) * (1 - h[:, t + 1] ** 2)
                dprev = da[:, t] @ Wh.t()
            dWh = torch.einsum("ntk,nth->kh", h[:, :-1], da)
            return da @ Wx.t(), dprev, torch.einsum("ntd,nth->dh", x, da), dWh, da.sum(dim=(0, 1))
    """),
    _rewrite("the incoming gradient changed in place", "rnn_backward", """
        def rnn_backward(dh, cache):
            N, T, H = dh.shape
            dx, dW = [None] * T, None
            for t in range(T - 1, -1, -1):
                dx[t], dprev_h, *parts = rnn_step_backward(dh[:, t], cache[t])
                if t > 0:
                    dh[:, t - 1] += dprev_h
                if dW is None:
                    dW = parts
                else:
                    for total, part in zip(dW, parts):
                        total += part
            return torch.stack(dx, 1), dprev_h, *dW
    """),
    _rewrite("a GPU assumed", "rnn_backward lstm_module temporal_softmax_loss", """
        def rnn_backward(dh, cache):
            N, T, H = dh.shape
            x, _, Wx, Wh, _ = cache[0]
            dx = torch.zeros((N, T, x.shape[1]), dtype=dh.dtype, device="cuda")
            dWx, dWh = torch.zeros_like(Wx, device=torch.device("cuda")), torch.zeros_like(Wh).to("cuda")
            db, dprev_h = torch.zeros(H).to(dh).cuda(), torch.zeros(N, H, dtype=dh.dtype).cuda()
            for t in range(T - 1, -1, -1):
                dx[:, t, :], dprev_h, a, c, d = rnn_step_backward(dh[:, t, :].cuda() + dprev_h, cache[t])
                dWx, dWh, db = dWx + a, dWh + c, db + d
            return dx, dprev_h, dWx, dWh, db

        class LSTM(LSTM):
            def forward(self, x, h0):
                h, c, hn = h0.cuda(), torch.zeros(h0.shape, device="cuda:0"), []
                for t in range(x.shape[1]):
                    h, c = self.step_forward(x[:, t].cuda(), h, c)
                    hn.append(h)
                return torch.stack(hn, 1)

        def temporal_softmax_loss(x, y, ignore_index=None):
            mask = torch.ones(y.shape, device="cuda") if ignore_index is None else (y != ignore_index).cuda()
            logp = torch.log_softmax(x, 2).cuda()
            right = logp[torch.arange(len(y), device="cuda")[:, None], torch.arange(y.shape[1]), y]
            return -(right * mask).sum() / len(x)
    """),
    _rewrite("a module that loops over its step", "rnn_module rnn_captioner_loss rnn_captioner_sample", """
        class RNN(nn.Module):
            def __init__(self, input_dim, hidden_dim):
                super(RNN, self).__init__()
                self.hidden_dim = hidden_dim
                self.register_parameter("Wx", nn.Parameter(torch.empty(input_dim, hidden_dim)))
                self.register_parameter("Wh", nn.Parameter(torch.empty(hidden_dim, hidden_dim)))
                self.b = torch.nn.parameter.Parameter(torch.zeros(hidden_dim))
                nn.init.xavier_normal_(self.Wx)
                nn.init.orthogonal_(self.Wh)

            def step_forward(self, x, prev_h):
                return torch.tanh(F.linear(x, self.Wx.t(), self.b) + F.linear(prev_h, self.Wh.t()))

            def forward(self, x, h0):
                outputs = []
                for step in x.permute(1, 0, 2):
                    h0 = self.step_forward(step, h0)
                    outputs += [h0]
                return torch.stack(outputs).permute(1, 0, 2)
    """),
    _rewrite("word vectors by F.embedding", "word_embedding_module", """
        class WordEmbedding(WordEmbedding):
            def forward(self, x):
                return F.embedding(x, self.W_embed)
    """),
    _rewrite("word vectors by a one-hot product", "word_embedding_module", """
        class WordEmbedding(WordEmbedding):
            def forward(self, x):
                return F.one_hot(x, len(self.W_embed)).to(self.W_embed.dtype) @ self.W_embed
    """),
    _rewrite("word vectors by index_select", "word_embedding_module", """
        class WordEmbedding(WordEmbedding):
            def forward(self, x):
                return torch.index_select(self.W_embed, 0, x.reshape(-1)).reshape(*x.shape, -1)
    """),
    _rewrite("the loss by log_softmax and gather", "temporal_softmax_loss", """
        def temporal_softmax_loss(x, y, ignore_index=None):
            nll = -F.log_softmax(x, dim=-1).gather(2, y[..., None]).squeeze(-1)
            return nll.sum() / x.size(0) if ignore_index is None else nll[y != ignore_index].sum() / x.size(0)
    """),
    _rewrite("the loss by cross_entropy over a permuted x", "temporal_softmax_loss", """
        def temporal_softmax_loss(x, y, ignore_index=None):
            args = {} if ignore_index is None else {"ignore_index": ignore_index}
            return F.cross_entropy(x.permute(0, 2, 1), y, reduction="none", **args).sum(dim=1).mean()
    """),
    _rewrite("the loss by NLLLoss", "temporal_softmax_loss", """
        def temporal_softmax_loss(x, y, ignore_index=None):
            criterion = nn.NLLLoss(ignore_index=-100 if ignore_index is None else ignore_index, reduction="sum")
            return criterion(x.log_softmax(-1).flatten(0, 1), y.flatten()) / len(x)
    """),
    _rewrite("the loss in a loop over time", "temporal_softmax_loss", """
        def temporal_softmax_loss(x, y, ignore_index=None):
            loss = 0
            for t in range(x.shape[1]):
                if ignore_index is None:
                    loss += F.cross_entropy(x[:, t], y[:, t], reduction="sum")
                else:
                    loss += F.cross_entropy(x[:, t], y[:, t], reduction="sum", ignore_index=ignore_index)
            return loss / x.shape[0]
    """),
    _rewrite("the loss with exp, not safe for large scores", "temporal_softmax_loss", """
        def temporal_softmax_loss(x, y, ignore_index=None):
            p = x.exp() / x.exp().sum(2, keepdim=True)
            mask = torch.ones_like(y) if ignore_index is None else (y != ignore_index).long()
            return -(p.gather(2, y.unsqueeze(2)).squeeze(2).log() * mask).sum() / x.shape[0]
    """),
    _rewrite("gates by chunk, from one product", "lstm_module lstm_captioner_loss lstm_captioner_sample", """
        class LSTM(LSTM):
            def step_forward(self, x, prev_h, prev_c):
                weights = torch.cat((self.Wx, self.Wh), dim=0)
                i, f, o, g = (torch.cat((x, prev_h), dim=1) @ weights + self.b).chunk(4, dim=1)
                next_c = f.sigmoid() * prev_c + i.sigmoid() * g.tanh()
                return o.sigmoid() * next_c.tanh(), next_c
    """),
    _rewrite("gates in place", "lstm_module lstm_captioner_sample", """
        class LSTM(LSTM):
            def step_forward(self, x, prev_h, prev_c):
                a = torch.addmm(self.b, x, self.Wx) + torch.mm(prev_h, self.Wh)
                H = a.shape[1] // 4
                gates, g = torch.sigmoid(a[:, : 3 * H]), torch.tanh(a[:, 3 * H :])
                c = gates[:, H : 2 * H] * prev_c
                c += gates[:, :H] * g
                return gates[:, 2 * H :] * torch.tanh(c), c
    """),
    _rewrite("the states written into a float32 tensor", "lstm_module", """
        class LSTM(LSTM):
            def forward(self, x, h0):
                hn = torch.zeros(x.shape[0], x.shape[1], h0.shape[1])
                h, c = h0, torch.zeros(h0.shape[0], h0.shape[1])
                for t in range(x.shape[1]):
                    h, c = self.step_forward(x[:, t, :], h, c)
                    hn[:, t, :] = h
                return hn
    """),
    _rewrite("an LSTM derived from the RNN", "lstm_module lstm_captioner_loss", """
        class LSTM(RNN):
            def __init__(self, input_dim, hidden_dim):
                super().__init__(input_dim, hidden_dim)
                self.Wx = nn.Parameter(torch.randn(input_dim, 4 * hidden_dim) / input_dim**0.5)
                self.Wh = nn.Parameter(torch.randn(hidden_dim, 4 * hidden_dim) / hidden_dim**0.5)
                self.b = nn.Parameter(torch.zeros(4 * hidden_dim))

            def step_forward(self, x, prev_h, prev_c):
                i, f, o, g = torch.tensor_split(x @ self.Wx + prev_h @ self.Wh + self.b, 4, dim=-1)
                c = torch.sigmoid(f) * prev_c + torch.sigmoid(i) * torch.tanh(g)
                return torch.sigmoid(o) * torch.tanh(c), c

            def forward(self, x, h0):
                h, c = h0, h0 * 0
                hs = x.new_empty(0, *h0.shape)
                for t in range(x.shape[1]):
                    h, c = self.step_forward(x[:, t], h, c)
                    hs = torch.cat([hs, h[None]])
                return hs.movedim(0, 1)
    """),
    _rewrite("attention by einsum", "dot_product_attention attention_lstm_module attn_captioner_loss", """
        def dot_product_attention(prev_h, A):
            N, H, h, w = A.shape
            weights = (torch.einsum("bc,bcij->bij", prev_h, A) / H**0.5).view(N, -1).softmax(-1).view(N, h, w)
            return torch.einsum("bij,bcij->bc", weights, A), weights
    """),
    _rewrite("attention on a 4 x 4 grid only", "dot_product_attention attention_lstm_module attn_captioner_loss", """
        def dot_product_attention(prev_h, A):
            N, H, D_a, _ = A.shape
            flat = A.view(N, H, 16)
            weights = F.softmax(torch.bmm(prev_h.view(N, 1, H), flat) / math.sqrt(H), dim=2)
            attn = torch.bmm(flat, weights.view(N, 16, 1)).view(N, H)
            return attn, weights.view(N, 4, 4)
    """),
    _rewrite("attention with a squeeze that drops a batch of one", "dot_product_attention attention_lstm_module", """
        def dot_product_attention(prev_h, A):
            N, H, D_a, _ = A.shape
            weights = F.softmax((prev_h.reshape(N, 1, H) @ A.reshape(N, H, -1) / math.sqrt(H)).squeeze(), dim=1)
            attn = (A.reshape(N, H, -1) @ weights.unsqueeze(-1)).squeeze()
            return attn, weights.reshape(N, D_a, D_a)
    """),
    _rewrite("attention with a softmax of its own", "dot_product_attention", """
        def dot_product_attention(prev_h, A):
            N, H, D_a, D_b = A.shape
            e = torch.exp((prev_h[:, :, None, None] * A).sum(1) / math.sqrt(H))
            weights = e / e.sum(dim=(1, 2), keepdim=True)
            return (A * weights.unsqueeze(1)).sum(dim=-1).sum(dim=-1), weights
    """),
    _rewrite("attention by PyTorch's own", "dot_product_attention", """
        def dot_product_attention(prev_h, A):
            cells = A.flatten(2).transpose(1, 2)
            scores = (cells @ prev_h.unsqueeze(2)).squeeze(2) * A.shape[1] ** -0.5
            attn = F.scaled_dot_product_attention(prev_h.unsqueeze(1), cells, cells)[:, 0]
            return attn, scores.softmax(1).reshape(len(A), *A.shape[-2:])
    """),
    _rewrite("an attention LSTM that keeps its weights", "attention_lstm_module attn_captioner_loss", """
        class AttentionLSTM(AttentionLSTM):
            def forward(self, x, A):
                h = c = A.flatten(2).mean(-1)
                self.attn_weights, hn = [], torch.zeros(x.shape[0], x.shape[1], A.shape[1]).to(x)
                for t in range(x.shape[1]):
                    attn, weights = dot_product_attention(h, A)
                    self.attn_weights.append(weights)
                    h, c = self.step_forward(x[:, t], h, c, attn)
                    hn[:, t] = h
                return hn
    """),
    _rewrite("sampling that stops early", SAMPLES, """
        class CaptioningRNN(CaptioningRNN):
            def sample(self, images, max_length=15):
                with torch.no_grad():
                    features = self.cnn(images)
                    words = torch.full((len(images),), self._start)
                    if self.cell_type == "attn":
                        A = self.affine(features)
                        h = c = A.mean((2, 3))
                    else:
                        h = self.affine(features.mean((2, 3)))
                        c = torch.zeros_like(h)
                    done, captions, maps = torch.zeros(len(images), dtype=torch.bool), [], []
                    while len(captions) < max_length and not done.all():
                        x = self.embed(words)
                        if self.cell_type == "attn":
                            attn, weights = dot_product_attention(h, A)
                            maps.append(weights)
                            h, c = self.rnn.step_forward(x, h, c, attn)
                        elif self.cell_type == "lstm":
                            h, c = self.rnn.step_forward(x, h, c)
                        else:
                            h = self.rnn.step_forward(x, h)
                        words = torch.max(self.temporal(h), dim=1)[1]
                        words[done] = self._null
                        done = done | (words == self._end)
                        captions.append(words)
                    captions = torch.stack(captions, 1)
                    return (captions, torch.stack(maps, 1)) if maps else captions
    """),
    _rewrite("sampling a picture at a time", "rnn_captioner_sample lstm_captioner_sample", """
        class CaptioningRNN(CaptioningRNN):
            def sample(self, images, max_length=15):
                if self.cell_type == "attn":
                    return super().sample(images, max_length)
                captions = torch.full((images.shape[0], max_length), self._null)
                for n, feature in enumerate(self.cnn(images)):
                    h = self.affine(feature.mean((1, 2)))[None]
                    c, word = h * 0, self._start
                    for t in range(max_length):
                        x = self.embed(torch.tensor([word]))
                        h, *rest = [self.rnn.step_forward(x, h)] if self.cell_type == "rnn" else \\
                            self.rnn.step_forward(x, h, c)
                        c = rest[0] if rest else c
                        word = self.temporal(h).argmax().item()
                        captions[n, t] = word
                        if word == self._end:
                            break
                return captions
    """),
    _rewrite("features projected by a matrix of its own", f"{LOSSES} {SAMPLES}", """
        class Affine(nn.Module):
            def __init__(self, C, H):
                super().__init__()
                self.W_proj, self.b_proj = nn.Parameter(torch.randn(C, H) / 20), nn.Parameter(torch.zeros(H))

            def forward(self, x):
                if x.dim() == 2:
                    return x @ self.W_proj + self.b_proj
                return (x.permute(0, 2, 3, 1) @ self.W_proj + self.b_proj).permute(0, 3, 1, 2)

        class CaptioningRNN(CaptioningRNN):
            def __init__(self, word_to_idx, input_dim=512, wordvec_dim=128, hidden_dim=128, **rest):
                super().__init__(word_to_idx, input_dim, wordvec_dim, hidden_dim, **rest)
                self.affine = Affine(input_dim, hidden_dim)
    """),
    _rewrite("features projected, then pooled", "rnn_captioner_loss lstm_captioner_loss", """
        class CaptioningRNN(CaptioningRNN):
            def forward(self, images, captions):
                A = self.cnn(images)
                if self.cell_type == "attn":
                    start = self.affine(A)
                else:
                    start = self.affine(A.permute(0, 2, 3, 1)).flatten(1, 2).mean(1)
                scores = self.temporal(self.rnn(self.embed(captions[:, :-1]), start))
                return temporal_softmax_loss(scores, captions[:, 1:].contiguous(), self.ignore_index)
    """),
    _rewrite("word vectors of nn.Embedding in the captioner", f"{LOSSES} {SAMPLES}", """
        class CaptioningRNN(CaptioningRNN):
            def __init__(self, word_to_idx, input_dim=512, wordvec_dim=128, hidden_dim=128, **rest):
                super().__init__(word_to_idx, input_dim, wordvec_dim, hidden_dim, **rest)
                self.embed = nn.Embedding(len(word_to_idx), wordvec_dim)
    """),
    _rewrite("layers that are not used in the captioner", f"{LOSSES} {SAMPLES}", """
        class CaptioningRNN(CaptioningRNN):
            def __init__(self, word_to_idx, input_dim=512, wordvec_dim=128, hidden_dim=128, **rest):
                super().__init__(word_to_idx, input_dim, wordvec_dim, hidden_dim, **rest)
                self.other = nn.Conv2d(input_dim, hidden_dim, 1)
                self.dropout = nn.Dropout(0.5)
    """),
    _rewrite("the encoder frozen, its features detached", LOSSES, """
        class CaptioningRNN(CaptioningRNN):
            def forward(self, images, captions):
                with torch.no_grad():
                    features = self.cnn(images)
                pooled = self.affine(features if self.cell_type == "attn" else features.mean(-1).mean(-1))
                h = self.rnn.forward(self.embed.forward(captions[:, 0:-1]), pooled)
                return temporal_softmax_loss(self.temporal.forward(h), captions[:, 1:], self.ignore_index)
    """),
    _rewrite("<START> and <END> by their published ids", SAMPLES, """
        class CaptioningRNN(CaptioningRNN):
            def __init__(self, *args, **rest):
                super().__init__(*args, **rest)
                self._null, self._start, self._end = 0, 1, 2
    """),
    _rewrite("an LSTM step whose cache is a list", "lstm_step_forward lstm_step_backward", """
        def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
            i, f, o, g = (x @ Wx + prev_h @ Wh + b).chunk(4, 1)
            i, f, o, g = i.sigmoid(), f.sigmoid(), o.sigmoid(), g.tanh()
            c = f * prev_c + i * g
            return o * c.tanh(), c, [(x, prev_h, prev_c), (Wx, Wh), (i, f, o, g), c.tanh()]

        def lstm_step_backward(dnext_h, dnext_c, cache):
            (x, prev_h, prev_c), (Wx, Wh), (i, f, o, g), tc = cache
            dc = dnext_c.clone()
            dc += dnext_h * o * (1 - tc * tc)
            da = torch.hstack([dc * g * i * (1 - i), dc * prev_c * f * (1 - f), dnext_h * tc * o * (1 - o),
                               dc * i * (1 - g * g)])
            return [da.mm(Wx.t()), da.mm(Wh.t()), dc * f, x.t().mm(da), prev_h.t().mm(da), da.sum(0)]
    """),
    _rewrite("attention's backward with broadcasting", "dot_product_attention_backward", """
        def dot_product_attention_backward(dattn, prev_h, A, attn_weights):
            dw = torch.einsum("nc,ncij->nij", dattn, A)
            ds = attn_weights * (dw - torch.einsum("nij,nij->n", dw, attn_weights)[:, None, None])
            ds /= A.shape[1] ** 0.5
            dA = dattn[:, :, None, None] * attn_weights[:, None] + prev_h[:, :, None, None] * ds[:, None]
            return torch.einsum("nij,ncij->nc", ds, A), dA
    """),
    _rewrite("word vectors' backward in a loop", "word_embedding_forward word_embedding_backward", """
        def word_embedding_forward(x, W_embed):
            return torch.stack([W_embed[row] for row in x]), [x, W_embed]

        def word_embedding_backward(dout, cache):
            x, W = cache
            dW = W.new_zeros(W.shape)
            for word, d in zip(x.view(-1).tolist(), dout.reshape(-1, dout.shape[-1])):
                dW[word] += d
            return dW
    """),
    _rewrite("scores by flattening", "temporal_affine_forward temporal_affine_backward", """
        def temporal_affine_forward(h, W, b):
            N, T, H = h.shape
            return h.reshape(N * T, H).mm(W).view(N, T, -1) + b, (h, W, b)

        def temporal_affine_backward(dout, cache):
            h, W, b = cache
            dW = torch.tensordot(h, dout, dims=([0, 1], [0, 1]))
            return torch.tensordot(dout, W.t(), dims=1), dW, dout.reshape(-1, len(b)).sum(0)
    """),
    _rewrite("the loss's backward by one-hot", "temporal_softmax_backward", """
        def temporal_softmax_backward(x, y, ignore_index=None):
            dx = (F.softmax(x, dim=-1) - F.one_hot(y, x.shape[-1])) / x.shape[0]
            if ignore_index is not None:
                dx[y == ignore_index] = 0
            return dx
    """),
    _rewrite("the course's helpers imported, code at the end", "rnn_step_forward", """
        import matplotlib.pyplot as plt
        from a5_helper import *
        from google.colab import drive
        import cv2
        from eecs598.grad import compute_numeric_gradient, rel_error
        from eecs598.utils import reset_seed

        reset_seed(0)
        print("rnn_lstm_captioning.py was last edited on", "some day")
        if __name__ == "__main__":
            raise SystemExit("not run when imported")
    """),
]  # fmt: skip
