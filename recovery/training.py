"""Training, step by step: what a step does depends on the recipe, the data and the number of the step alone.

So a run can stop anywhere and go on elsewhere, bit for bit the same; and between two steps its model can be cut.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recovery import processes
from recovery.augment import Augmentation, drawn, stochastic_depth
from recovery.data import Batch, Dataset
from recovery.errors import FailedStepError, TrainingError
from recovery.feed import batches
from recovery.losses import training_loss
from recovery.recipes import Recipe
from recovery.schedules import SCHEDULERS
from recovery.tokens import token_training
from vit.groups import Keep
from vit.masks import SparsityMask
from vit.model import VisionTransformer
from vit.surgery import cut_tensors, shrink
from vit.tokens import TokenPrunedTransformer, plan_of


@dataclass(frozen=True, slots=True)
class TrainReport:
    """Progress of training.

    Attributes:
        step, steps: done and to do.
        loss: mean of the steps since the last report.
        lr: learning rate of the last step.
        accuracy: on the validation images, in [0, 1], where they were looked at: of the weights or of their running
            mean, whichever is better.
        best: the largest accuracy so far.
        kept: whether it is this one, whose weights are kept.
    """

    step: int
    steps: int
    loss: float
    lr: float
    accuracy: float | None = None
    best: float | None = None
    kept: bool = False


class Trainer:
    """Trains a model in place.

    Attributes:
        model: what is trained; after `adopt` another one.
        recipe: as it is used, in steps.
        step, steps: optimiser steps done and to do.

    Args:
        teacher: the uncut model, for distillation.
        external: any module from images to logits, whose decisions are distilled.
        mask: weights that are zero after every step; None: all are trained.

    Raises:
        DataError: the data does not fit the model or the teacher.
        TrainingError: the external teacher fits neither, or the recipe cannot be done here.
        MaskError: the mask does not fit the model.
    """

    def __init__(
        self,
        model: VisionTransformer,
        data: Dataset,
        recipe: Recipe,
        teacher: VisionTransformer | None = None,
        external: nn.Module | None = None,
        mask: SparsityMask | None = None,
    ) -> None:
        data.check(model.arch)
        if mask is not None:
            mask.apply_(model)
        self._device = next(model.parameters()).device
        self._data, self.recipe, self.step = data, recipe.resolved(len(data.train)), 0
        self.steps = self.recipe.steps or 0
        self._images = min(recipe.batch_size, len(data.train))  # of a batch, in all processes together
        self._share = processes.share()
        self._check(model, teacher, external)
        asked = recipe.distillation > 0 or (recipe.hard_distillation > 0 and external is None)
        self._teacher = _frozen(teacher, self._device) if asked else None
        self._external = _frozen(external, self._device)
        if self._external is not None:
            _check_external(self._external, data, next(model.parameters()))
        self._augment = Augmentation(recipe, data.num_classes, self._device)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=recipe.amp == "fp16")
        self._stream: tuple[int, Iterator[Batch]] | None = None
        self._recent: list[float] = []
        processes.same_everywhere(model)
        self._masked: list[tuple[nn.Parameter, Tensor]] = []
        self._take(model, model)
        self._masked = [] if mask is None else list(mask.on(model))

    def _check(self, model: VisionTransformer, teacher: VisionTransformer | None, external: nn.Module | None) -> None:
        if teacher is not None:
            self._data.check(teacher.arch)
        recipe, (_, world) = self.recipe, self._share
        dtype = next(model.parameters()).dtype
        if dtype not in (torch.float32, torch.float64):
            raise TrainingError(f"weights are trained in float32, got {dtype}; amp makes the multiplications faster")
        if recipe.amp == "fp16" and self._device.type != "cuda":
            raise TrainingError(f"amp fp16 needs CUDA, the model is on {self._device.type}; use bf16 or none")
        if recipe.hard_distillation and teacher is None and external is None:
            raise TrainingError("hard_distillation needs a teacher: an external one, or the uncut model")
        if external is not None and not recipe.hard_distillation:
            raise TrainingError("an external teacher's decisions have no weight here; hard_distillation=0.5 is DeiT's")
        each, left = divmod(self._images, world)
        if left or (recipe.mixes and each % 2):
            pairs = ", in pairs to be mixed" if recipe.mixes else ""
            raise TrainingError(
                f"{self._images} images a step cannot be shared by {world} process(es){pairs}; change batch_size"
            )

    def _take(self, model: VisionTransformer, average: VisionTransformer) -> None:
        """Train this model from here on, with an optimiser that knows nothing yet."""
        from timm.optim import create_optimizer_v2
        from timm.utils import ModelEmaV3

        recipe = self.recipe
        self.model = model
        self._optimizer = create_optimizer_v2(
            model,
            opt="adamw",
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay if recipe.layer_decay < 1 else None,
        )
        if isinstance(model, TokenPrunedTransformer) and recipe.backbone_lr < 1:
            _slow_down(self._optimizer, set(model.predictors.parameters()), recipe.backbone_lr)
        self._scheduler = SCHEDULERS[recipe.schedule](self._optimizer, recipe, self.steps)
        self._ema = ModelEmaV3(average, decay=recipe.ema) if recipe.ema else None

    @property
    def averaged(self) -> VisionTransformer:
        """The model with the running mean of the weights; the model itself where the recipe has none."""
        return self.model if self._ema is None else self._ema.module

    def train(self, until: int) -> Iterator[TrainReport]:
        """Up to step `until`; a report every few steps and at the end.

        Raises:
            FailedStepError: the loss or its gradient is not finite, or the memory is too small; the model then holds
                the weights of the step before.
        """
        self.model.train()
        while self.step < until:
            with self._with_advice():
                self._recent.append(self._advance())
            self.step += 1
            if self.step % self.recipe.report_every == 0 or self.step == until:
                lr = max(float(group["lr"]) for group in self._optimizer.param_groups)
                mean, self._recent = sum(self._recent) / len(self._recent), []
                yield TrainReport(self.step, self.steps, mean, lr)

    def _advance(self) -> float:
        """One step; gives its loss. Until the optimiser's own step nothing of the model has changed."""
        recipe = self.recipe
        images, labels = self._next_batch()
        self._scheduler.step_update(self.step)
        self._optimizer.zero_grad()
        loss = torch.zeros((), dtype=next(self.model.parameters()).dtype, device=self._device)
        at_once = recipe.micro_batch or len(labels)
        draws = recipe.mixes or recipe.erasing or recipe.drop_path or plan_of(self.model)
        seed = (recipe.seed, self.step, self._share[0])
        with drawn(seed, self._device) if draws else nullcontext():
            images, labels = self._augment(images.to(self._device), labels.to(self._device))
            for some, theirs in zip(images.split(at_once), labels.split(at_once), strict=True):
                part = self._loss(some, theirs) * (len(some) / self._images)  # the sum over parts and processes: a mean
                self._scaler.scale(part).backward()
                loss += part.detach()
        parameters = list(self.model.parameters())
        processes.add_up([loss, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
        self._hold_at_zero(of_gradients=True)  # they are no part of the norm, and the optimiser does not hear of them
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_grad or math.inf)
        value, size = torch.stack([loss.to(norm), norm]).tolist()
        # An fp16 gradient may overflow: the scaler leaves the step out and scales less. That has to end somewhere.
        overflow = recipe.amp == "fp16" and self._scaler.get_scale() >= 1
        if not math.isfinite(value) or not (math.isfinite(size) or overflow):
            raise self._failed(
                f"the loss is {value:g} and its gradient's norm {size:g}", "lower the learning rate or check the images"
            )
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._hold_at_zero()  # where the optimiser remembers another time
        if self._ema is not None:
            self._ema.update(self.model)
        return float(value)

    @torch.no_grad()
    def _hold_at_zero(self, *, of_gradients: bool = False) -> None:
        for parameter, keep in self._masked:
            held = parameter.grad if of_gradients else parameter
            if held is not None:
                held.mul_(keep)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        recipe = self.recipe
        dtype = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.amp]
        with torch.autocast(self._device.type, dtype, enabled=dtype is not None):
            with torch.no_grad():
                uncut = None if self._teacher is None else self._teacher(images)
                decisive = uncut if self._external is None else self._external(images)
            with stochastic_depth(self.model, recipe.drop_path):
                if isinstance(self.model, TokenPrunedTransformer):
                    heads, of_tokens = token_training(self.model, images, self._teacher)
                else:
                    heads, of_tokens = self.model.heads(images), torch.zeros((), device=self._device)
        if dtype is not None:
            heads = tuple(logits.float() for logits in heads)
            uncut = None if uncut is None else uncut.float()
        return training_loss(heads, labels, recipe, uncut, decisive) + of_tokens

    def _next_batch(self) -> Batch:
        if self._stream is None or self._stream[0] != self.step:
            recipe = self.recipe
            stream = batches(self._data.train, recipe.batch_size, recipe.seed, self.step, self._share)
        else:
            stream = self._stream[1]
        self._stream = (self.step + 1, stream)
        return next(stream)

    def _failed(self, problem: str, advice: str) -> FailedStepError:
        return FailedStepError(problem, advice, self.step + 1, f"the weights of step {self.step}")

    @contextmanager
    def _with_advice(self) -> Iterator[None]:
        """What a machine says when its memory is full, as an error that says what to do."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if type(error) is RuntimeError and not any(text in str(error) for text in _NO_MEMORY):
                raise
            self._optimizer.zero_grad()
            self._stream = None
            tried = min(self.recipe.micro_batch or self._images, self._images // self._share[1])
            half = tried // 2
            advice = f"try micro_batch={half}" if half else "this model needs more memory, or amp"
            raise self._failed(f"out of memory with {tried} image(s) at a time", advice) from None

    # --- stopping and going on ------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """All that the next steps depend on, beside data, recipe and teachers: copies, on the CPU, by flat names."""
        found = {"step": torch.tensor(self.step)}
        found |= {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self._ema is not None:
            found |= {f"average.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        for key, tensors in self._moments().items():
            found |= {f"optimizer.{key}.{name}": tensor for name, tensor in tensors.items()}
        if self._scaler.is_enabled():
            scaler = self._scaler.state_dict()
            found["scaler.scale"] = torch.tensor(scaler["scale"], dtype=torch.float64)
            found["scaler.growth"] = torch.tensor(scaler["_growth_tracker"])
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in found.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken, by a trainer of the same model, data, recipe and teachers.

        Raises:
            TrainingError: it is of another one.
        """
        try:
            self.model.load_state_dict(_below("model.", state))
            if self._ema is not None:
                self.averaged.load_state_dict(_below("average.", state))
        except RuntimeError as error:
            raise TrainingError(f"the state of another model or recipe: {error!s:.300}") from None
        if self._scaler.is_enabled():
            scaler = {"scale": float(state["scaler.scale"]), "_growth_tracker": int(state["scaler.growth"])}
            self._scaler.load_state_dict(self._scaler.state_dict() | scaler)
        moments: dict[str, dict[str, Tensor]] = {}
        for name, tensor in _below("optimizer.", state).items():
            key, _, parameter = name.partition(".")
            moments.setdefault(key, {})[parameter] = tensor
        self._set_moments(moments)
        self.step = int(state["step"])
        self._stream, self._recent = None, []

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        """What the optimiser remembers: key -> parameter -> tensor."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            for key, tensor in self._optimizer.state[parameter].items():
                found.setdefault(key, {})[name] = tensor
        return found

    def _set_moments(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        parameters = dict(self.model.named_parameters())
        self._optimizer.state.clear()
        for key, tensors in moments.items():
            for name, tensor in tensors.items():
                # The count of steps stays on the CPU, where AdamW reads it without waiting for a GPU.
                copied = tensor.clone() if tensor.ndim == 0 else tensor.to(parameters[name], copy=True)
                self._optimizer.state[parameters[name]][key] = copied

    def prune(self, model: VisionTransformer, mask: SparsityMask | None) -> None:
        """Go on with the weights of a model of this architecture and another mask. The optimiser forgets what it knew
        of weights that are removed, and their running mean is zero.

        Raises:
            TrainingError: a model of another architecture.
            MaskError: the mask does not fit it.
        """
        if model.arch != self.model.arch:
            raise TrainingError("prune takes a model of the architecture that is trained; adopt takes one that was cut")
        if mask is not None:
            mask.check(model)
        self.model.load_state_dict(model.state_dict())
        self._masked = [] if mask is None else list(mask.on(self.model))
        self._hold_at_zero()
        if mask is not None and self._ema is not None:
            mask.apply_(self.averaged)
        with torch.no_grad():
            for parameter, keep in self._masked:
                for key, tensor in self._optimizer.state[parameter].items():
                    if key != "step":
                        tensor.mul_(keep)

    def adopt(self, model: VisionTransformer, keep: Keep) -> None:
        """Go on with the model that `vit.surgery.shrink(self.model, keep)` gave: what the optimiser remembers of the
        kept weights stays, and so does their running mean.

        Raises:
            TrainingError: it is not what is left of this trainer's model.
        """
        if self._masked:
            raise TrainingError("a model with masks cannot be cut while it is trained; cut it first")
        before = self.model.arch
        if model.arch != keep.architecture(before):
            raise TrainingError("adopt takes what shrink(trainer.model, keep) gave, and the same keep")
        moments = self._moments()
        average = model if self._ema is None else shrink(self.averaged, keep)
        self._take(model, average)
        counts = {"step": moments.pop("step")} if moments else {}
        self._set_moments(counts | {key: cut_tensors(before, keep, tensors) for key, tensors in moments.items()})


def _slow_down(optimizer: torch.optim.Optimizer, but: set[nn.Parameter], factor: float) -> None:
    """All parameters but some learn at so many times the learning rate; timm's schedulers heed `lr_scale`."""
    for group in list(optimizer.param_groups):
        exempt = [parameter for parameter in group["params"] if parameter in but]
        group["params"] = [parameter for parameter in group["params"] if parameter not in but]
        if exempt:
            optimizer.add_param_group(group | {"params": exempt})
        group["lr_scale"] = group.get("lr_scale", 1.0) * factor


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _frozen(model: Any, device: torch.device) -> Any:
    """A copy to ask, not to train: the model that is trained may be the same one."""
    return None if model is None else copy.deepcopy(model).to(device).eval().requires_grad_(False)


def _check_external(external: nn.Module, data: Dataset, like: Tensor) -> None:
    images = torch.zeros(2, data.in_chans, *data.image_size, dtype=like.dtype, device=like.device)
    wanted = (2, data.num_classes)
    try:
        with torch.no_grad():
            logits = external(images)
    except Exception as error:  # whatever a stranger's module says about images that it does not take
        raise TrainingError(
            f"the external teacher cannot read images of {tuple(images.shape[1:])}: {error!s:.200}"
        ) from None
    if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TrainingError(f"the external teacher gives {found} for two images, the classes want {wanted}")
