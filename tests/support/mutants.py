"""Mistakes made on purpose in our own solution, for the test of the grader.

A mutant is (where, what, text, its replacement, parts): `where` is a function or Class.method of the solution, in whose
code (not its comments) the text occurs exactly once; `parts` are those that must lose their points, and no others;
`advised` those that keep them, since the published cells do not see the mistake, and are told of it all the same.
None is equivalent to the solution: each changes a value or a gradient that the lesson's checks show. `generate` makes
further ones by rules, as a mutation tool does.
"""

import ast
from functools import cache
from typing import NamedTuple

from eecs598.checks import CHECKS

CELLS = {"rnn": "RNN", "lstm": "LSTM", "attn": "AttentionLSTM"}


class Mutant(NamedTuple):
    where: str
    what: str
    old: str
    new: str
    parts: tuple
    advised: tuple = ()


class MutantError(AssertionError):
    """A mutant's text is not to be found any more: mend the mutant."""


def apply(source, mutant):
    """The source with the mutant's mistake made. Raises MutantError, which names the mutant."""
    lines = source.splitlines(keepends=True)
    first, last = _place(source, mutant)
    hits = [k for k in range(first, last) if not lines[k].lstrip().startswith("#")]
    body = "".join(lines[k] if k in hits else "#\n" for k in range(first, last))
    if body.count(mutant.old) != 1:
        raise MutantError(
            f"{mutant.where}, {mutant.what}: {mutant.old!r} occurs {body.count(mutant.old)} times in the code, wanted 1"
        )
    return "".join(lines[:first]) + body.replace(mutant.old, mutant.new) + "".join(lines[last:])


_parsed = cache(ast.parse)  # of the solution, for every mutant


def _place(source, mutant):
    """The lines of a function's code, its docstring apart: first and beyond the last, from 0."""
    body, node = _parsed(source).body, None
    for name in mutant.where.split("."):
        node = next((entry for entry in body if getattr(entry, "name", None) == name), None)
        if node is None:
            raise MutantError(f"{mutant.where}, {mutant.what}: the solution has no {mutant.where}")
        body = node.body
    has_docstring = ast.get_docstring(node) is not None and len(body) > 1
    return (body[0].end_lineno if has_docstring else node.lineno - 1), node.end_lineno


def _mutants(where, parts, *slips, advised=()):
    parts, advised = ((names,) if isinstance(names, str) else names for names in (parts, advised))
    return [Mutant(where, what, old, new, parts, advised) for what, old, new in slips]


LOSSES = tuple(part for part in CHECKS if part.endswith("_captioner_loss"))
SAMPLES = tuple(part for part in CHECKS if part.endswith("_captioner_sample"))

