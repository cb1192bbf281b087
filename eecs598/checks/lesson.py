"""The checks, in the order of the lesson: importing this fills `CHECKS`."""

from eecs598.checks import parts
from eecs598.checks.captioner import add_captioner_checks
from eecs598.checks.comparing import compare_gradients
from eecs598.checks.kinds import add_backward_check, add_forward_check, add_module_check
from eecs598.checks.parts import as_published
from eecs598.checks.properties import ignore_padding, weigh_cells


def _inputs_only(inputs, incoming, values):
    return inputs.values()


def _incoming_inputs_weights(inputs, incoming, values):
    return *incoming, *inputs.values(), values["attn_weights"]


# Sizes as in the cells of the published notebook, which runs its RNN in float64 for numeric gradients.
_RNN_STEP = as_published(parts.RNN_STEP, N=4, D=5, H=6, single=False)
_RNN_SEQUENCE = as_published(parts.RNN_SEQUENCE, N=2, T=10, D=3, H=5, single=False)
add_forward_check("rnn_step_forward", _RNN_STEP)
add_backward_check("rnn_step_forward", "rnn_step_backward", _RNN_STEP)
add_forward_check(
    "rnn_forward", _RNN_SEQUENCE, compare_gradients("rnn_forward", _RNN_SEQUENCE, label="gradients by autograd")
)
add_backward_check("rnn_forward", "rnn_backward", _RNN_SEQUENCE)
add_module_check("rnn_module", "RNN", _RNN_SEQUENCE, _RNN_STEP)

add_forward_check("word_embedding_forward", parts.WORD_EMBEDDING)
add_backward_check(
    "word_embedding_forward", "word_embedding_backward", parts.WORD_EMBEDDING
)
add_module_check(
    "word_embedding_module", "WordEmbedding", as_published(parts.WORD_EMBEDDING, N=2, T=4, V=5, W=3)
)
add_forward_check("temporal_affine_forward", parts.TEMPORAL_AFFINE)
add_backward_check(
    "temporal_affine_forward", "temporal_affine_backward", parts.TEMPORAL_AFFINE
)
add_forward_check(
    "temporal_softmax_loss",
    parts.PUBLISHED_SOFTMAX,
    compare_gradients("temporal_softmax_loss", parts.PUBLISHED_SOFTMAX, then=ignore_padding),
    spare=(),
)
add_backward_check(
    "temporal_softmax_loss",
    "temporal_softmax_backward",
    parts.TEMPORAL_SOFTMAX,
    ignore_padding,
    spare=(),
    arguments=_inputs_only,
)
add_captioner_checks(
    "rnn", parts.RNN_CAPTIONER_LOSS, parts.RNN_CAPTIONER_SAMPLE
)

add_forward_check("lstm_step_forward", parts.LSTM_STEP)
add_backward_check("lstm_step_forward", "lstm_step_backward", parts.LSTM_STEP)
add_forward_check("lstm_forward", parts.LSTM_SEQUENCE)
add_backward_check("lstm_forward", "lstm_backward", parts.LSTM_SEQUENCE)
add_module_check(
    "lstm_module",
    "LSTM",
    as_published(parts.LSTM_FROM_H0, N=2, T=3, D=5, H=4),
    as_published(parts.LSTM_STEP, N=3, D=4, H=5),
)
add_captioner_checks(
    "lstm", parts.LSTM_CAPTIONER_LOSS, parts.LSTM_CAPTIONER_SAMPLE
)

add_forward_check(
    "dot_product_attention", as_published(parts.DOT_PRODUCT_ATTENTION, N=2, H=5), weigh_cells, spare=()
)
add_backward_check(
    "dot_product_attention",
    "dot_product_attention_backward",
    parts.DOT_PRODUCT_ATTENTION,
    spare=(),
    arguments=_incoming_inputs_weights,
)
add_forward_check("attention_lstm_step_forward", parts.ATTENTION_LSTM_STEP)
add_backward_check(
    "attention_lstm_step_forward", "attention_lstm_step_backward", parts.ATTENTION_LSTM_STEP
)
add_forward_check("attention_lstm_forward", parts.ATTENTION_LSTM_SEQUENCE)
add_backward_check(
    "attention_lstm_forward", "attention_lstm_backward", parts.ATTENTION_LSTM_SEQUENCE
)
add_module_check(
    "attention_lstm_module",
    "AttentionLSTM",
    as_published(parts.ATTENTION_LSTM_STATES, N=2, T=3, D=5, H=4),
    as_published(parts.ATTENTION_LSTM_STEP, N=3, D=4, H=5),
)
add_captioner_checks(
    "attn", parts.ATTN_CAPTIONER_LOSS, parts.ATTN_CAPTIONER_SAMPLE
)
