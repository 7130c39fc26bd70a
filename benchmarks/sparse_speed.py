"""Does a sparse model run faster than the fastest dense one here?

    $ python benchmarks/sparse_speed.py [--quick] [--arch deit-t] [--batch 1] [--threads 1] [--sparsity 0.75 0.9 0.95]

Random masks of an exact sparsity on every linear layer of the blocks (which weights are zero makes no difference to the
time). All runs in interleaved rounds: median and interquartile range; ratios compare within one run. On a GPU also 2:4.
"""

import argparse

import torch
from common import print_machine

from latency.runtimes import find_device
from latency.sparse_run import SparseReport, measure_sparse
from vit.architecture import Architecture, BlockShape
from vit.checkpoint import Checkpoint
from vit.masks import SparsityMask
from vit.model import VisionTransformer, initialise
from vit.presets import PRESETS, preset

QUICK = Architecture(
    image_size=(32, 32),
    patch_size=(8, 8),
    in_chans=3,
    num_classes=10,
    embed_dim=64,
    blocks=(BlockShape(2, 32, 32, 128),) * 2,
)


def sparse_checkpoint(arch: Architecture, sparsity: float | None, seed: int) -> Checkpoint:
    """Random weights and masks; None: two of every four."""
    draw = torch.Generator().manual_seed(seed)
    model = initialise(VisionTransformer(arch), draw)
    keep = {}
    for name, weight in model.named_parameters():
        if name.startswith("blocks") and weight.ndim == 2:
            if sparsity is None:
                keep[name] = (torch.rand(weight.numel() // 4, 4, generator=draw).argsort(dim=1) < 2).view(weight.shape)
            else:
                order = torch.rand(weight.numel(), generator=draw).argsort()
                keep[name] = (order >= round(sparsity * weight.numel())).view(weight.shape)
    masks = SparsityMask(keep)
    return Checkpoint.of(masks.applied(model), (), masks)


def show(report: SparseReport) -> None:
    fastest = report.dense.latency_ms
    for run in sorted(report.runs, key=lambda run: run.latency_ms):
        kind = "sparse" if run.sparse else "dense"
        print(
            f"  {run.name:42} {kind:6} {run.latency_ms:9.3f} ms, IQR {run.iqr_ms:.3f}, "
            f"{run.latency_ms / fastest:5.2f} of the fastest dense"
        )
    if report.layers:
        ratios = sorted(layer.dense_ms / layer.csr_ms for layer in report.layers)
        print(
            f"  layers, dense fp32 over CSR: {ratios[len(ratios) // 2]:.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}], "
            f"CSR is faster for {sum(layer.pays for layer in report.layers)} of {len(ratios)}"
        )
    for reason in report.left_out:
        print(f"  left out: {reason}")
    print(f"  {report.verdict()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--arch", default="deit-t", choices=PRESETS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.75, 0.9, 0.95])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    levels: list[float | None] = [0.9] if options.quick else list(options.sparsity)
    device = find_device("cuda" if torch.cuda.is_available() else "cpu", options.threads)
    if device.torch_device == "cuda":
        levels = [None]
    print_machine("torch", "onnxruntime")
    arch = QUICK if options.quick else preset(options.arch)
    rounds = 2 if options.quick else options.rounds
    print(
        f"{device.slug}: {'a small model' if options.quick else options.arch}, batch {options.batch}, "
        f"{rounds} rounds, seed {options.seed}"
    )
    for level in levels:
        checkpoint = sparse_checkpoint(arch, level, options.seed)
        print("2:4" if level is None else f"sparsity {level:.0%} of the blocks' linear layers")
        show(measure_sparse(checkpoint, device, options.batch, rounds=rounds, seed=options.seed))


if __name__ == "__main__":
    main()
