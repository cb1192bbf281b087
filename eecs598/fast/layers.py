"""The lesson's layers with the fast sequence functions, as modules and as functions of the parameters."""

import math

import torch
from torch import nn

from eecs598.bridge import by_hand
from eecs598.fast.attention import attention_lstm_backward, attention_lstm_forward
from eecs598.fast.lstm import lstm_backward, lstm_forward
from eecs598.fast.rnn import rnn_backward, rnn_forward


def run_rnn(x, h0, Wx, Wh, b, lengths=None):
    """x (N, T, D), h0 (N, H) -> h (N, T, H), differentiable; lengths (N,), longest first, or None."""
    return by_hand(rnn_forward, rnn_backward, *in_autocast_precision(x, h0, Wx, Wh, b), lengths)


def run_lstm(x, h0, Wx, Wh, b, lengths=None):
    """As `run_rnn`; c0 is zero."""
    tensors = in_autocast_precision(x, h0, torch.zeros_like(h0), Wx, Wh, b)
    return by_hand(lstm_forward, lstm_backward, *tensors, lengths)


def run_attention_lstm(x, A, Wx, Wh, Wattn, b, lengths=None, order=None):
    """x (N, T, D), A (N, H, h, w) -> h (N, T, H), differentiable; h0 = c0 = mean of A.

    order: if captions share grids, see `eecs598.fast.attention.attention_lstm_forward`.
    """
    tensors = in_autocast_precision(x, A, Wx, Wh, Wattn, b)
    return by_hand(attention_lstm_forward, attention_lstm_backward, *tensors, lengths, order)


def in_autocast_precision(*tensors):
    """The tensors, cast to the lower precision under autocast. Autograd records the casts."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in tensors)


class _Layer(nn.Module):
    """A layer whose parameters have the lesson's names and shapes."""

    gates, of_state = 1, ("Wh",)  # columns of a weight, in units of H; weights with H rows

    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        columns = self.gates * hidden_dim
        for name, rows in {"Wx": input_dim, **dict.fromkeys(self.of_state, hidden_dim)}.items():
            setattr(self, name, nn.Parameter(torch.randn(rows, columns) / math.sqrt(rows)))
        self.b = nn.Parameter(torch.zeros(columns))


class RNN(_Layer):
    """The lesson's RNN: parameters Wx (D, H), Wh (H, H), b (H,)."""

    def forward(self, x, h0, lengths=None):
        """x (N, T, D), h0 (N, H), lengths (N,), longest first. Returns h (N, T, H), 0 after a caption's end."""
        return run_rnn(x, h0, self.Wx, self.Wh, self.b, lengths)


class LSTM(_Layer):
    """The lesson's LSTM: parameters Wx (D, 4H), Wh (H, 4H), b (4H,), gates in the order i, f, o, g."""

    gates = 4

    def forward(self, x, h0, lengths=None):
        """As in RNN; c0 is zero."""
        return run_lstm(x, h0, self.Wx, self.Wh, self.b, lengths)


class AttentionLSTM(_Layer):
    """The lesson's attention LSTM: parameters Wx (D, 4H), Wh and Wattn (H, 4H), b (4H,)."""

    gates, of_state = 4, ("Wh", "Wattn")

    def forward(self, x, A, lengths=None):
        """x (N, T, D), A (N, H, h, w), lengths as in RNN; h0 = c0 = mean of A. Returns h (N, T, H)."""
        return run_attention_lstm(x, A, self.Wx, self.Wh, self.Wattn, self.b, lengths)
