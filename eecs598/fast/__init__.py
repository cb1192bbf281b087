"""The lesson's mathematics again, written for speed: the same parameters, the same numbers, less time.

    packing      captions of different lengths in one batch: steps that are only padding are not computed
    rnn, lstm, attention   the sequences, forward above backward, with few and large matrix products
    loss         the map to the vocabulary and the loss, a block of states at a time
    layers       RNN, LSTM and AttentionLSTM: the lesson's classes and state dicts, with `forward(..., lengths=None)`
    arithmetic   the matrix product and tanh, by the fastest way on this machine
    kernels      on a GPU, the LSTM's nonlinear half as one kernel each way

Tests hold every function here equal to the plain one in rnn_lstm_captioning.py. `eecs598.training.objective` trains a
captioner with it.
"""

from eecs598.fast.layers import LSTM, RNN, AttentionLSTM

__all__ = ["LSTM", "RNN", "AttentionLSTM"]
