"""Closed-form recovery after a cut: every linear layer of the small model refitted to the dense model's activations.

Block by block from the input, each layer by ridge least squares. A layer's inputs are always those of the small model
as refitted so far, so that it makes up for what the layers before it lost; its outputs shall be

    Q, K, V, fc1     what the dense model computes for the units that stay
    proj, fc2        the dense model's residual stream after the layer, less what the small one has before it
    classifiers      the dense model's logits

No labels, no gradient, no learning rate. Least squares needs the second moments of inputs and outputs only; they are
summed up batch by batch, so memory grows with the square of the width and not with the images, whose residual streams
wait in a temporary file. Layer by layer to the dense model's outputs as in Kwon et al. 2022 (arXiv 2204.09656) and
ZipLM (Kurtic et al. 2023, arXiv 2302.04089); all layers, with inputs of the small model and the stream as the target,
is ours.

B batch, N tokens, E embed_dim.
"""

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vit.errors import CalibrationError
from vit.groups import EMBED, Keep
from vit.model import Block, VisionTransformer
from vit.moments import Sensitivity, checked_images, token_weights
from vit.surgery import kept_rows

RIDGE = 1e-3
"""λ over the mean second moment of a layer's inputs."""


@dataclass(frozen=True, slots=True)
class RefitReport:
    """One layer, refitted.

    Attributes:
        layer: its name, like `blocks.3.mlp.fc2`.
        done, total: layers.
        before, after: squared error of its outputs over their variance in the dense model, as cut and as refitted.
    """

    layer: str
    done: int
    total: int
    before: float
    after: float


