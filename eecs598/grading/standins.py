"""Stand-ins for what a submission may expect: the course's helper modules, a GPU, an image encoder."""

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

ABSENT = ("a4_helper", "a5_helper", "helpers", "coutils", "google", "cv2", "seaborn", "IPython", "matplotlib", "tqdm",
          "eecs598.checks")  # fmt: skip


class Inert:
    """Accepts any attribute access, call and iteration, and does nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args, **kwargs):
        return self

    def __iter__(self):
        return iter(())


class StandIns:
    """An import finder of last resort for the course's helper modules and others that are often imported for no need.

    A stand-in has the names that the course's helper files export to `import *`; any other name is a function that
    fails when called. Functions of Colab and IPython, which mount a drive or run a magic, do nothing.
    """

    def __init__(self):
        self.used = []

    def find_spec(self, name, path=None, target=None):
        if not f"{name}.".startswith(tuple(f"{absent}." for absent in ABSENT)):
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
                raise RuntimeError(f"{module}.{name} is not available during grading")

            return call

        return missing


def lend_regnet(ready=0):
    """Make torchvision's RegNetX-400MF return a copy of a network with random weights, whatever weights are requested.

    Captioners are checked on given features, so nothing needs to be downloaded, and copying is faster than building.
    ready: number of copies made in advance, which every forked process inherits.
    """
    models = encoders.import_torchvision().models
    network = models.regnet_x_400mf(weights=None)
    # As in the published starter code, so that forked processes have imported it already.
    feature_extraction = importlib.import_module("torchvision.models.feature_extraction")
    feature_extraction.create_feature_extractor(network, return_nodes=["trunk_output.block4"])
    copies = [copy.deepcopy(network) for _ in range(ready)]

    def regnet_x_400mf(*args, **kwargs):
        return copies.pop() if copies else copy.deepcopy(network)

    encoders.replace_regnet(regnet_x_400mf)


class CudaOnCpu(TorchFunctionMode):
    """Makes `.cuda()` and device="cuda" use the CPU, for submissions that assume a GPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cuda:  # nn.Module.cuda calls it
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
    """Make other functions of torch.cuda that such files call do nothing, or return their counterparts on the CPU."""
    for name in ("synchronize", "set_device", "init"):
        setattr(torch.cuda, name, lambda *args, **kwargs: None)
    torch.cuda.current_device, torch.cuda.get_device_name = lambda: 0, lambda *args: "CPU"
    torch.cuda.device = lambda *args: contextlib.nullcontext()
    for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"):
        setattr(torch.cuda, f"{kind}Tensor", getattr(torch, f"{kind}Tensor"))
