"""Find where a submission uses autograd or PyTorch's cells and attention instead of code written by hand.

The source is parsed here and never run. Such a use can be hidden on purpose, so `strange` lists the names that hiding
one requires; the process that runs the submission also records calls of torch's functions (`sandbox.Watch`).
"""

import ast

AUTOGRAD = {"grad", "backward", "vjp", "jvp", "jacrev", "jacfwd", "jacobian", "grad_and_value", "enable_grad",
            "requires_grad_"}  # fmt: skip
CELLS = {"LSTM", "RNN", "GRU", "LSTMCell", "RNNCell", "GRUCell", "RNNBase", "lstm_cell", "gru_cell", "rnn_tanh_cell",
         "rnn_relu_cell", "lstm", "gru", "rnn_tanh", "rnn_relu", "scaled_dot_product_attention", "MultiheadAttention",
         "multi_head_attention_forward", "_thnn_fused_lstm_cell"}  # fmt: skip
HIDING = {"exec", "eval", "__import__", "ctypes", "inspect", "gc", "pickle", "marshal", "zlib", "base64", "_C", "_VF",
          "__builtins__", "__globals__", "__code__"}  # fmt: skip


class Text:
    """The parsed text of a submission: its source and the files beside it, all bytes."""

    def __init__(self, source, files=()):
        self.nodes, self.names, self.modules, self.known = {}, set(), set(), {}
        for text in (source, *files):
            try:
                tree = ast.parse(text)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    self.modules |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
                    self.names |= {part for alias in node.names for part in alias.name.split(".")}
                elif isinstance(node, ast.Attribute):
                    self.names.add(node.attr)
                elif isinstance(node, ast.Name):
                    self.names.add(node.id)
            for node in tree.body:
                self._enter(node)

    def _enter(self, node):
        """Record a top-level statement under each name that it defines."""
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [inner.id for target in targets if target for inner in ast.walk(target) if isinstance(inner, ast.Name)]
        names += [getattr(node, "name", "")]
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names += [alias.asname or alias.name.partition(".")[0] for alias in node.names]
        for name in filter(None, names):
            self.nodes.setdefault(name, []).append(node)

    def uses(self, name):
        """The names among AUTOGRAD and CELLS that a function or class uses, directly or through others, in order."""
        found, seen, todo = set(), set(), [name]
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                named, used = self._own_uses(name)
                todo += named
                found |= used
        return sorted(found)

    def _own_uses(self, name):
        """The names in the statements that define a name, and what of AUTOGRAD and CELLS they use: two sets."""
        if name not in self.known:
            nodes = [inner for node in self.nodes.get(name, ()) for inner in ast.walk(node)]
            named = {node.id for node in nodes if isinstance(node, ast.Name)}
            self.known[name] = named, set().union(*map(self._used_by, nodes))
        return self.known[name]

    def _used_by(self, node):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            return {alias.name for alias in node.names} & (AUTOGRAD | CELLS)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):  # getattr(torch, "lstm_cell")
            return {node.value} & (CELLS - {"RNN", "LSTM", "GRU", "lstm", "gru"})
        if not isinstance(node, ast.Attribute):
            return set()
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        of_module = isinstance(root, ast.Name) and root.id in self.modules
        return {node.attr} & (AUTOGRAD | (CELLS if of_module else set()))

    @property
    def strange(self):
        """The names in it that can hide a use, in order."""
        return sorted(self.names & HIDING)


def forbidden(part, name):
    """Whether a part must not use torch's `name`: autograd in a backward pass; a cell or attention anywhere."""
    return name in CELLS or (name in AUTOGRAD and part.endswith("_backward"))
