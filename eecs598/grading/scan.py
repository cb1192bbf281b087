"""What a submission's text uses of that which is to be written by hand: autograd, PyTorch's cells, its attention.

The text is read here and never run. Whoever means to hide a use can, so `strange` names what such hiding takes; the
process that runs the submission notes calls of torch's functions besides (`eecs598.grading.sandbox.Watch`).
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
    """A submission's text, source and what lies beside it, all bytes."""

    def __init__(self, source, files=()):
        self.nodes, self.names, self.modules = {}, set(), set()
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
        """Under each name that a statement gives a meaning to, the statement."""
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [inner.id for target in targets if target for inner in ast.walk(target) if isinstance(inner, ast.Name)]
        names += [getattr(node, "name", "")]
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names += [alias.asname or alias.name.partition(".")[0] for alias in node.names]
        for name in filter(None, names):
            self.nodes.setdefault(name, []).append(node)

    def uses(self, name):
        """What a function or class, and all that it names, uses of AUTOGRAD and CELLS: the names, in order."""
        found, seen, todo = set(), set(), [name]
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            for node in self.nodes.get(name, ()):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Name):
                        todo.append(inner.id)
                    found |= self._used_by(inner)
        return sorted(found)

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
        """Names in it by which a use can be hidden, in order."""
        return sorted(self.names & HIDING)


def forbidden(part, name):
    """Whether a part's function may not use torch's `name`: autograd in a backward, a cell or attention anywhere."""
    return name in CELLS or (name in AUTOGRAD and part.endswith("_backward"))
