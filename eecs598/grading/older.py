"""Files of the 2019 and 2020 assignments, whose LSTM and attention are functions instead of classes.

    lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b, attn=None, Wattn=None) -> next_h, next_c
    lstm_forward(x, h0, Wx, Wh, b) -> h;  attention_forward(x, A, Wx, Wh, Wattn, b) -> h

The captioner takes other arguments and another image encoder; everything else is as in later years.
"""

import ast

DIFFERENT = {"lstm_step_forward", "lstm_forward", "CaptioningRNN"}  # names with another meaning there
ADVICE = ("this file is for the 2019 or 2020 assignment: its RNN, word embedding, loss, LSTM and attention can be "
          "graded, its captioner, which takes other arguments, cannot")  # fmt: skip

# Runs in the submission's process, with its module as `submission`.
CLASSES = """
class LSTM(torch.nn.Module):
    def __init__(self, D, H, **further):
        super().__init__()
        shapes = {"Wx": (D, 4 * H), "Wh": (H, 4 * H), **further, "b": (4 * H,)}
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.zeros(shape)))

    def step_forward(self, x, prev_h, prev_c):
        return submission.lstm_step_forward(x, prev_h, prev_c, self.Wx, self.Wh, self.b)

    def forward(self, x, h0):
        return submission.lstm_forward(x, h0, self.Wx, self.Wh, self.b)


class AttentionLSTM(LSTM):
    def __init__(self, D, H):
        super().__init__(D, H, Wattn=(H, 4 * H))

    def step_forward(self, x, prev_h, prev_c, attn):
        return submission.lstm_step_forward(x, prev_h, prev_c, self.Wx, self.Wh, self.b, attn, self.Wattn)

    def forward(self, x, A):
        return submission.attention_forward(x, A, self.Wx, self.Wh, self.Wattn, self.b)


submission.LSTM, submission.AttentionLSTM = LSTM, AttentionLSTM
"""


def is_older(source):
    """Whether a submission's source, as bytes, is from those years: later files define the classes."""
    arguments = _arguments(source)
    older = "attention_forward" in arguments or "Wattn" in arguments.get("lstm_step_forward", ())
    classes = {node.name for node in _body(source) if isinstance(node, ast.ClassDef)}
    return older and not classes & {"LSTM", "AttentionLSTM"}


def current_names(source, names):
    """The current names of what an older file defines."""
    functions, given = _arguments(source), [name for name in names if name not in DIFFERENT]
    made = [name for name, function in {"LSTM": "lstm_forward", "AttentionLSTM": "attention_forward"}.items()
            if function in functions]  # fmt: skip
    return list(dict.fromkeys([*given, *made]))


def _arguments(source):
    """Function -> its arguments."""
    return {node.name: [argument.arg for argument in node.args.args] for node in _body(source)
            if isinstance(node, ast.FunctionDef)}  # fmt: skip


def _body(source):
    """The top-level statements; none if the source is not valid Python."""
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
