"""Does a sparse model run faster here than the fastest dense run of it? Timed side by side, layer by layer.

Zeros cost as much as any number in dense kernels, so every dense run of the model is its dense baseline: all runtimes
and dtypes of this machine, and dynamic 8 bit in ONNX Runtime. Against the fastest of them stands the model with those
layers in a sparse format that are measured to be faster in it: CSR on CPUs, 2:4 on GPUs with sparse tensor cores.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latency.errors import TargetError
from latency.runtimes import RUNTIMES, Call, Device, check
from latency.timer import Effort, time_call
from vit.checkpoint import Checkpoint, storage_bytes
from vit.errors import VitfitError
from vit.masks import SparsityMask
from vit.model import VisionTransformer

LAYER_EFFORT = Effort(warmup=3, warmup_seconds=0.2, samples=3, most=9, seconds=0.05)
MODEL_EFFORT = Effort(warmup=2, warmup_seconds=0.5, samples=3, most=9, seconds=0.3)
LEFT_OUT = ("compile", "tensorrt")
"""Building these takes minutes; ask for them by name with `vitfit measure --runtime`."""


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """One masked linear layer on the model's real tokens, dense and in CSR: medians over interleaved rounds."""

    name: str
    sparsity: float
    dense_ms: float
    csr_ms: float

    @property
    def pays(self) -> bool:
        return self.csr_ms < self.dense_ms


@dataclass(frozen=True, slots=True)
class Run:
    """A way to run the whole model, and its time: median over interleaved rounds, and their interquartile range."""

    name: str
    sparse: bool
    latency_ms: float
    iqr_ms: float