# fmt: off
MUTANTS = [
    *_mutants("rnn_step_forward", "rnn_step_forward",
        ("a sign", "+ prev_h @ Wh", "- prev_h @ Wh"),
        ("Wh transposed", "prev_h @ Wh", "prev_h @ Wh.t()"),
        ("sigmoid for tanh", "torch.tanh", "torch.sigmoid"),
        ("no bias", " @ Wh + b)", " @ Wh)"),
        ("the recurrent term missing", " + prev_h @ Wh", ""),
        ("float32 hard-coded", "x @ Wx", "x.float() @ Wx"),
        ("tanh left out", "torch.tanh(x", "(x"),
    ),
    *_mutants("rnn_step_backward", "rnn_step_backward",
        ("tanh' missing", "dnext_h * (1 - next_h**2)", "dnext_h"),
        ("a sign in tanh'", "1 - next_h**2", "1 + next_h**2"),
        ("tanh' without the square", "1 - next_h**2", "1 - next_h"),
        ("Wx not transposed", "da @ Wx.t()", "da @ Wx"),
        ("Wh not transposed", "da @ Wh.t()", "da @ Wh"),
        ("dWh from next_h", "prev_h.t() @ da", "next_h.t() @ da"),
        ("mean for sum", "da.sum(0)", "da.mean(0)"),
        ("wrong axis", "da.sum(0)", "da.sum(1)"),
        ("dWx transposed", "x.t() @ da", "da.t() @ x"),
        ("dx without tanh'", "da @ Wx.t()", "dnext_h @ Wx.t()"),
        ("outputs swapped", "return dx, dprev_h,", "return dprev_h, dx,"),
    ),
    *_mutants("rnn_forward", "rnn_forward",
        ("h0 not used", "[], [], h0", "[], [], torch.zeros_like(h0)"),
        ("state not carried", "x[:, t], state, Wx", "x[:, t], h0, Wx"),
        ("off by one in time", "x[:, t]", "x[:, t - 1]"),
        ("back to front", "h.append(state)", "h.insert(0, state)"),
        ("time before the batch", "torch.stack(h, dim=1)", "torch.stack(h)"),
        ("Wh transposed", "Wx, Wh, b)", "Wx, Wh.t(), b)"),
        ("no bias", "Wx, Wh, b)", "Wx, Wh, 0 * b)"),
        ("float32 hard-coded", "rnn_step_forward(x[:, t],", "rnn_step_forward(x[:, t].float(),"),
        ("the cache forgotten", "torch.stack(h, dim=1), caches", "torch.stack(h, dim=1)"),
    ),
    *_mutants("rnn_backward", "rnn_backward",
        ("later steps lost", "dh[:, t] + dprev_h", "dh[:, t]"),
        ("the state before in tanh'", "dh_t, cache[t]", "dh_t, cache[t - 1]"),
        ("a sign between the two ways", "dh[:, t] + dprev_h", "dh[:, t] - dprev_h"),
        ("dx back to front", "dx.insert(0, dx_t)", "dx.append(dx_t)"),
        ("mean for sum", "total + part", "total + part / dh.shape[1]"),
        ("gradient not accumulated", "total + part", "part"),
        ("dh0 forgotten", "dim=1), dprev_h,", "dim=1), torch.zeros_like(dprev_h),"),
        ("forward in time", "reversed(range(dh.shape[1]))", "range(dh.shape[1])"),
        ("device hard-coded", "return torch.stack(dx, dim=1),", 'return torch.stack(dx, dim=1).to("meta"),'),
    ),
    *_mutants("RNN.forward", "rnn_module",
        ("h0 not used", "x, h0, self.Wx", "x, 0 * h0, self.Wx"),
        ("no gradient to Wh", "self.Wh, self.b", "self.Wh.detach(), self.b"),
    ),
    *_mutants("RNN.step_forward", "rnn_module",
        ("state not carried", "(x, prev_h, self", "(x, 0 * prev_h, self"),
        ("the cache returned, too", "self.b)[0]", "self.b)"),
    ),
    *_mutants("RNN.__init__", "rnn_module",
        ("the bias no parameter", "nn.Parameter(torch.zeros(hidden_dim))", "torch.zeros(hidden_dim)"),
        ("Wh of the wrong shape", "_weight(hidden_dim, hidden_dim)", "_weight(hidden_dim, input_dim)"),
    ),
    *_mutants("lstm_step_forward", "lstm_step_forward",
        ("gates o and g swapped", "a_i, a_f, a_o, a_g = a.chunk", "a_i, a_f, a_g, a_o = a.chunk"),
        ("gates i and f swapped", "a_i, a_f, a_o, a_g = a.chunk", "a_f, a_i, a_o, a_g = a.chunk"),
        ("the candidate through sigmoid", "torch.tanh(a_g)", "torch.sigmoid(a_g)"),
        ("the forget gate through tanh", "torch.sigmoid(a_f)", "torch.tanh(a_f)"),
        ("a sign in the cell", "f * prev_c + i * g", "f * prev_c - i * g"),
        ("the forget gate not applied", "f * prev_c + i * g", "prev_c + i * g"),
        ("the input gate not applied", "f * prev_c + i * g", "f * prev_c + g"),
        ("the cell not carried", "f * prev_c + i * g", "i * g"),
        ("next_h from prev_c", "torch.tanh(next_c)", "torch.tanh(prev_c)"),
        ("next_h without tanh", "o * torch.tanh(next_c)", "o * next_c"),
        ("no bias", "prev_h @ Wh + b", "prev_h @ Wh"),
        ("next_h and next_c swapped", "return next_h, next_c,", "return next_c, next_h,"),
    ),
    *_mutants("lstm_step_backward", "lstm_step_backward",
        ("dnext_c not used", "dnext_c + dnext_h", "dnext_h"),
        ("the way through next_h missing", "dc = dnext_c + dnext_h * o * (1 - tanh_c**2)", "dc = dnext_c"),
        ("tanh' of the cell missing", "o * (1 - tanh_c**2)", "o"),
        ("tanh' of next_c itself", "1 - tanh_c**2", "1 - next_c**2"),
        ("do from dc", "do = dnext_h * tanh_c", "do = dc * tanh_c"),
        ("di and df swapped", "dc * g, dc * prev_c", "dc * prev_c, dc * g"),
        ("df from next_c", "dc * prev_c", "dc * next_c"),
        ("sigmoid' of i missing", "di * i * (1 - i)", "di"),
        ("a sign in sigmoid'", "f * (1 - f)", "f * (1 + f)"),
        ("tanh' of g without the square", "1 - g**2", "1 - g"),
        ("parts joined in the wrong order", "do * o * (1 - o), dg * (1 - g**2)]", "dg * (1 - g**2), do * o * (1 - o)]"),
        ("dprev_c without the forget gate", "dc * i, dc * f", "dc * i, dc"),
        ("dWh from next_c", "prev_h.t() @ da", "next_c.t() @ da"),
        ("mean for sum", "da.sum(0)", "da.mean(0)"),
        ("dx and dprev_h swapped", "return dx, dprev_h, dprev_c", "return dprev_h, dx, dprev_c"),
    ),
    *_mutants("lstm_forward", "lstm_forward",
        ("c0 not used", "h0, c0", "h0, torch.zeros_like(c0)"),
        ("the cell not carried", "state, cell, Wx", "state, c0, Wx"),
        ("state not carried", "state, cell, Wx", "h0, cell, Wx"),
        ("state and cell swapped", "state, cell, Wx", "cell, state, Wx"),
        ("no bias", "Wx, Wh, b)", "Wx, Wh, 0 * b)"),
        ("off by one in time", "x[:, t]", "x[:, t - 1]"),
        ("time before the batch", "torch.stack(h, dim=1)", "torch.stack(h)"),
        ("the cells returned", "h.append(state)", "h.append(cell)"),
    ),
    *_mutants("lstm_backward", "lstm_backward",
        ("later steps lost", "dh[:, t] + dprev_h", "dh[:, t]"),
        ("the cell's gradient not carried", "(dh_t, dprev_c, cache[t])", "(dh_t, torch.zeros_like(dh_t), cache[t])"),
        ("the caches in the wrong order", "cache[t])", "cache[-1 - t])"),
        ("dprev_h and dprev_c swapped", "dx_t, dprev_h, dprev_c, *step", "dx_t, dprev_c, dprev_h, *step"),
        ("dWx and dWh swapped", "dprev_c, *dweights", "dprev_c, dweights[1], dweights[0], dweights[2]"),
        ("dh0 for dc0", "dim=1), dprev_h, dprev_c", "dim=1), dprev_h, dprev_h"),
        ("averaged over the batch", "total + part", "total + part / len(dh)"),
    ),
    *_mutants("LSTM.forward", "lstm_module",
        ("c0 is h0", "torch.zeros_like(h0)", "h0"),
        ("c0 is one", "torch.zeros_like(h0)", "torch.ones_like(h0)"),
    ),
    *_mutants("LSTM.step_forward", "lstm_module",
        ("cell state forgotten", "prev_h, prev_c, self.Wx", "prev_h, 0 * prev_c, self.Wx"),
        ("c before h", "[:2]", "[1::-1]"),
    ),
    *_mutants("LSTM.__init__", "lstm_module",
        ("three gates", "torch.zeros(4 * hidden_dim)", "torch.zeros(3 * hidden_dim)"),
    ),
    *_mutants("dot_product_attention", "dot_product_attention",
        ("not scaled", 'cells) / math.sqrt(H)', 'cells)'),
        ("divided by H", "math.sqrt(H)", "H"),
        ("softmax over the batch", "dim=1", "dim=0"),
        ("a sign in the scores", 'einsum("nh,nhl->nl", prev_h', 'einsum("nh,nhl->nl", -prev_h'),
        ("no softmax", "weights = torch.softmax(scores, dim=1)", "weights = scores"),
        ("mean for the weighted sum", 'torch.einsum("nl,nhl->nh", weights, cells)', "cells.mean(2)"),
        ("the scores for the weights", "weights.unflatten", "scores.unflatten"),
    ),
    *_mutants("dot_product_attention_backward", "dot_product_attention_backward",
        ("softmax's Jacobian cut short", "(dweights - (weights * dweights).sum(1, keepdim=True))", "dweights"),
        ("A as a value missing", "(dvalues + dkeys)", "dkeys"),
        ("A as a key missing", "(dvalues + dkeys)", "dvalues"),
        ("a sign between key and value", "dvalues + dkeys", "dvalues - dkeys"),
        ("the key's scale missing", "prev_h, dscores) / math.sqrt(H)", "prev_h, dscores)"),
        ("dprev_h's scale missing", "dscores, cells) / math.sqrt(H)", "dscores, cells)"),
        ("dprev_h with a sign", "return dprev_h,", "return -dprev_h,"),
        ("sum over the batch", ".sum(1, keepdim=True)", ".sum(0, keepdim=True)"),
    ),
    *_mutants("attention_lstm_step_forward", "attention_lstm_step_forward",
        ("the attention unused", "[x, attn]", "[x, 0 * attn]"),
        ("input and attention swapped", "[x, attn]", "[attn, x]"),
        ("a sign of Wattn", "[Wx, Wattn]", "[Wx, -Wattn]"),
        ("the state not carried", "(z, prev_h,", "(z, 0 * prev_h,"),
    ),
    *_mutants("attention_lstm_step_backward", "attention_lstm_step_backward",
        ("a sign of dattn", "dz[:, :D], dz[:, D:]", "dz[:, :D], -dz[:, D:]"),
        ("dWattn from the first rows", "dW[:D], dW[D:]", "dW[:D], dW[: len(dW) - D]"),
        ("dprev_c missing", "dnext_h, dnext_c, cache", "dnext_h, 0 * dnext_c, cache"),
        ("dprev_h and dattn swapped", "return dx, dprev_h, dprev_c, dattn,", "return dx, dattn, dprev_c, dprev_h,"),
    ),
    *_mutants("attention_lstm_forward", "attention_lstm_forward",
        ("c0 is zero", "cell = states[0]", "cell = 0 * states[0]"),
        ("h0 is the sum", "A.mean(dim=(2, 3))", "A.sum(dim=(2, 3))"),
        ("it looks with the first state", "dot_product_attention(states[t]", "dot_product_attention(states[0]"),
        ("it looks with the cell state", "dot_product_attention(states[t]", "dot_product_attention(cell"),
        ("the attention unused", "cell, attn, Wx", "cell, 0 * attn, Wx"),
        ("the cell not carried", "states[t], cell, attn", "states[t], states[0], attn"),
        ("no bias", "Wattn, b)", "Wattn, 0 * b)"),
        ("Wattn for Wh", "Wx, Wh, Wattn, b)", "Wx, Wattn, Wh, b)"),
        ("off by one in time", "x[:, t]", "x[:, t - 1]"),
        ("the state before the step returned", "states[1:]", "states[:-1]"),
        ("the weights' time before the batch", "torch.stack(weights, dim=1)", "torch.stack(weights)"),
    ),
    *_mutants("attention_lstm_backward", "attention_lstm_backward",
        ("later steps lost", "dh[:, t] + dprev_h", "dh[:, t]"),
        ("the cell's gradient not carried", "(dh_t, dprev_c, steps[t])", "(dh_t, torch.zeros_like(dh_t), steps[t])"),
        ("the way through the look missing", "dprev_h + dlook", "dprev_h"),
        ("A of the look missing", "dA + dA_t", "dA"),
        ("gradient not accumulated", "dA + dA_t", "dA_t"),
        ("the look with the state after", "states[t], A", "states[t + 1], A"),
        ("A through h0 and c0 missing", "dA = dA + (dprev_h", "dA = dA + 0 * (dprev_h"),
        ("A through c0 missing", "(dprev_h + dprev_c)", "dprev_h"),
        ("the mean's 1 / L missing", "[:, :, None, None] / L", "[:, :, None, None]"),
        ("dWh and dWattn swapped", "dA, *dweights", "dA, dweights[0], dweights[2], dweights[1], dweights[3]"),
    ),
    *_mutants("AttentionLSTM.step_forward", "attention_lstm_module",
        ("the attention unused", "prev_c, attn, *weights", "prev_c, 0 * attn, *weights"),
        ("cell state forgotten", "prev_h, prev_c, attn", "prev_h, 0 * prev_c, attn"),
    ),
    *_mutants("AttentionLSTM.forward", "attention_lstm_module",
        ("the grid averaged first", "x, A, *weights", "x, A.mean((2, 3), keepdim=True).expand_as(A), *weights"),
        ("no gradient to Wattn", "self.Wattn, self.b", "self.Wattn.detach(), self.b"),
    ),
    *_mutants("word_embedding_forward", "word_embedding_forward",
        ("off by one", "W_embed[x],", "W_embed[x - 1],"),
        ("a factor", "W_embed[x],", "2 * W_embed[x],"),
    ),
    *_mutants("word_embedding_backward", "word_embedding_backward",
        ("gradient not accumulated", "index_add_", "index_copy_"),
        ("a sign", "dout.flatten(0, -2))", "-dout.flatten(0, -2))"),
        ("float32 hard-coded", "dout.shape[-1])", "dout.shape[-1], dtype=torch.float32)"),
    ),
    *_mutants("WordEmbedding.forward", "word_embedding_module",
        ("no gradient", "self.W_embed)", "self.W_embed.detach())"),
        ("rows reversed", "self.W_embed)", "self.W_embed.flip(0))"),
    ),
    *_mutants("temporal_affine_forward", "temporal_affine_forward",
        ("no bias", "h @ W + b", "h @ W"),
        ("a sign", "h @ W + b", "h @ W - b"),
    ),
    *_mutants("temporal_affine_backward", "temporal_affine_backward",
        ("a sign of dh", "return dout @ W.t()", "return -dout @ W.t()"),
        ("averaged over the batch", "rows.t() @ drows", "rows.t() @ drows / len(h)"),
        ("mean for sum", "drows.sum(0)", "drows.mean(0)"),
        ("steps not summed", "drows.sum(0)", "dout.sum(0)"),
    ),
    *_mutants("_softmax_loss", "temporal_softmax_loss",
        ("averaged over time, too", "/ len(x)", "/ x[..., 0].numel()"),
        ("summed over the batch", " / len(x)", ""),
        ("ignored steps count", ".where(mask, 0)", ""),
        ("a sign", "return -log_probs", "return log_probs"),
        ("softmax over time", "dim=2, keepdim", "dim=1, keepdim"),
        ("no softmax", " - torch.logsumexp(x, dim=2, keepdim=True)", ""),
    ),
    *_mutants("_softmax_loss_backward", "temporal_softmax_loss",
        ("the gradient doubled", "return dloss", "return 2 * dloss"),
    ),
    *_mutants("temporal_softmax_loss", "temporal_softmax_loss",
        ("no gradient", "x, y, ignore_index)", "x.detach(), y, ignore_index)"),
    ),
    *_mutants("temporal_softmax_backward", "temporal_softmax_backward",
        ("ignored steps count", "dx * mask / len(x)", "dx / len(x)"),
        ("not divided by N", " / len(x)", ""),
        ("1 added at the right word", "-torch.ones_like", "torch.ones_like"),
        ("softmax over time", "softmax(x, dim=2)", "softmax(x, dim=1)"),
        ("divided by time, too", "len(x)", "y.numel()"),
    ),
    *_mutants("_target_and_mask", "temporal_softmax_loss",  # the backward is right for this loss
        ("<NULL> not ignored", "y != ignore_index", "y == y"),
    ),
    *_mutants("_target_and_mask", ("temporal_softmax_loss", "temporal_softmax_backward"),
        ("all but <NULL> ignored", "y != ignore_index", "y == ignore_index"),
    ),
    *_mutants("CaptioningRNN.forward", LOSSES,
        ("averaged over the words", "self.ignore_index)", "self.ignore_index) / after.shape[1]"),
        ("not averaged", "self.ignore_index)", "self.ignore_index) * len(after)"),
        ("<NULL> alone not ignored", "self.ignore_index)", "None)"),
        ("a word too few", "h = self.cell(x,", "x, after = x[:, :-1], after[:, :-1]; h = self.cell(x,"),
    ),
    *_mutants("CaptioningRNN.forward", LOSSES[:2],  # with the published parameters attention's states hardly change
        ("the words to come go in", "captions[:, :-1], captions[:, 1:]", "captions[:, 1:], captions[:, 1:]"),
        ("the targets off by one", "captions[:, :-1], captions[:, 1:]", "captions[:, :-1], captions[:, :-1]"),
        ("states back to front", "self.output_projection(h)", "self.output_projection(h.flip(1))"),
        advised="attn_captioner_loss",
    ),
    *_mutants("CaptioningRNN.forward", LOSSES[1:],
        ("blind to the pictures", "self.encode(images)", "0 * self.encode(images)"),
        advised="rnn_captioner_loss",
    ),
    *_mutants("CaptioningRNN.forward", (),
        ("pictures and captions not in step", "self.encode(images)", "self.encode(images.flip(0))"),
        advised=LOSSES,
    ),
    *_mutants("CaptioningRNN.encode", "attn_captioner_loss",
        ("divided by 255 again", "self.image_encoder(images)", "(self.image_encoder(images) / 255)"),
        advised=(*LOSSES[:2], *SAMPLES),  # captions are right by the captioner's own loss
    ),
    *_mutants("CaptioningRNN.encode", (),
        ("sum for mean over the grid", "features.mean(dim=(2, 3))", "features.sum(dim=(2, 3))"),
        advised=("rnn_captioner_loss", "lstm_captioner_loss", "rnn_captioner_sample", "lstm_captioner_sample"),
    ),
    *_mutants("CaptioningRNN.encode", "attn_captioner_loss",
        ("rows and columns of the grid swapped for channels", "movedim(-1, 1)", "movedim(-1, 1).flip(1)"),
        advised="attn_captioner_sample",
    ),
    *_mutants("CaptioningRNN.begin", "lstm_captioner_sample",
        ("c0 is h0 in sampling", "torch.zeros_like(start)", "start"),
    ),
    *_mutants("CaptioningRNN.begin", "attn_captioner_sample",
        ("c0 is zero in sampling", "DecoderState(mean, mean, start)", "DecoderState(mean, 0 * mean, start)"),
        ("h0 is the sum in sampling", "start.mean(dim=(2, 3))", "start.sum(dim=(2, 3))"),
    ),
    *_mutants("CaptioningRNN.begin", SAMPLES,
        ("divided by 255 again", "self.encode(images)", "self.encode(images / 255)"),
    ),
    *_mutants("CaptioningRNN.step", "rnn_captioner_sample",
        ("state not carried", "(x, state.h))", "(x, 0 * state.h))"),
    ),
    *_mutants("CaptioningRNN.step", "lstm_captioner_sample",
        ("cell state forgotten in sampling", "(x, state.h, state.c))", "(x, state.h, 0 * state.c))"),
        ("h for c in sampling", "(x, state.h, state.c))", "(x, state.h, state.h))"),
    ),
    *_mutants("CaptioningRNN.step", "attn_captioner_sample",
        ("cell state forgotten in sampling", "(x, state.h, state.c, attn)", "(x, state.h, 0 * state.c, attn)"),
        ("it looks with the cell state", "dot_product_attention(state.h, state.A)",
         "dot_product_attention(state.c, state.A)"),
        ("the attention unused", "state.c, attn)", "state.c, 0 * attn)"),
    ),
    *_mutants("CaptioningRNN.step", SAMPLES,
        ("the scores of the state before", "return self.output_projection(state.h)",
         "return self.output_projection(-state.h)"),
    ),
    *_mutants("CaptioningRNN.sample", SAMPLES,
        ("begins with <NULL>", "self.start", "self.null"),
        ("the lowest score", "argmax", "argmin"),
        ("all end with the first", "ended |= words == self.end", "ended |= (words == self.end).any()"),
        ("off by one in time", "captions[:, t] = words", "captions[:, t - 1] = words"),
        ("<START> fed at every step", "self.step(words, state)",
         "self.step(torch.full_like(words, self.start), state)"),
        ("state not carried", "scores, state, weights =", "scores, _, weights ="),
        ("<NULL> chosen once <START> was fed", "words == self.end", "words == words"),
    ),
    *_mutants("CaptioningRNN.sample", "attn_captioner_sample",
        ("maps stacked along the batch", "torch.stack(maps, dim=1)", "torch.stack(maps, dim=0)"),
        ("maps not returned", "(captions, torch.stack(maps, dim=1).cpu())", "captions"),
    ),
    *_mutants("CaptioningRNN.sample", (),
        ("maps of the wrong pictures", "maps.append(weights.", "maps.append(weights.flip(0)."),
        advised="attn_captioner_sample",
    ),
    *_mutants("CaptioningRNN.__init__", LOSSES,
        ("no bias of the scores", "Affine(hidden_dim, len(word_to_idx))",
         "nn.Linear(hidden_dim, len(word_to_idx), bias=False)"),
        advised=SAMPLES,
    ),
    *_mutants("CaptioningRNN.__init__", (),
        ("no bias of the features", "Affine(input_dim, hidden_dim)", "nn.Linear(input_dim, hidden_dim, bias=False)"),
        advised=(*LOSSES, *SAMPLES),
    ),
]
# fmt: on


