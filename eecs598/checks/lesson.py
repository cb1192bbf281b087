"""The checks, in the order of the lesson."""

from eecs598.checks import parts
from eecs598.checks.captioner import captioner_checks
from eecs598.checks.comparing import compare_gradients
from eecs598.checks.kinds import backward_check, forward_check, module_check
from eecs598.checks.parts import as_published
from eecs598.checks.properties import ignore_padding, weigh_cells


def _inputs_only(inputs, incoming, values):
    return inputs.values()


def _incoming_inputs_weights(inputs, incoming, values):
    return *incoming, *inputs.values(), values["attn_weights"]


# Sizes as in the cells of the published notebook, which runs its RNN in float64 for numeric gradients.
_RNN_STEP = as_published(parts.RNN_STEP, N=4, D=5, H=6, single=False)
_RNN_SEQUENCE = as_published(parts.RNN_SEQUENCE, N=2, T=10, D=3, H=5, single=False)
check_rnn_step_forward = forward_check("rnn_step_forward", _RNN_STEP)
check_rnn_step_backward = backward_check("rnn_step_forward", "rnn_step_backward", _RNN_STEP)
check_rnn_forward = forward_check(
    "rnn_forward", _RNN_SEQUENCE, compare_gradients("rnn_forward", _RNN_SEQUENCE, label="gradients by autograd")
)
check_rnn_backward = backward_check("rnn_forward", "rnn_backward", _RNN_SEQUENCE)
check_rnn_module = module_check("rnn_module", "RNN", _RNN_SEQUENCE, _RNN_STEP)

check_word_embedding_forward = forward_check("word_embedding_forward", parts.WORD_EMBEDDING)
check_word_embedding_backward = backward_check(
    "word_embedding_forward", "word_embedding_backward", parts.WORD_EMBEDDING
)
check_word_embedding_module = module_check(
    "word_embedding_module", "WordEmbedding", as_published(parts.WORD_EMBEDDING, N=2, T=4, V=5, W=3)
)
check_temporal_affine_forward = forward_check("temporal_affine_forward", parts.TEMPORAL_AFFINE)
check_temporal_affine_backward = backward_check(
    "temporal_affine_forward", "temporal_affine_backward", parts.TEMPORAL_AFFINE
)
check_temporal_softmax_loss = forward_check(
    "temporal_softmax_loss",
    parts.PUBLISHED_SOFTMAX,
    compare_gradients("temporal_softmax_loss", parts.PUBLISHED_SOFTMAX, then=ignore_padding),
    spare=(),
)
check_temporal_softmax_backward = backward_check(
    "temporal_softmax_loss",
    "temporal_softmax_backward",
    parts.TEMPORAL_SOFTMAX,
    ignore_padding,
    spare=(),
    arguments=_inputs_only,
)
check_rnn_captioner_loss, check_rnn_captioner_sample = captioner_checks(
    "rnn", parts.RNN_CAPTIONER_LOSS, parts.RNN_CAPTIONER_SAMPLE
)

check_lstm_step_forward = forward_check("lstm_step_forward", parts.LSTM_STEP)
check_lstm_step_backward = backward_check("lstm_step_forward", "lstm_step_backward", parts.LSTM_STEP)
check_lstm_forward = forward_check("lstm_forward", parts.LSTM_SEQUENCE)
check_lstm_backward = backward_check("lstm_forward", "lstm_backward", parts.LSTM_SEQUENCE)
check_lstm_module = module_check(
    "lstm_module",
    "LSTM",
    as_published(parts.LSTM_FROM_H0, N=2, T=3, D=5, H=4),
    as_published(parts.LSTM_STEP, N=3, D=4, H=5),
)
check_lstm_captioner_loss, check_lstm_captioner_sample = captioner_checks(
    "lstm", parts.LSTM_CAPTIONER_LOSS, parts.LSTM_CAPTIONER_SAMPLE
)

check_dot_product_attention = forward_check(
    "dot_product_attention", as_published(parts.DOT_PRODUCT_ATTENTION, N=2, H=5), weigh_cells, spare=()
)
check_dot_product_attention_backward = backward_check(
    "dot_product_attention",
    "dot_product_attention_backward",
    parts.DOT_PRODUCT_ATTENTION,
    spare=(),
    arguments=_incoming_inputs_weights,
)
check_attention_lstm_step_forward = forward_check("attention_lstm_step_forward", parts.ATTENTION_LSTM_STEP)
check_attention_lstm_step_backward = backward_check(
    "attention_lstm_step_forward", "attention_lstm_step_backward", parts.ATTENTION_LSTM_STEP
)
check_attention_lstm_forward = forward_check("attention_lstm_forward", parts.ATTENTION_LSTM_SEQUENCE)
check_attention_lstm_backward = backward_check(
    "attention_lstm_forward", "attention_lstm_backward", parts.ATTENTION_LSTM_SEQUENCE
)
check_attention_lstm_module = module_check(
    "attention_lstm_module",
    "AttentionLSTM",
    as_published(parts.ATTENTION_LSTM_STATES, N=2, T=3, D=5, H=4),
    as_published(parts.ATTENTION_LSTM_STEP, N=3, D=4, H=5),
)
check_attn_captioner_loss, check_attn_captioner_sample = captioner_checks(
    "attn", parts.ATTN_CAPTIONER_LOSS, parts.ATTN_CAPTIONER_SAMPLE
)