class LeastSquares:
    """Sums for the ridge least squares of outputs y on inputs x, with a free offset.

        minimise over W, b:  Σ w |W x + b - y|² + λ |W - W₀|²,   λ = ridge · mean over the inputs of Σ w (x - x̄)²

    W₀ is the layer as it is: inputs without any signal leave it alone. Products are formed in the precision of x and y,
    sums kept and solved in float64. Both are counted from the first row that comes: sums of large numbers that differ
    little would lose the digits by which they differ, and what is constant is zero this way, exactly.

    Args:
        inputs, outputs: how many.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count = 0.0
        self._origin: tuple[Tensor, Tensor] | None = None
        self._x, self._y, self._yy = zeros(inputs), zeros(outputs), zeros(outputs)
        self._xx, self._xy = zeros(inputs, inputs), zeros(inputs, outputs)

    def add(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """x: (..., inputs), y: (..., outputs); weights: of the rows, broadcast to (...,), 1 each by default."""
        w = x.new_ones(()) if weights is None else weights.to(x)
        w = w.expand(x.shape[:-1]).flatten()[:, None]
        x, y = x.flatten(0, -2), y.flatten(0, -2)
        if self._origin is None:
            self._origin = x[0].clone(), y[0].clone()
        x, y = x - self._origin[0], y - self._origin[1]
        self.count += float(w.sum(dtype=torch.float64))
        self._x += (w * x).sum(dim=0).double()
        self._y += (w * y).sum(dim=0).double()
        self._yy += (w * y.double().square()).sum(dim=0)
        self._xx += (x.mT @ (w * x)).double()
        self._xy += (x.mT @ (w * y)).double()

    def solve(self, weight: Tensor, bias: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """(W, b) given (W₀, b₀), shapes (outputs, inputs) and (outputs,)."""
        x, y = self._means()
        xx, xy = self._centred()
        missing = xy - xx @ weight.double().mT
        damp = ridge * float(xx.diagonal().mean())
        xx.diagonal().add_(damp if damp > 0 else 1.0)
        new = weight.double() + torch.linalg.solve(xx, missing).mT
        return new.to(weight), (y - new @ x).to(bias)

    def errors(self, weight: Tensor, bias: Tensor) -> Tensor:
        """(squared error, the outputs' squared deviation from their mean), summed; shape (2,)."""
        weight, bias = weight.double(), bias.double()
        x, y = self._means()
        xx, xy = self._centred()
        variance = (self._yy - self._y.square() / self.count).sum()
        error = variance + (weight @ xx * weight).sum() - 2 * (weight.mT * xy).sum()
        error += self.count * (weight @ x + bias - y).square().sum()
        return torch.stack([error.clamp_min(0), variance])

    def _means(self) -> tuple[Tensor, Tensor]:
        assert self._origin is not None, "nothing was added"
        x, y = self._origin
        return x.double() + self._x / self.count, y.double() + self._y / self.count

    def _centred(self) -> tuple[Tensor, Tensor]:
        x, y = self._x / self.count, self._y / self.count
        return self._xx - self.count * torch.outer(x, x), self._xy - self.count * torch.outer(x, y)


def relative(errors: Tensor) -> float:
    """Squared error over the outputs' deviation: 0 where they do not vary, nan where anything is."""
    error, variance = errors.tolist()
    return 0.0 if variance <= 0 else error / variance  # nan is not below or equal to zero


class _Streams:
    """The residual streams of both models for every batch of images, in files below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._batches: list[tuple[Tensor, Tensor]] = []

    def add(self, dense: Tensor, small: Tensor) -> None:
        index = len(self._batches)
        self._batches.append((self._spilled(f"{index}.dense", dense), self._spilled(f"{index}.small", small)))

    def _spilled(self, name: str, stream: Tensor) -> Tensor:
        mapped = torch.from_file(str(self._folder / name), shared=True, size=stream.numel(), dtype=stream.dtype)
        return mapped.view(stream.shape).copy_(stream)

    def read(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """(dense, small) of every batch, (B, N, E) each with its own E."""
        for dense, small in self._batches:
            yield dense.to(device), small.to(device)

    def update(self, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], device: torch.device) -> None:
        """(dense, small) -> (dense, small), batch by batch."""
        for (kept_dense, kept_small), (dense, small) in zip(self._batches, self.read(device), strict=True):
            new_dense, new_small = change(dense, small)
            kept_dense.copy_(new_dense)
            kept_small.copy_(new_small)


@torch.no_grad()
def refit(
    dense: VisionTransformer,
    small: VisionTransformer,
    keep: Keep,
    batches: Iterable[Tensor],
    *,
    ridge: float = RIDGE,
    sensitivity: Sensitivity | None = None,
) -> Iterator[RefitReport]:
    """Refit `small` in place, layer by layer; yields reports. `small` is as it was until they are exhausted.

    Both models compute in float32 at least, whatever their own precision.

    Args:
        dense: the model that `small` was cut from, in the same basis; without layer scale and with all biases
            (`vit.basis.rebase` folds the one and adds the others).
        keep: the units that were kept.
        batches: images (B, C, height, width), read once.
        ridge: λ over the mean second moment of a layer's inputs.
        sensitivity: of the dense model's loss, by token (`search.sensitivity`); without it all tokens count alike.

    Raises:
        CalibrationError: images that teach nothing (`vit.moments.checked_images`), a ridge that is not above 0, or a
            refit that is not finite.
    """
    assert small.arch == keep.architecture(dense.arch), "not cut from this dense model"
    assert not small.arch.layer_scale, "fold layer scale first"
    assert small.arch.qkv_bias, "a refitted layer has a bias"
    assert small.arch.proj_bias, "a refitted layer has a bias"
    if not ridge > 0:
        raise CalibrationError(f"ridge must be above 0, got {ridge}")
    dtype = torch.promote_types(next(small.parameters()).dtype, torch.float32)
    teacher, student = (copy.deepcopy(model).to(dtype).eval() for model in (dense, small))
    with tempfile.TemporaryDirectory(prefix="vitfit-refit-") as folder:
        streams = _Streams(Path(folder))
        device = next(student.parameters()).device
        for images in checked_images(batches):
            images = images.to(device, dtype)
            streams.add(teacher.embed(images), student.embed(images))
        yield from _Refit(teacher, student, keep, streams, ridge, sensitivity, device).run()
    small.load_state_dict(student.state_dict())


@dataclass(frozen=True, eq=False)
class _Refit:
    dense: VisionTransformer
    small: VisionTransformer
    keep: Keep
    streams: _Streams
    ridge: float
    sensitivity: Sensitivity | None
    device: torch.device

    def run(self) -> Iterator[RefitReport]:
        total = 4 * len(self.small.blocks) + len(self._classifiers())
        for done, (layer, errors) in enumerate(self._layers(), start=1):
            before, after = map(relative, errors)
            if not after < float("inf"):
                raise CalibrationError(f"the refit of {layer} is not finite; check the images")
            yield RefitReport(layer, done, total, before, after)

    def _layers(self) -> Iterator[tuple[str, Tensor]]:
        for index, (dense, small) in enumerate(zip(self.dense.each_block(), self.small.each_block(), strict=True)):
            yield f"blocks.{index}.attn.qkv", self._qkv(index, dense, small)
            yield (
                f"blocks.{index}.attn.proj",
                self._into_stream(f"blocks.{index}.attn.proj", small.attn.proj, *self._attention(dense, small)),
            )
            yield f"blocks.{index}.mlp.fc1", self._fc1(index, dense, small)
            yield (
                f"blocks.{index}.mlp.fc2",
                self._into_stream(f"blocks.{index}.mlp.fc2", small.mlp.fc2, *self._mlp(dense, small)),
            )
        for index, name in enumerate(self._classifiers()):
            yield name, self._classifier(index, name)

    def _classifiers(self) -> tuple[str, ...]:
        if not self.small.arch.num_classes:
            return ()
        return ("head", "head_dist") if self.small.arch.dist_token else ("head",)

    def _sums(self, inputs: int, outputs: int) -> LeastSquares:
        return LeastSquares(inputs, outputs, self.device)

    def _solve(self, weight: Tensor, bias: Tensor, sums: LeastSquares) -> Tensor:
        """Solve in place; errors before and after, shape (2, 2)."""
        before = sums.errors(weight, bias)
        for old, new in zip((weight, bias), sums.solve(weight, bias, self.ridge), strict=True):
            old.copy_(new)
        return torch.stack([before, sums.errors(weight, bias)])

    def _weights(self, name: str) -> Tensor | None:
        return token_weights(self.sensitivity, name)

    def _kept(self, parameter: str) -> Tensor:
        return kept_rows(self.dense.arch, self.keep, parameter).to(self.device)

    def _qkv(self, index: int, dense: Block, small: Block) -> Tensor:
        """Q, K and V on their own, for the loss feels them at other tokens."""
        layer, rows = small.attn.qkv, self._kept(f"blocks.{index}.attn.qkv.weight")
        shape = self.small.arch.blocks[index]
        width = shape.num_heads * shape.qk_dim
        widths = [width, width, shape.num_heads * shape.v_dim]
        sums = [self._sums(layer.in_features, part) for part in widths]
        weights = [self._weights(f"blocks.{index}.attn.{part}") for part in "qkv"]
        for wide, narrow in self.streams.read(self.device):
            inputs, outputs = small.norm1(narrow), dense.attn.qkv(dense.norm1(wide))[..., rows]
            for part, output, weight in zip(sums, torch.split(outputs, widths, dim=-1), weights, strict=True):
                part.add(inputs, output, weight)
        pieces = zip(torch.split(layer.weight, widths), torch.split(layer.bias, widths), sums, strict=True)
        return torch.stack([self._solve(*piece) for piece in pieces]).sum(dim=0)

    def _fc1(self, index: int, dense: Block, small: Block) -> Tensor:
        layer, rows = small.mlp.fc1, self._kept(f"blocks.{index}.mlp.fc1.weight")
        sums = self._sums(layer.in_features, layer.out_features)
        weights = self._weights(f"blocks.{index}.mlp.fc1")
        for wide, narrow in self.streams.read(self.device):
            sums.add(small.norm2(narrow), dense.mlp.fc1(dense.norm2(wide))[..., rows], weights)
        return self._solve(layer.weight, layer.bias, sums)

    def _attention(self, dense: Block, small: Block) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        return (
            lambda wide: dense.attn(dense.norm1(wide)),
            lambda narrow: small.attn.mix(small.attn.qkv(small.norm1(narrow))),
        )

    def _mlp(self, dense: Block, small: Block) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        return (
            lambda wide: dense.mlp(dense.norm2(wide)),
            lambda narrow: small.mlp.act(small.mlp.fc1(small.norm2(narrow))),
        )

    def _into_stream(
        self, name: str, layer: nn.Linear, branch: Callable[[Tensor], Tensor], inputs: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Refit a layer that writes to the stream, and move both streams past it.

        Args:
            branch: what the dense model adds to its stream.
            inputs: what the layer reads, given the small model's stream.
        """
        channels = torch.tensor(self.keep.indices[EMBED].tolist(), device=self.device)
        sums, weights = self._sums(layer.in_features, layer.out_features), self._weights(name)

        def add(wide: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
            wide = wide + branch(wide)
            sums.add(inputs(narrow), wide[..., channels] - narrow, weights)
            return wide, narrow

        self.streams.update(add, self.device)
        errors = self._solve(layer.weight, layer.bias, sums)
        self.streams.update(lambda wide, narrow: (wide, narrow + layer(inputs(narrow))), self.device)
        return errors

    def _classifier(self, index: int, name: str) -> Tensor:
        layer, teacher = self.small.get_submodule(name), self.dense.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        sums = self._sums(layer.in_features, layer.out_features)
        for wide, narrow in self.streams.read(self.device):
            sums.add(self.small.read(narrow)[index], teacher(self.dense.read(wide)[index]))
        return self._solve(layer.weight, layer.bias, sums)