def parts_to_grade(source):
    """Mutant -> the parts to grade. The others' code is the solution's: their checks never come to the mistake.

    The captioner's parts, which take the longest, are graded with the first mutant of each function below it: that
    its mistakes cost no captioner anything is the same for all of them.
    """
    reached, seen, chosen = _reach(source), set(), {}
    for mutant in MUTANTS:
        name, _, _ = mutant.where.partition(".")
        captioners = name == "CaptioningRNN" or mutant.where not in seen
        seen.add(mutant.where)
        chosen[mutant] = [part for part in CHECKS if name in reached[part] and (captioners or "captioner" not in part)]
    return chosen


# --- mistakes made by a rule ------------------------------------------------------------------------------


class _Slip(ast.NodeTransformer):
    """Makes the mistake number `wanted` in a piece of code; counts those that could be made."""

    def __init__(self, wanted=None):
        self.wanted, self.count, self.what = wanted, 0, ""

    def _turn(self, node, what, mistaken):
        self.count += 1
        if self.count - 1 != self.wanted:
            return node
        self.what = f"line {node.lineno}: {what}"
        return ast.copy_location(mistaken, node)

    def visit_BinOp(self, node):
        self.generic_visit(node)
        left, op, right = node.left, node.op, node.right
        if isinstance(op, (ast.Add, ast.Sub)):
            other = ast.Sub() if isinstance(op, ast.Add) else ast.Add()
            node = self._turn(node, "a sign", ast.BinOp(left, other, right))
        if isinstance(op, ast.Add):
            node = self._turn(node, "a term missing", left)
        if isinstance(op, ast.MatMult):
            node = self._turn(node, "factors swapped", ast.BinOp(right, op, left))
        if isinstance(op, (ast.Mult, ast.Div)):
            node = self._turn(node, "a factor missing", left)
        return node

    def visit_Call(self, node):
        self.generic_visit(node)
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if called == "t":
            node = self._turn(node, "not transposed", node.func.value)
        if called == "sum":
            mean = ast.Attribute(node.func.value, "mean", ast.Load())
            node = self._turn(node, "mean for sum", ast.Call(mean, node.args, node.keywords))
        if called in ("tanh", "sigmoid"):
            other = ast.Attribute(node.func.value, "sigmoid" if called == "tanh" else "tanh", ast.Load())
            node = self._turn(node, f"another function than {called}", ast.Call(other, node.args, node.keywords))
        return node

    def visit_Return(self, node):
        self.generic_visit(node)
        values = node.value.elts if isinstance(node.value, ast.Tuple) else []
        if len(values) < 2:
            return node
        swapped = ast.Return(ast.Tuple([values[1], values[0], *values[2:]], ast.Load()))
        return self._turn(node, "outputs swapped", swapped)


def generate(source):
    """Every mistake that the rules make in the functions that have a part: (function, what, the source with it)."""
    names = {check.needs[-1] for check in CHECKS.values()}
    for k, node in enumerate(ast.parse(source).body):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            counter = _Slip()
            counter.visit(ast.parse(source).body[k])
            for wanted in range(counter.count):
                tree, slip = ast.parse(source), _Slip(wanted)
                tree.body[k] = slip.visit(tree.body[k])
                yield node.name, slip.what, ast.unparse(ast.fix_missing_locations(tree))


def _reach(source):
    """Part -> the names of the solution that its check can come to."""
    nodes = {node.name: node for node in ast.parse(source).body if hasattr(node, "name")}
    inner = {name: {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} for name, node in nodes.items()}
    reached = {}
    for part, check in CHECKS.items():
        cell = CELLS.get(part.partition("_")[0]) if "captioner" in part else None
        others = {name for name in CELLS.values() if name != cell} if cell else set()
        todo, reached[part] = list(check.needs), set()
        while todo:
            name = todo.pop()
            reached[part].add(name)
            todo += inner[name] & set(nodes) - reached[part] - others
    return reached
