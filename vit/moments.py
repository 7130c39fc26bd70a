"""Second moments of what flows through a model, over calibration images: what a change of basis is weighted with.

B batch, N tokens, E embed_dim, H heads, Q qk_dim, V v_dim.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit.errors import CalibrationError
from vit.model import Attention, VisionTransformer

Sensitivity = Mapping[str, Tensor]
"""How much the loss feels an error in a module's output, by token: module name -> (N,), see `search.sensitivity`."""

FLOOR = 0.05
"""Weight that every token has at least, where the mean is 1: other images may need what these did not."""


def token_weights(sensitivity: Sensitivity | None, name: str) -> Tensor | None:
    """Weights of the tokens in sums over the output of a module, mean 1, shape (N,); None: all alike."""
    if sensitivity is None:
        return None
    found = sensitivity[name]
    mean = found.mean()
    return FLOOR + (1 - FLOOR) * found / mean if mean > 0 else torch.ones_like(found)


@dataclass(frozen=True, eq=False)
class BlockMoments:
    """Moments of one block's attention, by head, means over images and tokens, float64.

    Attributes:
        query: E[q qᵀ], shape (H, Q, Q).
        key: E[(k - k̄)(k - k̄)ᵀ] with k̄ the mean over the tokens of the same image: softmax ignores what all keys of an
            image share; shape (H, Q, Q).
        mixed_mean: E[m] of the mixed values that enter `proj`, shape (H, V).
        mixed: E[(m - E[m])(m - E[m])ᵀ], shape (H, V, V).
    """

    query: Tensor
    key: Tensor
    mixed_mean: Tensor
    mixed: Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """
    Attributes:
        stream: mean over the readers of the residual stream (both norms of every block, the final norm) of E[h hᵀ], h
            the stream as they read it, normalised; shape (E, E), float64. With a sensitivity, readers and tokens count
            as much as the loss feels them.
        blocks: one entry a block.
        images: how many were seen.
    """

    stream: Tensor
    blocks: tuple[BlockMoments, ...]
    images: int


class _Sum:
    """A running weighted sum of x xᵀ and x over tokens; products in the model's precision, sums in float64.

    Args:
        weights: of the tokens, (N,); None: 1 each.
    """

    def __init__(self, weights: Tensor | None = None) -> None:
        self._weights = weights
        self.square: Tensor | float = 0.0
        self.total: Tensor | float = 0.0
        self.count = 0.0

    def add(self, x: Tensor) -> None:
        """x: (B, N, D), or by head (B, N, H, D)."""
        weights = torch.ones(x.shape[1]) if self._weights is None else self._weights
        weighted = x * weights.to(x).view(-1, *[1] * (x.ndim - 2))
        x, weighted = (t.flatten(0, 1).movedim(0, -2) for t in (x, weighted))  # (H) B·N D
        self.square = self.square + (x.mT @ weighted).double()
        self.total = self.total + weighted.sum(dim=-2).double()
        self.count += x.shape[-2] * float(weights.mean())

    def second(self) -> Tensor:
        return torch.as_tensor(self.square) / self.count

    def mean(self) -> Tensor:
        return torch.as_tensor(self.total) / self.count


