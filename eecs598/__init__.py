"""The course library: data, checks, encoders, training and figures.

Nothing here imports `rnn_lstm_captioning` or `helpers`: what a function needs of them is passed as an
argument, so that a student's own `rnn_lstm_captioning.py` can be dropped in.
"""
