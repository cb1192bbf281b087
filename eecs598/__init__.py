"""The course library, in rooms.

For the learner, who reads rnn_lstm_captioning.py and steps through the notebook:

    bridge       by_hand: a forward and a backward as one node of autograd's graph
    checks       the formulas that are right, the mistakes that are usual, the comparison, the table
    grad         numeric gradients, relative errors       utils     what the published notebook imports
    notebook     what its cells call                      vis       figures, and the attention viewer
    scenes       the embedded data set: pictures that a program draws, captions, and whether a caption is true

For the tinkerer, who trains on more data and captions photographs:

    coco         data files: fetch, build, check, show    metrics   BLEU, CIDEr-D, ROUGE-L, the tokenizer
    encoders     image encoders with trained weights      features  features computed once and kept
    captioner    make, save and load a captioner, caption pictures with it
    decoding     greedy captions, beam search, sampling
    training     solver, objective, options, checkpoints, self-critical training, processes, recipes
    bench        the speed tables                         cli       the commands
    commands     what all commands share                  files     files that are written whole or not at all
    choosing     the fastest of several ways, by trying

# INSTRUCTORS ONLY
    fast         the lesson's mathematics for speed: layers, packing, loss, arithmetic, kernels

For the instructor:

    handout      the student edition                      grading   the grader and its sandbox
# END INSTRUCTORS

Nothing here imports `rnn_lstm_captioning` or `helpers`: what a function needs of them is passed as an argument, so that
a student's own `rnn_lstm_captioning.py` can be dropped in.
"""
