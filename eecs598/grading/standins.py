"""What a submission may take for granted where it is graded: the course's helpers, a GPU, an image encoder."""

import contextlib
import copy
import importlib
import importlib.machinery
import os
import random
import types

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from eecs598 import encoders

ABSENT = ("a4_helper", "a5_helper", "helpers", "coutils", "google", "cv2", "seaborn", "IPython", "matplotlib", "tqdm")


class Inert:
    """Accepts any attribute, call and iteration, and does nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args, **kwargs):
        return self

    def __iter__(self):
        return iter(())


class StandIns:
    """A finder of last resort: for the course's helpers, and what is often imported and not needed, a stand-in.

    It holds what the course's helper files pass on to `import *`, and functions that fail when they are called; those
    of Colab and IPython, which mount a drive or set a magic, do nothing.
    """

    def __init__(self):
        self.used = []

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ABSENT:
            return None
        self.used.append(name)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        shared = {"torch": torch, "nn": nn, "F": nn.functional, "random": random, "os": os}
        module = types.ModuleType(spec.name)
        module.__dict__.update(shared, __all__=list(shared), __getattr__=self._missing(spec.name))
        return module

    def exec_module(self, module):
        pass

    @staticmethod
    def _missing(module):
        def missing(name):
            if name.startswith("__"):
                raise AttributeError(name)
            if module.partition(".")[0] in ("google", "IPython"):
                return Inert()

            def call(*args, **kwargs):
                raise RuntimeError(f"{module}.{name} is not to be had while grading")

            return call

        return missing


def lend_regnet(ready=0):
    """From now on torchvision's RegNetX-400MF is a copy of one with random weights, whatever weights are asked for.

    A captioner is checked on features that are given. So nothing is downloaded here, and building one is quick.
    ready: copies made beforehand; every process forked from this one has them, and copies more once it has used them.
    """
    models = encoders.import_torchvision().models
    network = models.regnet_x_400mf(weights=None)
    # The published starter code does this: what it imports is then there in every process forked from this one.
    feature_extraction = importlib.import_module("torchvision.models.feature_extraction")
    feature_extraction.create_feature_extractor(network, return_nodes=["trunk_output.block4"])
    copies = [copy.deepcopy(network) for _ in range(ready)]

    def regnet_x_400mf(*args, **kwargs):
        return copies.pop() if copies else copy.deepcopy(network)

    models.regnet_x_400mf = models.regnet.regnet_x_400mf = regnet_x_400mf


class CudaOnCpu(TorchFunctionMode):
    """`.cuda()` and device="cuda" give the CPU: for files that assume a GPU, on a machine without one."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.cuda, nn.Module.cuda):
            return args[0]
        kwargs = {key: self._on_cpu(value) for key, value in (kwargs or {}).items()}
        result = function(*map(self._on_cpu, args), **kwargs)
        is_cpu = isinstance(result, torch.device) and result.type == "cpu"
        return torch.device("cpu") if is_cpu else result  # not cpu:0, from torch.device("cuda", 0)

    @staticmethod
    def _on_cpu(value):
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        if isinstance(value, str):
            return "cpu" if value.partition(":")[0] == "cuda" else value.replace("torch.cuda.", "torch.")
        return value


def lend_cuda():
    """From now on what else such files call of torch.cuda does nothing, or gives the CPU's."""
    for name in ("synchronize", "set_device", "init"):
        setattr(torch.cuda, name, lambda *args, **kwargs: None)
    torch.cuda.current_device, torch.cuda.get_device_name = lambda: 0, lambda *args: "CPU"
    torch.cuda.device = lambda *args: contextlib.nullcontext()
    for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"):
        setattr(torch.cuda, f"{kind}Tensor", getattr(torch, f"{kind}Tensor"))
