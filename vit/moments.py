"""Second moments of what flows through a model, over calibration images: what a change of basis is weighted with.

B batch, N tokens, E embed_dim, H heads, Q qk_dim, V v_dim.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit.errors import CalibrationError
from vit.model import Attention, VisionTransformer


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
            the stream as they read it, normalised; shape (E, E), float64.
        blocks: one entry a block.
        images: how many were seen.
    """

    stream: Tensor
    blocks: tuple[BlockMoments, ...]
    images: int


class _Sum:
    """A running sum of x xᵀ and x over the rows x of a tensor; products in the model's precision, sums in float64."""

    def __init__(self) -> None:
        self.square: Tensor | float = 0.0
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """rows: (..., R, D); every leading index has a sum of its own."""
        self.square = self.square + (rows.mT @ rows).double()
        self.total = self.total + rows.sum(dim=-2).double()
        self.count += rows.shape[-2]

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


def _read_tokens(model: VisionTransformer, reader: nn.Module, normalised: Tensor) -> Tensor:
    """The tokens that a reader of the stream looks at: the classifier reads the class token or the average only."""
    arch = model.arch
    if reader is not model.norm:
        return normalised
    if arch.pool == "token":
        return normalised[:, : 1 + int(arch.dist_token)]
    return normalised if arch.pool_include_prefix else normalised[:, arch.prefix_tokens :]


@torch.no_grad()
def collect_moments(model: VisionTransformer, batches: Iterable[Tensor]) -> Moments:
    """One pass over batches of images (B, C, height, width).

    Raises:
        CalibrationError: images that teach nothing (`checked_images`), or outputs that are not finite.
    """
    readers = [norm for block in model.each_block() for norm in (block.norm1, block.norm2)]
    readers += [norm for norm in (model.norm, model.fc_norm) if not isinstance(norm, nn.Identity)]
    streams = [_Sum() for _ in readers]
    queries, keys, mixes = ([_Sum() for _ in model.blocks] for _ in range(3))
    handles = []

    def watch_stream(reader: nn.Module, into: _Sum) -> None:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], normalised: Tensor) -> None:
            into.add(_read_tokens(model, reader, normalised).flatten(0, -2))

        handles.append(reader.register_forward_hook(hook))

    def watch_attention(attention: Attention, query: _Sum, key: _Sum, mixed: _Sum) -> None:
        heads = attention.shape.num_heads

        def by_head(x: Tensor) -> Tensor:  # B N H·D -> H B·N D
            return x.unflatten(-1, (heads, -1)).flatten(0, 1).transpose(0, 1)

        def project(_module: nn.Module, _inputs: tuple[Tensor, ...], qkv: Tensor) -> None:
            width = heads * attention.shape.qk_dim
            q, k = qkv[..., :width], qkv[..., width : 2 * width]
            query.add(by_head(q))
            key.add(by_head(k - k.mean(dim=1, keepdim=True)))

        def mix(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            mixed.add(by_head(inputs[0]))

        handles.append(attention.qkv.register_forward_hook(project))
        handles.append(attention.proj.register_forward_pre_hook(mix))

    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    for reader, into in zip(readers, streams, strict=True):
        watch_stream(reader, into)
    for block, query, key, mixed in zip(model.each_block(), queries, keys, mixes, strict=True):
        watch_attention(block.attn, query, key, mixed)
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
    blocks = []
    for query, key, mixed in zip(queries, keys, mixes, strict=True):
        mean = mixed.mean()
        centred = mixed.second() - mean[:, :, None] * mean[:, None, :]
        blocks.append(BlockMoments(query.second(), key.second(), mean, centred))
    stream = torch.stack([sums.second() for sums in streams]).mean(dim=0)
    return Moments(stream, tuple(blocks), images)
