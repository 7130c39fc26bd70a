"""Small problems that the tests of the sparsity package share, and slow truths: n blocks of B weights, m gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsity.obs import Elimination
from tests.cases import generator, randomise


def problem(count: int, size: int, gradients: int, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Correlated gradients (m, n·B) and weights (n·B,), float64."""
    draw = generator(seed)
    mix = torch.randn(count, size, size, generator=draw, dtype=torch.float64) / size**0.5
    mix += torch.eye(size, dtype=torch.float64)
    made = torch.einsum("mni,nij->mnj", torch.randn(gradients, count, size, generator=draw, dtype=torch.float64), mix)
    weights = torch.randn(count * size, generator=draw, dtype=torch.float64)
    return scale * made.reshape(gradients, -1), weights


def fisher(gradients: Tensor, size: int, damp: float) -> Tensor:
    """Eq. 3 in diagonal blocks, (n, B, B), as it is written."""
    blocks = gradients.view(len(gradients), -1, size)
    return torch.einsum("mni,mnj->nij", blocks, blocks) / len(gradients) + damp * torch.eye(size, dtype=gradients.dtype)


def best_without(hessian: Tensor, weights: Tensor, removed: list[int]) -> tuple[float, Tensor]:
    """The least of ½ δᵀ H δ with these weights at zero, and the weights there (Eq. 4): no inverse involved."""
    stay = [index for index in range(len(weights)) if index not in removed]
    change = torch.zeros_like(weights)
    change[removed] = -weights[removed]
    if stay:
        rest = hessian[stay][:, removed] @ weights[removed]
        change[stay] = torch.linalg.solve(hessian[stay][:, stay], rest)
    made = weights + change
    made[removed] = 0
    return float(change @ hessian @ change) / 2, made


def elimination(
    weights: Tensor,
    matrix: Tensor,
    unit: int = 1,
    alive: Tensor | None = None,
    room: Tensor | None = None,
    compiled: bool = True,
) -> Elimination:
    """Of blocks (n, B) with Fisher matrices (n, B, B); every unit may go unless something else is said."""
    count, size = weights.shape
    if alive is None:
        alive = torch.ones(count, size // unit, dtype=torch.bool)
    if room is None:
        room = alive.sum(dim=1, keepdim=True)
    least = matrix.diagonal(dim1=1, dim2=2).reciprocal()
    made = Elimination(weights, torch.linalg.inv(matrix), least, alive, unit, room)
    made._compiled &= compiled
    return made


def to(elimination: Elimination, steps: int) -> Elimination:
    elimination.advance(torch.full_like(elimination.count, steps))
    return elimination


class Net(nn.Module):
    """A convolution and two linear layers: 256, 512 and 128 weights, which blocks of 24 do not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 2)
        self.hidden = nn.Linear(32, 16)
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.hidden(F.gelu(self.conv(x)).flatten(1))))


def net(dtype: torch.dtype = torch.float64, seed: int = 0) -> Net:
    made = Net().to(dtype)
    randomise(made, seed)
    return made


def batches(count: int = 12, dtype: torch.dtype = torch.float64, size: int = 4):
    """Images and labels for `Net`; the same every time, other ones for each recomputation."""

    def of(step: int):
        for number in range(count):
            draw = generator(1000 * step + number)
            yield (
                torch.randn(size, 8, 3, 3, generator=draw, dtype=torch.float64).to(dtype),
                torch.randint(0, 8, (size,), generator=draw),
            )

    return of


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def collected(model: nn.Module, names: list[str], given) -> dict[str, Tensor]:
    """Gradients of each batch's mean loss by parameter, flat, (m, d): by `backward`, one after the other."""
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for batch in given:
        model.zero_grad()
        loss(model, *batch).backward()
        for name in names:
            rows[name].append(model.get_parameter(name).grad.flatten().clone())
    model.zero_grad()
    return {name: torch.stack(found) for name, found in rows.items()}
