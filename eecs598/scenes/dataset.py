"""Generating the data set in several processes: pictures, captions and facts of scenes, as a data file's dict."""

import os
import random
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import torch
from tqdm import tqdm

from eecs598.coco import DataError, build_vocabulary, encode_captions
from eecs598.scenes.caption import locate_words, write_captions
from eecs598.scenes.compose import compose_scene
from eecs598.scenes.draw import draw_scene


def _draw_chunk(job):
    """Pictures, scenes and captions for a range of scenes. Each scene has its own random generator."""
    seed, split, start, stop, image_size = job
    pictures, scenes, captions = [], [], []
    for i in range(start, stop):
        rng = random.Random(f"{seed} {split} {i}")
        scene = compose_scene(rng, split == "val" and i % 3 != 2, image_size)
        captions.append(write_captions(scene, rng))
        scene["boxes"] = locate_words(scene, captions[-1], float(image_size))
        scenes.append(scene)
        pictures.append(draw_scene(scene, rng, image_size))
    return np.stack(pictures), scenes, captions


def _draw_chunks(jobs, workers):
    """The results of all jobs in order, from a pool of processes, or from this process if there can be none."""
    done = 0
    try:
        if workers > 1:
            with ProcessPoolExecutor(workers) as pool:
                for result in pool.map(_draw_chunk, jobs):
                    yield result
                    done += 1
    except (OSError, ImportError, NotImplementedError, BrokenProcessPool):
        pass  # no semaphores or no processes here, or they were killed
    yield from map(_draw_chunk, jobs[done:])


def make_scenes(num_train=10_000, num_val=500, seed=0, image_size=112, workers=None, progress=True):
    """Draw and caption the embedded data set. Returns a data file's dict.

    One of the five captions of each picture, chosen by the seed, is its row of `*_captions`; `*_references` has all
    five. `*_scenes` has the facts as in `compose_scene`, and `boxes`: for each word of the five captions that refers to
    an object, a pair or the background, its boxes [x0, y0, x1, y1] in pixels. Two of three validation scenes are
    `unseen`: they contain a combination in RESERVED_PAIRS or RESERVED_TRIPLES. No training scene does. The same seed
    gives the same data for any number of `workers` (processes; None: one per core). Raises DataError.
    """
    limits = {
        "num_train": (num_train, 1, 10**7), "num_val": (num_val, 1, 10**7), "image_size": (image_size, 32, 1024),
        "workers": (1 if workers is None else workers, 1, 61),
    }  # fmt: skip
    for name, (value, low, high) in limits.items():
        if not isinstance(value, int) or not low <= value <= high:
            raise DataError(f"{name} is {value!r}, wanted a whole number from {low} to {high}")
    counts = {"train": num_train, "val": num_val}
    starts = [(split, k, n) for split, n in counts.items() for k in range(0, n, 50)]
    jobs = [(seed, split, k, min(k + 50, n), image_size) for split, k, n in starts]
    workers = min(workers or os.cpu_count() or 1, 61, len(jobs) // 2)  # Windows allows 61
    shape = (3, image_size, image_size)
    try:
        pixels = {split: torch.empty(n, *shape, dtype=torch.uint8) for split, n in counts.items()}
    except RuntimeError:
        raise DataError(f"{num_train + num_val} pictures of {shape} bytes do not fit in memory") from None
    facts, references = {"train": [], "val": []}, {"train": [], "val": []}
    with tqdm(total=sum(counts.values()), unit="picture", desc="scenes", disable=not progress) as bar:
        for (drawn, scenes, captions), (_, split, start, stop, _) in zip(_draw_chunks(jobs, workers), jobs):
            pixels[split][start:stop] = torch.from_numpy(drawn)
            facts[split] += scenes
            references[split] += captions
            bar.update(stop - start)
    return _assemble(pixels, facts, references, image_size)


def _assemble(pixels, facts, references, image_size):
    vocab = build_vocabulary(caption.split() for captions in references["train"] for caption in captions)
    data, first_id = {"vocab": vocab, "preprocessing": {"image_size": image_size, "fit": "stretch"}}, 0
    for split, captions in references.items():
        data[f"{split}_images"] = pixels[split]
        data[f"{split}_captions"] = encode_captions([five[0].split() for five in captions], vocab)
        data[f"{split}_image_ids"] = torch.arange(first_id, first_id + len(captions))
        data[f"{split}_references"] = captions
        data[f"{split}_scenes"] = facts[split]
        first_id += len(captions)
    return data