@dataclass(frozen=True, slots=True)
class SparseReport:
    """
    Attributes:
        runs: in the order in which they were built; dense ones and at most one sparse.
        layers: of a CPU, every masked linear layer.
        left_out: runs that this machine cannot do, each with the reason.
        stored_bytes, dense_bytes: of the weights in a file, with masks and without.
    """

    batch: int
    sparsity: float
    runs: tuple[Run, ...]
    layers: tuple[LayerTimes, ...]
    left_out: tuple[str, ...]
    stored_bytes: int
    dense_bytes: int

    @property
    def dense(self) -> Run:
        """The fastest dense run."""
        return min((run for run in self.runs if not run.sparse), key=lambda run: run.latency_ms)

    @property
    def sparse(self) -> Run | None:
        return next((run for run in self.runs if run.sparse), None)

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the fastest dense run the sparse one is; None: there is none."""
        return None if self.sparse is None else self.dense.latency_ms / self.sparse.latency_ms

    def verdict(self) -> str:
        """In one sentence, whether sparsity gains anything here."""
        storage = f"the weights take {self.stored_bytes / self.dense_bytes:.0%} of the bytes"
        if self.sparse is None or self.speedup is None:
            return f"sparsity gains no time here: no layer is faster in a sparse format; {storage}"
        # A gain within the spread of the two medians is none.
        if self.dense.latency_ms - self.sparse.latency_ms > max(self.dense.iqr_ms, self.sparse.iqr_ms):
            return f"{self.speedup:.2f} times as fast as the fastest dense run, {self.dense.name}; {storage}"
        return (
            f"sparsity gains no time here: the sparse run ({self.sparse.name}) is {self.speedup:.2f} times as fast as "
            f"the fastest dense one, {self.dense.name}; {storage}"
        )

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "batch": self.batch,
            "sparsity": self.sparsity,
            "runs": [
                {"run": run.name, "sparse": run.sparse, "measured_ms": run.latency_ms, "iqr_ms": run.iqr_ms}
                for run in self.runs
            ],
            "layers": [
                {"layer": layer.name, "sparsity": layer.sparsity, "dense_ms": layer.dense_ms, "csr_ms": layer.csr_ms}
                for layer in self.layers
            ],
            "left_out": list(self.left_out),
            "fastest_dense": self.dense.name,
            "speedup": self.speedup,
            "stored_bytes": self.stored_bytes,
            "dense_bytes": self.dense_bytes,
            "verdict": self.verdict(),
        }


def measure_sparse(
    checkpoint: Checkpoint, device: Device, batch: int = 1, *, rounds: int = 7, seed: int = 0
) -> SparseReport:
    """Time a checkpoint with masks in every way that this machine has, in interleaved rounds.

    Raises:
        TargetError: no masks.
    """
    masks = checkpoint.masks
    if masks is None:
        raise TargetError("the checkpoint has no masks, so there is no sparse run of it")
    model, left_out = checkpoint.model().float(), list[str]()
    shape = (batch, model.arch.in_chans, *model.arch.image_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    layers: tuple[LayerTimes, ...] = ()
    with device.active():
        calls = dict(_dense_calls(model, x, device, left_out))
        sparse = ""
        try:
            if device.torch_device == "cuda":
                faster, sparse = semi_structured(model, masks), "eager bf16 2:4"
                calls[sparse] = RUNTIMES["eager"].load()([faster], x, device, "bf16")[0]
            else:
                layers = time_layers(model, masks, x, device, rounds=rounds, seed=seed)
                names = [layer.name for layer in layers if layer.pays]
                if names:
                    sparse = f"eager fp32, {len(names)} of {len(layers)} layers in CSR"
                    calls[sparse] = RUNTIMES["eager"].load()([with_csr(model, names)], x, device, "fp32")[0]
        except TargetError as error:
            sparse = ""
            left_out.append(f"sparse: {error}")
        samples = interleaved(calls, device, MODEL_EFFORT, rounds, seed)
    runs = tuple(Run(name, name == sparse, *_median_and_iqr(ms)) for name, ms in samples.items())
    return SparseReport(batch, masks.sparsity, runs, layers, tuple(left_out), *storage_bytes(checkpoint))


def _dense_calls(
    model: VisionTransformer, x: Tensor, device: Device, left_out: list[str]
) -> Iterator[tuple[str, Call]]:
    for runtime, row in RUNTIMES.items():
        if runtime in LEFT_OUT:
            continue
        for dtype in row.dtypes.get(device.torch_device, ()):
            if dtype == "amp":
                continue
            try:
                check(runtime, device.torch_device, dtype)
                yield f"{runtime} {dtype}", row.load()([model], x, device, dtype)[0]
            except VitfitError as error:
                left_out.append(f"{runtime} {dtype}: {error}")
    if device.torch_device == "cpu":
        yield "onnxruntime int8", dynamic_int8(model, x, device)


def dynamic_int8(model: nn.Module, x: Tensor, device: Device) -> Call:
    """Linear layers in 8 bit in ONNX Runtime: weights once, activations as they come, neither trained for it."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    from latency.runtimes.onnx_graph import INPUT, export

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = device.threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with TemporaryDirectory() as folder:
        whole, small = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        graph = onnx.load_from_string(export(model, x))
        graph.graph.ClearField("value_info")  # shapes of weights that quantisation transposes
        add_pre_process_metadata(graph)  # or its absence is warned of; the exporter has inferred and folded
        onnx.save(graph, whole)
        quantize_dynamic(whole, small, op_types_to_quantize=["MatMul", "Gemm"])
        session = onnxruntime.InferenceSession(str(small), options, providers=["CPUExecutionProvider"])
    values = {INPUT: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, values)[0])


# --- CSR ---------------------------------------------------------------------------------------------------------


class CsrLinear(nn.Module):
    """A linear layer whose zeros are not multiplied: weights in compressed sparse rows."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sparse CSR is in beta, PyTorch says
            self.register_buffer("weight", layer.weight.detach().to_sparse_csr())
        bias = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
        self.register_buffer("bias", bias.detach()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        # F.linear would do, but not for every layout of x in inference mode.
        columns = torch.addmm(self.bias, self.weight, x.reshape(-1, x.shape[-1]).t())
        return columns.t().reshape(*x.shape[:-1], -1)


def masked_linears(model: nn.Module, masks: SparsityMask) -> dict[str, nn.Linear]:
    """Linear layers that have a mask, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in masks.keep
    }


