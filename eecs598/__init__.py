"""The course library.

For the learner, who reads rnn_lstm_captioning.py and works through the notebook:

    bridge       by_hand: a hand-written forward and backward as one node of autograd's graph
    checks       comparison of each part with PyTorch, with hints for common mistakes
    grad         numeric gradients, relative errors       utils     what the published notebook imports
    notebook     functions for its cells                  vis       figures, and the attention viewer
    scenes       the embedded data set: drawn pictures, their captions, and a judge of whether a caption is true
    shapes       which argument has the wrong shape, said where a call fails

For the tinkerer, who trains on more data and captions photographs:

    coco         data files: fetch, build, check, show    metrics   BLEU, CIDEr-D, ROUGE-L, METEOR, the tokenizer
    encoders     pretrained image encoders                features  image features, computed once and cached
    captioner    make, save and load a captioner, caption pictures with it
    decoding     beam search and sampling                 deep_output    a captioner with a deep output layer
    by_picture   captions of a picture as queries to its grid
    teacher_forcing    the probability and the attention map of each word of a given caption
    inflation    four ways to raise BLEU without better captions
    reranking    of the captions found, the one with the n-grams that the picture's features suggest
    training     training runs: solver, objective, checkpoints, self-critical training, several processes, recipes
    bench        the speed tables                         cli       the commands
    commands     what all commands share                  files     atomic writes, locks, memory-mapped files
    choosing     autotuning: the fastest of several implementations
    scripts      non-Latin scripts: combining marks, and text without spaces between words
    badge        the "Open in Colab" badge                progress  progress bars, and notes above them

# INSTRUCTORS ONLY
    fast         the same functions optimized for speed: rnn, lstm, attention, layers, packing, loss, dropout,
                 arithmetic, kernels

For the instructor:

    handout      the student edition                      grading   the grader and its sandbox
# END INSTRUCTORS

Nothing here imports `rnn_lstm_captioning` or `helpers`. Functions take what they need from them as arguments, so that
a student's own `rnn_lstm_captioning.py` can be dropped in.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the project's folder
DATASETS = ROOT / "datasets"

# How often a thread of GNU's OpenMP, which PyTorch uses on Linux, looks for work before it sleeps: 300,000 times by
# default. On a busy machine, a thread that looks takes the core from the one it waits for. Read when torch is imported.
SPINS = "10000"
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = SPINS
