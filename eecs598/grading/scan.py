"""Find where a submission uses autograd or PyTorch's cells and attention instead of code written by hand.

The source is parsed here and never run. Such a use can be hidden on purpose, so `strange` lists the names that hiding
one requires; the process that runs the submission also records calls of torch's functions (`sandbox.Watch`).
"""

import ast
from pathlib import Path

AUTOGRAD = {"grad", "backward", "vjp", "jvp", "jacrev", "jacfwd", "jacobian", "grad_and_value", "enable_grad",
            "requires_grad_"}  # fmt: skip
CELLS = {"LSTM", "RNN", "GRU", "LSTMCell", "RNNCell", "GRUCell", "RNNBase", "lstm_cell", "gru_cell", "rnn_tanh_cell",
         "rnn_relu_cell", "lstm", "gru", "rnn_tanh", "rnn_relu", "scaled_dot_product_attention", "MultiheadAttention",
         "multi_head_attention_forward", "_thnn_fused_lstm_cell"}  # fmt: skip
HIDING = {"exec", "eval", "__import__", "ctypes", "inspect", "gc", "pickle", "marshal", "zlib", "base64", "_C", "_VF",
          "builtins", "__builtins__", "__globals__", "__code__"}  # fmt: skip
BUILT_IN = {"exec", "eval"}  # of these, as functions that are called by name


class Text:
    """The parsed text of a submission: its source, in bytes, and those of the files beside it that it names.

    files: name -> bytes. strange: the names in them that can hide a use, in order.
    """

    def __init__(self, source, files=None):
        self.nodes, self.names, self.modules, self.known, self.strange = {}, set(), set(), {}, []
        beside = {Path(name).stem: text for name, text in (files or {}).items()}
        todo = [source]
        while todo:
            self._read(todo.pop())
            todo += [beside.pop(name) for name in self.names & beside.keys()]
        self.strange = sorted(set(self.strange))

    def _read(self, text):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self.modules |= set(_names_of_torch(node))
                named = {part for alias in node.names for part in alias.name.split(".")}
                named |= set((getattr(node, "module", "") or "").split("."))
            else:
                named = {node.id} if isinstance(node, ast.Name) else set()
                named |= {node.attr} - BUILT_IN if isinstance(node, ast.Attribute) else set()  # model.eval()
            self.strange += named & HIDING
            self.names |= named | ({node.value} if _is_text(node) else set())  # importlib.import_module("mine")
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
            nodes = self.nodes.get(name, ())
            named = set().union(*map(_free_names, nodes))
            used = (self._used_by(inner) for node in nodes for inner in ast.walk(node))
            self.known[name] = named, set().union(*used)
        return self.known[name]

    def _used_by(self, node):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            return {alias.name for alias in node.names} & (AUTOGRAD | CELLS)
        if _is_text(node):  # getattr(torch, "lstm_cell")
            return {node.value} & (CELLS - {"RNN", "LSTM", "GRU", "lstm", "gru"})
        if not isinstance(node, ast.Attribute):
            return set()
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        of_module = isinstance(root, ast.Name) and root.id in self.modules
        return {node.attr} & (AUTOGRAD | (CELLS if of_module else set()))


def _names_of_torch(node):
    """The names that an import gives to torch or to what is in it."""
    whole = getattr(node, "module", None) or ""
    for alias in node.names:
        if (whole or alias.name).partition(".")[0] == "torch":
            yield alias.asname or alias.name.partition(".")[0]


def _is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _free_names(statement):
    """The names that a statement takes from outside: a function's arguments and variables are its own."""
    found, seen, todo = set(), set(), [(statement, frozenset(), False)]
    while todo:
        node, bound, inside = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, ast.Name):
            found |= {node.id} - bound
        outside = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            given = (*node.args.defaults, *node.args.kw_defaults, *getattr(node, "decorator_list", ()))
            outside = [(part, bound, inside) for part in given if part]
            if not inside:  # the names of the functions in it are taken for its own: one walk, however deep they nest
                bound, inside = bound | _bound_names(node), True
        todo += [(part, bound, inside) for part in ast.iter_child_nodes(node)]
        todo += outside  # read first, and not again as children
    return found


def _bound_names(function):
    """The arguments and variables of a function and of all functions in it."""
    parts = list(ast.walk(function))
    own = {part.arg for part in parts if isinstance(part, ast.arg)}
    own |= {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    return own.difference(*(part.names for part in parts if isinstance(part, (ast.Global, ast.Nonlocal))))


def forbidden(part, name):
    """Whether a part must not use torch's `name`: autograd in a backward pass; a cell or attention anywhere."""
    return name in CELLS or (name in AUTOGRAD and part.endswith("_backward"))
