"""A Vision Transformer that drops patch tokens on the way: DynamicViT (Rao et al. 2021; oViT, Appendix F.2).

After some blocks a small module scores every patch token, and the lowest ones leave. How many leave is fixed by the
plan, so batches of any size stay rectangular and export; which ones leave depends on the image. Prefix tokens (class,
distillation, registers) never leave.

Shapes: B batch, N tokens, P patch tokens, E embed_dim, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vit.architecture import Architecture
from vit.errors import UnsupportedModelError
from vit.model import Attention, Block, VisionTransformer
from vit.token_plan import TokenPlan

Decide = Callable[[Tensor], Tensor]
"""log-probabilities of leaving and staying (B, P, 2) -> 1 for each token that stays, else 0, (B, P)."""


class Predictor(nn.Module):
    """Scores tokens by what each carries and by what those that are left carry together (Rao et al. 2021, Eqs. 1-4).

    z = [MLP(x)_local, mean over the tokens left of MLP(x)_global],   π = softmax(MLP(z))
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        half, quarter = max(1, embed_dim // 2), max(1, embed_dim // 4)
        self.norm = nn.LayerNorm(embed_dim)
        self.read = nn.Linear(embed_dim, 2 * half)
        self.hidden = nn.Sequential(nn.Linear(2 * half, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU())
        self.out = nn.Linear(quarter, 2)

    def forward(self, patches: Tensor, keep: Tensor) -> Tensor:
        """Patch tokens (B, P, E) and 1 for those that are left (B, P) -> log-probabilities of leaving and staying."""
        local, whole = nn.functional.gelu(self.read(self.norm(patches))).chunk(2, dim=-1)
        weights = keep.unsqueeze(-1)
        shared = (whole * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1.0)
        z = torch.cat([local, shared.expand_as(local)], dim=-1)
        return self.out(self.hidden(z)).log_softmax(dim=-1)


class TokenPrunedTransformer(VisionTransformer):
    """A VisionTransformer that drops tokens as a plan says; everything else of it is the same, names included."""

    def __init__(self, arch: Architecture, plan: TokenPlan) -> None:
        super().__init__(arch)
        plan.check(arch)
        self.plan = plan
        self.predictors = nn.ModuleList(Predictor(arch.embed_dim) for _ in plan.after)

    @classmethod
    def of(cls, model: VisionTransformer, plan: TokenPlan, generator: torch.Generator) -> "TokenPrunedTransformer":
        """A copy of a model with untrained predictors, which drop tokens next to at random."""
        if isinstance(model, TokenPrunedTransformer):
            raise UnsupportedModelError("the model drops tokens already; train it on without a token ratio")
        made = cls(model.arch, plan)
        with torch.no_grad():
            for name, parameter in made.predictors.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
                elif name.endswith("bias"):
                    parameter.zero_()
        missing = made.load_state_dict(model.state_dict(), strict=False)
        assert not missing.unexpected_keys
        return made.to(next(model.parameters())).train(model.training)

    def heads(self, images: Tensor) -> tuple[Tensor, ...]:
        return self._heads(self._dropping(self.embed(images)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self._dropping(self.embed(images)))

    @torch.no_grad()
    def margins(self, images: Tensor) -> Tensor:
        """How clear the decisions on each image are: the smallest difference of log-probability between the last token
        that stays and the first that leaves, (B,). Where it is a rounding error, other kernels decide otherwise."""
        found = [torch.full((len(images),), torch.inf, device=images.device, dtype=images.dtype)]
        self._dropping(self.embed(images), found)
        return torch.stack(found).amin(dim=0)

    def _dropping(self, x: Tensor, margins: list[Tensor] | None = None) -> Tensor:
        """The blocks, with the lowest tokens taken out on the way: (B, N, E) -> (B, fewer, E)."""
        prefix, counts = self.arch.prefix_tokens, self.plan.counts(self.arch.patches)
        stages = {after: stage for stage, after in enumerate(self.plan.after)}
        for index, block in enumerate(self.each_block(), start=1):
            x = block(x)
            if (stage := stages.get(index)) is not None:
                patches = x[:, prefix:]
                scores = self._predictor(stage)(patches, torch.ones_like(patches[..., 0]))[..., 1]
                if margins is not None and counts[stage] < scores.shape[1]:
                    ranked = scores.sort(dim=1, descending=True).values
                    margins.append(ranked[:, counts[stage] - 1] - ranked[:, counts[stage]])
                stay = scores.topk(counts[stage], dim=1).indices.sort(dim=1).values.unsqueeze(-1)
                x = torch.cat([x[:, :prefix], patches.gather(1, stay.expand(-1, -1, x.shape[-1]))], dim=1)
        return x

    def _predictor(self, stage: int) -> Predictor:
        return cast(Predictor, self.predictors[stage])

    def masked(self, images: Tensor, decide: Decide) -> "Masked":
        """The same with every token kept in place and those that left hidden from the others, so that decisions have a
        gradient: what is trained. A token that left stays away."""
        x = self.embed(images)
        prefix = self.arch.prefix_tokens
        keep, decisions = torch.ones_like(x[:, prefix:, 0]), list[Tensor]()
        stages = {after: stage for stage, after in enumerate(self.plan.after)}
        for index, block in enumerate(self.each_block(), start=1):
            x = _block(block, x, _with_prefix(keep, prefix)) if decisions else block(x)
            if (stage := stages.get(index)) is not None:
                keep = keep * decide(self._predictor(stage)(x[:, prefix:], keep)).to(keep.dtype)
                decisions.append(keep)
        return Masked(self._logits(self._read_kept(x, _with_prefix(keep, prefix))), x, tuple(decisions))

    def _read_kept(self, stream: Tensor, keep: Tensor) -> tuple[Tensor, ...]:
        if self.arch.dist_token or self.arch.pool == "token":
            return self.read(stream)
        x = self.norm(stream)
        skip = 0 if self.arch.pool_include_prefix else self.arch.prefix_tokens
        x, weights = x[:, skip:], keep[:, skip:, None]
        return (self.fc_norm((x * weights).sum(dim=1) / weights.sum(dim=1)),)


@dataclass(frozen=True, eq=False)
class Masked:
    """
    Attributes:
        heads: logits of each classifier.
        stream: after the last block, (B, N, E), tokens that left included.
        decisions: after each stage 1 for each patch token that is left, else 0, (B, P).
    """

    heads: tuple[Tensor, ...]
    stream: Tensor
    decisions: tuple[Tensor, ...]


def _with_prefix(keep: Tensor, prefix: int) -> Tensor:
    return torch.cat([keep.new_ones(len(keep), prefix), keep], dim=1)


def _block(block: Block, x: Tensor, keep: Tensor) -> Tensor:
    attention = block.attn
    x = x + block.ls1(attention.proj(_mix_kept(attention, attention.qkv(block.norm1(x)), keep)))
    return x + block.ls2(block.mlp(block.norm2(x)))


def _mix_kept(attention: Attention, qkv: Tensor, keep: Tensor) -> Tensor:
    """Attention of every token to itself and those that are kept (Rao et al. 2021, Eqs. 10, 11):

    A_ij = exp(S_ij) G_ij / Σ_k exp(S_ik) G_ik,   G_ij = 1 if i = j else keep_j
    """
    batch, tokens, _ = qkv.shape
    shape = attention.shape
    heads, qk_dim, v_dim = shape.num_heads, shape.qk_dim, shape.v_dim
    query, key, value = qkv.split((heads * qk_dim, heads * qk_dim, heads * v_dim), dim=-1)
    query = attention.q_norm(query.view(batch, tokens, heads, qk_dim)).transpose(1, 2)  # B H N Q
    key = attention.k_norm(key.view(batch, tokens, heads, qk_dim)).transpose(1, 2)
    value = value.view(batch, tokens, heads, v_dim).transpose(1, 2)  # B H N V
    scores = attention.scale * query @ key.transpose(2, 3)  # B H N N
    itself = torch.eye(tokens, dtype=keep.dtype, device=keep.device)
    seen = keep[:, None, None, :] * (1 - itself) + itself
    weights = (scores - scores.amax(dim=-1, keepdim=True).detach()).exp() * seen
    mixed = (weights / weights.sum(dim=-1, keepdim=True)) @ value
    return mixed.transpose(1, 2).reshape(batch, tokens, heads * v_dim)


def build(arch: Architecture, plan: TokenPlan | None) -> VisionTransformer:
    """The module of an architecture, with or without token pruning."""
    return VisionTransformer(arch) if plan is None else TokenPrunedTransformer(arch, plan)


def plan_of(model: VisionTransformer) -> TokenPlan | None:
    return model.plan if isinstance(model, TokenPrunedTransformer) else None


def refuse_token_pruned(model: VisionTransformer, what: str) -> None:
    """
    Raises:
        UnsupportedModelError: the model drops tokens; its predictors read the stream as it is.
    """
    if isinstance(model, TokenPrunedTransformer):
        raise UnsupportedModelError(f"{what} does not take a model that drops tokens; do it first, token pruning after")
