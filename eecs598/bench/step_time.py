"""The time of a training step, split into computation and communication, for one or more processes.

    python -m eecs598.bench.step_time [--processes 1 2] [--rounds 15] [--batch-size 256] [--cell attn] [--device cpu]
    python -m eecs598.bench.step_time --estimate

The first command measures the step of `eecs598.training.solver` on features, with the batch shared by the processes
that torchrun starts on this machine; the same step without exchanging gradients ("computation"); and the sum of the
gradients alone ("all-reduce"). The second one measures nothing: it prints an estimate for COCO.
"""

import json
import math
import os
import subprocess
import sys
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist

from eecs598 import bench
from eecs598.bench.pairs import MODULE, module_file
from eecs598.captioner import CELL_TYPES
from eecs598.commands import Parser, command, device, positive
from eecs598.training import processes, solver
from eecs598.training.objective import Objective

KINDS = ("step", "computation", "all-reduce")
COCO = 118_000  # its training pictures
EPOCHS = 60  # of a training run
LINKS = {"8 on one machine, PCIe": (10e9, 10e-6), "between machines, 25 Gbit/s": (2.5e9, 30e-6)}  # bytes/s, seconds


class Estimate(NamedTuple):
    """The estimate for an epoch, with times in seconds. communication: its fraction of a step."""

    gpus: int
    step: float
    communication: float
    epoch: float


def estimate(gpus, batch_size, rate, gradient_bytes, bandwidth, latency, pictures=COCO):
    """Estimate an epoch on `gpus` GPUs, each with batches of batch_size and a speed of `rate` pictures a second.

    In a ring all-reduce, each GPU sends and receives 2 (p - 1) / p of the gradients' bytes in 2 (p - 1) messages, with
    `bandwidth` in bytes per second and a `latency` in seconds. The estimate is conservative in that communication does
    not overlap with the backward pass, and optimistic in that each GPU computes as fast as a single one.
    """
    exchanged = 2 * (gpus - 1) * (gradient_bytes / (gpus * bandwidth) + latency)
    step = batch_size / rate + exchanged
    return Estimate(gpus, step, exchanged / step, math.ceil(pictures / (gpus * batch_size)) * step)


def measure(options):
    """In one of the processes: its fastest times in milliseconds by kind, and the size of the gradients in bytes.

    The minimum is used, since other work on the machine can only increase times.
    """
    sizes = bench.Sizes(N=options.batch_size)
    with processes.joined(options.device) as where:
        torch.manual_seed(0)
        model, _, (features, captions) = bench.captioner_and_data(
            bench.load_module(options.module), sizes, options.cell, 0.42, where)
        run = solver.Run(model, sizes.N, batch_size=sizes.N, learning_rate=1e-3, loss=Objective(model))
        gradient = torch.zeros(sum(p.numel() for p in run.parameters), device=where)
        rows = torch.arange(sizes.N)

        def loss_of(together, part):
            return together(features[part], captions[part])

        actions = partial(run.step, rows, loss_of), partial(_compute, run, rows, loss_of), partial(_sum, run, gradient)
        times = {kind: [] for kind in KINDS}
        for _ in range(options.rounds + 2):
            for kind, action in zip(KINDS, actions):
                run.processes.wait()
                times[kind].append(bench.seconds(action, where))
        fastest = {kind: 1e3 * min(values[2:]) for kind, values in times.items()}
        return fastest | {"bytes": gradient.nbytes}


def _compute(run, rows, loss_of):
    """`Run.step` without communication."""
    run.optimizer.zero_grad(set_to_none=True)
    share, weight = run.processes.share(rows)
    with run.processes.alone(run.together, True):
        loss = loss_of(run.together, share) * (len(share) * weight)
        loss.backward()
    loss.item()
    run.optimizer.step()


def _sum(run, gradient):
    if run.processes.count > 1:
        dist.all_reduce(gradient)


def launch(count, arguments):
    """Run `measure` in `count` processes under torchrun, and return the result of the first one."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [*torchrun, "-m", "eecs598.bench.step_time", "--worker", *arguments]
    environment = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=MODULE.parent,
                          env=environment | os.environ)  # fmt: skip
    if done.returncode:
        lines = done.stderr.splitlines() or ["no message"]
        message = next((line for line in lines if "Error" in line), lines[-1])
        raise RuntimeError(f"{count} processes: {message.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def measured_table(found):
    """The lines of a table from {number of processes: result of `measure`}."""
    lines = [f"{'processes':>9}  {'step':>9}  {'computation':>11}  {'communication':>13}  all-reduce alone"]
    for count, values in found.items():
        step, computation, alone = (values[kind] for kind in KINDS)
        times = (f"{step:6.0f} ms", f"{computation:8.0f} ms", f"{step - computation:10.0f} ms")
        lines.append("  ".join([f"{count:>9}", *times, f"{alone if count > 1 else 0:13.1f} ms"]))
    return lines


def estimated_table(batch_size, rate, gradient_bytes):
    """The lines of a table of `estimate` for 1 to 64 GPUs, over the link for that number."""
    lines = [f"{'GPUs':>4}  {'step':>8}  {'communication':>13}  {'epoch':>9}  {EPOCHS} epochs"]
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        link = list(LINKS.values())[gpus > 8]
        found = estimate(gpus, batch_size, rate, gradient_bytes, *link)
        lines.append(f"{gpus:>4}  {1e3 * found.step:5.0f} ms  {found.communication:13.1%}  {found.epoch:7.1f} s"
                     f"  {EPOCHS * found.epoch / 60:6.1f} min")  # fmt: skip
    return lines


@command
def main(arguments=None):
    parser = Parser(prog="python -m eecs598.bench.step_time", description="Computation and communication in a step.")
    add = parser.add_argument
    add("--processes", type=positive, nargs="+", default=[1, 2], metavar="P", help="numbers of processes (1 2)")
    add("--rounds", type=positive, default=15, help="steps of each kind; the fastest counts (15)")
    add("--batch-size", type=positive, default=256, metavar="N", help="captions in a batch, over all processes (256)")
    add("--cell", choices=CELL_TYPES, default="attn", help="which captioner (attn)")
    add("--module", type=module_file, default=MODULE, help="the rnn_lstm_captioning.py to measure")
    add("--device", type=device, default=torch.device("cpu"), help="cpu or cuda")
    add("--estimate", action="store_true", help="measure nothing: COCO on 1 to 64 GPUs, on paper")
    add("--worker", action="store_true", help="used by this command itself, under torchrun")
    options = parser.parse_args(arguments)
    if options.worker:
        found = measure(options)
        if int(os.environ.get("RANK", 0)) == 0:
            print(json.dumps(found))
    elif options.estimate:
        print("\n".join(estimated_table(batch_size=250, rate=10_000 / 14.5, gradient_bytes=62.5e6)))
    else:
        given = sys.argv[1:] if arguments is None else arguments
        try:
            given = [*given, "--module", str(options.module)]  # absolute, as the processes run in another folder
            found = {count: launch(count, given) for count in options.processes}
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print("\n".join(measured_table(found)))
        megabytes = next(iter(found.values()))["bytes"] / 1e6
        print(f"gradients: {megabytes:.1f} MB; {bench.describe_machine(options.device)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
