"""The lesson's functions optimized for speed, with the same parameters and results.

    packing      batches of captions of different lengths, without computing the padding
    rnn, lstm, attention   the sequences, forward above backward, with few large matrix products
    dropout      with a mask that is drawn faster
    loss         the output layer and the loss as one operation, blockwise
    layers       RNN, LSTM and AttentionLSTM: the lesson's classes and state dicts, with `forward(..., lengths=None)`
    arithmetic   matrix products and tanh, with the fastest implementation on this machine
    kernels      on a GPU, the elementwise part of the LSTM as one kernel, forward and backward

Tests compare every function with the plain one in rnn_lstm_captioning.py. `eecs598.training.objective` trains with it.
"""

from eecs598.fast.layers import LSTM, RNN, AttentionLSTM

__all__ = ["LSTM", "RNN", "AttentionLSTM"]
