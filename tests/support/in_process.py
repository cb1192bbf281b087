"""A grader without a process for each part, which takes a fifth of the time."""

import copy
import functools
import types
from unittest import mock

import torch

from eecs598 import encoders, features
from eecs598.grading import grader as grading
from eecs598.grading.remote import CAPTIONER


class Grader(grading.Grader):
    """Grades sources of these tests, which are known to end and to touch nothing, in this process."""

    def __init__(self, seed=None):
        super().__init__(None, timeout=600.0, limit=3600.0, seed=seed, advice=False)

    def _sandbox(self, submission):
        return _Box(submission.source)


class _Box:
    """What `remote.Sandbox` is to the grader: a submission that has just been imported."""

    def __init__(self, source):
        self.module, self.source, self.used = types.ModuleType("submission"), source, set()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def load(self, names):
        exec(_compiled(self.source), self.module.__dict__)
        return {"has": [name for name in names if hasattr(self.module, name)], "stand_ins": [], "cuda": False}

    def lend(self, source, names, further=""):
        lent = types.ModuleType("underneath")
        exec(_compiled(source), lent.__dict__)
        for name in names:
            setattr(self.module, name, getattr(lent, name))
        exec(further, {"torch": torch, "submission": self.module})

    def function(self, name):
        return lambda *args, **kwargs: getattr(self.module, name)(*args, **kwargs)

    def make_class(self, name):
        def make(*args, **kwargs):
            made = functools.partial(getattr(self.module, name), *args, **kwargs)
            if name != CAPTIONER:
                return made()
            with features.without_image_encoder(made.func, kwargs["input_dim"]):
                return made()

        def make_whole(*args, **kwargs):
            models = encoders.import_torchvision().models
            network, weights = _regnet()
            network.train().load_state_dict(weights)
            with mock.patch.object(models, "regnet_x_400mf", lambda **options: network):
                return getattr(self.module, name)(*args, **kwargs)

        make.whole = make_whole
        return make


@functools.cache
def _regnet():
    """A network for all captioners of these tests, one after the other, and its first weights."""
    network = encoders.import_torchvision().models.regnet_x_400mf(weights=None)
    return network, copy.deepcopy(network.state_dict())


@functools.lru_cache(8)
def _compiled(source):
    return compile(source, "submission", "exec")