def with_csr(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy of a model with these linear layers in CSR."""
    return _replaced(model, dict.fromkeys(names, CsrLinear))


def _replaced(model: nn.Module, made: Mapping[str, Callable[[nn.Linear], nn.Module]]) -> nn.Module:
    copied = copy.deepcopy(model)
    for name, make in made.items():
        parent, _, child = name.rpartition(".")
        layer = copied.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(copied.get_submodule(parent), child, make(layer))
    return copied


def time_layers(
    model: nn.Module, masks: SparsityMask, x: Tensor, device: Device, *, rounds: int = 7, seed: int = 0
) -> tuple[LayerTimes, ...]:
    """Every masked linear layer on what reaches it when the model runs on `x`, dense and in CSR by turns."""
    layers, inputs = masked_linears(model, masks), dict[str, Tensor]()
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0].detach()}))
        for name, layer in layers.items()
    ]
    with torch.inference_mode():
        model(x)
    for hook in hooks:
        hook.remove()
    found = []
    for name, layer in layers.items():
        if name in inputs:
            sparse = CsrLinear(layer)
            calls = {"dense": _call(layer, inputs[name]), "csr": _call(sparse, inputs.pop(name))}
            samples = interleaved(calls, device, LAYER_EFFORT, rounds, seed)
            zeros = 1 - float(masks.keep[f"{name}.weight"].float().mean())
            found.append(LayerTimes(name, zeros, float(np.median(samples["dense"])), float(np.median(samples["csr"]))))
    return tuple(found)


def _call(module: nn.Module, x: Tensor) -> Call:
    def call() -> Tensor:
        with torch.inference_mode():
            found: Tensor = module(x)
            return found

    return call


# --- 2:4 ---------------------------------------------------------------------------------------------------------


def is_2_4(keep: Tensor) -> bool:
    """Whether of every four neighbours in a row at most two stay."""
    return keep.ndim == 2 and keep.shape[1] % 4 == 0 and bool((keep.reshape(-1, 4).sum(dim=1) <= 2).all())


def semi_structured(model: nn.Module, masks: SparsityMask) -> nn.Module:
    """A copy of a model on the GPU in bf16 whose masked linear layers run on sparse tensor cores.

    Raises:
        TargetError: no such GPU, or a mask that is not 2:4; says which.
    """
    layers = masked_linears(model, masks)
    for name in layers:
        if not is_2_4(masks.keep[f"{name}.weight"]):
            raise TargetError(f"{name} is not 2:4 sparse; sparse tensor cores take nothing else (--pattern 2:4)")
    if not layers:
        raise TargetError("no linear layer of the model has a mask")
    if not torch.cuda.is_available():
        raise TargetError("2:4 runs on sparse tensor cores of an NVIDIA GPU, and there is none here")
    if (capability := torch.cuda.get_device_capability()) < (8, 0):
        raise TargetError(f"2:4 needs an NVIDIA GPU of compute capability 8.0 (Ampere), this one has {capability}")
    from torch.sparse import to_sparse_semi_structured

    placed = copy.deepcopy(model).to("cuda", torch.bfloat16).eval()
    for name in layers:
        layer = placed.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        try:
            weight = to_sparse_semi_structured(layer.weight.detach())
        except RuntimeError as error:  # sizes that the kernels do not take
            raise TargetError(f"{name} cannot be 2:4 on this GPU: {error!s:.200}") from None
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return placed


# --- timing ------------------------------------------------------------------------------------------------------


def interleaved(
    calls: Mapping[str, Call], device: Device, effort: Effort, rounds: int, seed: int
) -> dict[str, list[float]]:
    """Milliseconds of each call, one a round, in another random order each round."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names, order = list(calls), np.random.default_rng(seed)
    for _ in range(rounds):
        for index in order.permutation(len(names)):
            timing = time_call(calls[names[index]], effort, stopwatch=device.stopwatch())
            samples[names[index]].append(timing.measurement.median_ms)
    return samples


def _median_and_iqr(ms: Sequence[float]) -> tuple[float, float]:
    low, middle, high = np.percentile(ms, (25, 50, 75))
    return float(middle), float(high - low)