def checked_images(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches (B, C, height, width) as they come, empty ones left out; what is wrong with them is said in one line.

    An image is flat if every colour channel has one value throughout: black pixels are no zeros once normalised. Some
    may be, for there are such photographs; of flat ones alone, nothing can be learned about patches that differ.

    Raises:
        CalibrationError: no image, a pixel that is not finite, or flat images only.
    """
    count = flat = 0
    for batch in batches:
        if len(batch) == 0:
            continue
        finite = torch.isfinite(batch).flatten(1).all(dim=1)
        if not finite.all():
            first = count + int(finite.logical_not().nonzero()[0])
            raise CalibrationError(
                f"calibration image {first} (counted from 0) has pixels that are not finite; remove or repair it"
            )
        channels = batch.flatten(2)  # B C pixels
        flat += int((channels.amax(dim=2) == channels.amin(dim=2)).all(dim=1).sum())
        count += len(batch)
        yield batch
    if count == 0:
        raise CalibrationError("no calibration image was given")
    if flat == count:
        raise CalibrationError(
            f"all {count} calibration images are flat, of one colour each; "
            "give images of the kind that the model was trained on"
        )


def _readers(model: VisionTransformer) -> dict[str, nn.Module]:
    """The norms through which the residual stream is read, by name."""
    readers: dict[str, nn.Module] = {}
    for index, block in enumerate(model.each_block()):
        readers |= {f"blocks.{index}.norm1": block.norm1, f"blocks.{index}.norm2": block.norm2}
    last: dict[str, nn.Module] = {"norm": model.norm, "fc_norm": model.fc_norm}
    return readers | {name: norm for name, norm in last.items() if not isinstance(norm, nn.Identity)}


def _read_tokens(model: VisionTransformer, reader: str) -> slice:
    """The tokens that a reader of the stream looks at: the classifier reads the class token or the average only."""
    arch = model.arch
    if reader != "norm":
        return slice(None)
    if arch.pool == "token":
        return slice(1 + int(arch.dist_token))
    return slice(None) if arch.pool_include_prefix else slice(arch.prefix_tokens, None)


@torch.no_grad()
def collect_moments(
    model: VisionTransformer, batches: Iterable[Tensor], sensitivity: Sensitivity | None = None
) -> Moments:
    """One pass over batches of images (B, C, height, width), tokens weighted by a sensitivity if there is one.

    Raises:
        CalibrationError: images that teach nothing (`checked_images`), or outputs that are not finite.
    """
    streams: dict[str, _Sum] = {}
    attentions: list[dict[str, _Sum]] = []
    handles = []

    def watch_stream(name: str, reader: nn.Module) -> None:
        read = _read_tokens(model, name)
        weights = token_weights(sensitivity, name)
        sums = streams[name] = _Sum(None if weights is None else weights[read])

        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], normalised: Tensor) -> None:
            sums.add((normalised if normalised.ndim == 3 else normalised[:, None])[:, read])  # pooled: one row

        handles.append(reader.register_forward_hook(hook))

    def watch_attention(name: str, attention: Attention) -> None:
        heads = attention.shape.num_heads
        sums = {part: _Sum(token_weights(sensitivity, f"{name}.{part}")) for part in ("q", "k", "proj")}
        attentions.append(sums)

        def project(_module: nn.Module, _inputs: tuple[Tensor, ...], qkv: Tensor) -> None:
            width = heads * attention.shape.qk_dim
            q, k = qkv[..., :width], qkv[..., width : 2 * width]
            sums["q"].add(q.unflatten(-1, (heads, -1)))
            sums["k"].add((k - k.mean(dim=1, keepdim=True)).unflatten(-1, (heads, -1)))

        def mix(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sums["proj"].add(inputs[0].unflatten(-1, (heads, -1)))

        handles.append(attention.qkv.register_forward_hook(project))
        handles.append(attention.proj.register_forward_pre_hook(mix))

    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    for name, reader in _readers(model).items():
        watch_stream(name, reader)
    for index, block in enumerate(model.each_block()):
        watch_attention(f"blocks.{index}.attn", block.attn)
    training = model.training
    model.eval()
    images = 0
    try:
        for batch in checked_images(batches):
            logits = model(batch.to(device, dtype))
            images += len(batch)
            if not torch.isfinite(logits).all():
                raise CalibrationError(f"the model's outputs are not finite within the first {images} images")
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return Moments(_stream_moment(streams, sensitivity), tuple(_block_moments(sums) for sums in attentions), images)


def _block_moments(sums: Mapping[str, _Sum]) -> BlockMoments:
    mean = sums["proj"].mean()
    centred = sums["proj"].second() - mean[:, :, None] * mean[:, None, :]
    return BlockMoments(sums["q"].second(), sums["k"].second(), mean, centred)


def _stream_moment(streams: Mapping[str, _Sum], sensitivity: Sensitivity | None) -> Tensor:
    """The readers' moments, each with the share of the loss's gradient that goes through it."""
    shares = [1.0 if sensitivity is None else float(sensitivity[name].sum()) for name in streams]
    total = sum(shares)
    if not total > 0:  # a loss that feels nothing weighs nothing
        shares, total = [1.0] * len(shares), len(shares)
    weighted = [sums.second() * (share / total) for sums, share in zip(streams.values(), shares, strict=True)]
    return torch.stack(weighted).sum(dim=0)
