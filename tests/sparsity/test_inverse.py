"""Damped inverses of Fisher blocks, compared with torch's in float64."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsity import inverse as module
from sparsity.errors import SparsityError
from sparsity.inverse import DIGITS, RESOLVED, invert_
from sparsity.obs import Elimination
from tests.cases import generator
from tests.sparsity.plain import quadratic_loss, rank_one_inverse, trace
from tests.sparsity.toys import problem, to

ROOT = Path(__file__).parents[2]


def sums(count, size, gradients, seed=0, scale=1.0):
    """Σ g gᵀ, (n, B, B), float64."""
    rows = scale * torch.randn(count, gradients, size, generator=generator(seed), dtype=torch.float64)
    return rows.transpose(1, 2) @ rows


def damped(blocks, damp, scale=1.0):
    return scale * blocks + damp * torch.eye(blocks.shape[1], dtype=blocks.dtype)


@pytest.mark.parametrize("size", [*range(1, 9), *range(17, 201, 13), 95, 96, 97, 191, 192, 193, 194, 200, 256, 385])
def test_is_the_inverse_of_the_damped_mean_at_every_size(size):
    blocks = sums(2, size, 2 * size)
    made = blocks.clone()
    used = invert_(made, 1e-2, 0.5 / size)
    torch.testing.assert_close(made, torch.linalg.inv(damped(blocks, 1e-2, 0.5 / size)))
    assert torch.equal(made, made.transpose(1, 2))
    assert used.tolist() == [1e-2] * 2


def test_blocks_do_not_depend_on_which_are_done_together(monkeypatch):
    blocks = sums(7, 10, 20)
    whole = blocks.clone()
    invert_(whole, 1e-3)
    monkeypatch.setattr(module, "CHUNK", 200)
    parts = blocks.clone()
    invert_(parts, 1e-3)
    torch.testing.assert_close(parts, whole)


def test_float32_is_near_float64_where_blocks_are_well_conditioned():
    blocks = sums(4, 150, 600)
    made = blocks.float()
    invert_(made, 1e-2, 1 / 600)
    # seven digits, of which the condition number takes two
    torch.testing.assert_close(made.double(), torch.linalg.inv(damped(blocks, 1e-2, 1 / 600)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gradients", [1, 16, 64, 256])
@pytest.mark.parametrize("size", [64, 192, 256])
def test_float32_is_finite_and_prunes_as_well_as_float64_at_small_gradients_and_damping(size, gradients):
    """Gradients of 0.1 and λ = 1e-8, oViT's: most blocks have fewer gradients than weights."""
    rows, weights = problem(3, size, gradients, scale=0.1)
    losses = []
    for dtype in (torch.float64, torch.float32):
        blocks = torch.einsum("mni,mnj->nij", *[rows.view(gradients, 3, size)] * 2).to(dtype)
        least = (blocks.diagonal(dim1=1, dim2=2) / gradients + 1e-8).reciprocal()
        start = weights.view(3, size).to(dtype)
        invert_(blocks, 1e-8, 1 / gradients)
        assert blocks.isfinite().all()
        alive = torch.ones_like(start, dtype=torch.bool)
        pruned = to(Elimination(start, blocks, least, alive, 1, alive.sum(1, keepdim=True)), size // 2)
        left, _ = pruned.result(pruned.count)
        losses.append(quadratic_loss(rows, weights, left.flatten(), size, 1e-8))
    # With few gradients all that is lost is λ's share, 1e-7 of a loss, of which float32 sums keep fewer digits.
    assert losses[1] <= losses[0] * (1.005 if gradients >= size // 2 else 1.06)


@pytest.mark.parametrize(
    ("size", "gradients", "scale"), [(64, 48, 0.1), (192, 128, 0.1), (64, 48, 1.0), (64, 256, 1.0)]
)
def test_plain_float32_rank_one_updates_are_no_inverse_there(size, gradients, scale):
    """What `invert_` is for: from a quarter wrong to NaN, at λ = 1e-8."""
    rows, _ = problem(8, size, gradients, scale=scale)
    plain = rank_one_inverse(rows.float(), size, 1e-8)
    blocks = torch.einsum("mni,mnj->nij", *[rows.float().view(gradients, 8, size)] * 2)
    mean, eye = blocks.double() / gradients, torch.eye(size, dtype=torch.float64)
    used = invert_(blocks, 1e-8, 1 / gradients).double()

    def error(found, damp):
        exact = torch.linalg.inv(mean + damp * eye)
        return float(((found - exact).abs().amax(dim=(1, 2)) / exact.abs().amax(dim=(1, 2))).max())

    assert error(blocks, used[:, None, None]) < 0.05
    assert not error(plain, 1e-8) < 0.25


def test_a_plain_float32_trace_loses_more_where_the_inverse_has_few_gradients():
    rows, weights = problem(8, 64, 48, scale=0.1)
    lost = []
    for dtype in (torch.float64, torch.float32):
        states, _, _ = trace(rank_one_inverse(rows.to(dtype), 64, 1e-8), weights.view(8, 64).to(dtype))
        lost.append(quadratic_loss(rows, weights, states[32].flatten(), 64, 1e-8))
    assert lost[1] > 1.03 * lost[0]  # `invert_`: at most half a per cent more, above


def test_damping_is_what_was_asked_for_wherever_the_sums_resolve_it():
    blocks = sums(3, 20, 40).float()
    assert invert_(blocks, 0.25, 1 / 40).tolist() == [0.25] * 3
    assert invert_(sums(3, 20, 4), 1e-8).tolist() == [1e-8] * 3


def test_damping_is_raised_to_what_float32_sums_resolve():
    blocks = sums(3, 20, 40, scale=100.0).float()
    most = blocks.diagonal(dim1=1, dim2=2).amax(dim=1)
    torch.testing.assert_close(invert_(blocks.clone(), 1e-8), RESOLVED * most)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_damping_is_raised_tenfold_until_the_block_is_positive_definite(dtype):
    blocks = torch.tensor([[[1.0, 1.05], [1.05, 1.0]], [[1.0, 0.5], [0.5, 1.0]]], dtype=dtype)
    made = blocks.clone()
    used = invert_(made, 1e-3)
    torch.testing.assert_close(used, torch.tensor([1e-1, 1e-3], dtype=dtype))
    expected = torch.linalg.inv(blocks + used[:, None, None] * torch.eye(2, dtype=dtype))
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


def test_rounded_float64_sums_of_large_gradients_get_more_damping():
    blocks = sums(4, 12, 3, scale=1e6)
    made = blocks.clone()
    used = invert_(made, 1e-8)
    assert made.isfinite().all()
    assert (used > 1e-8).any()
    assert (made.diagonal(dim1=1, dim2=2) > 0).all()


def test_float32_whose_pivots_lose_their_digits_is_done_in_float64():
    blocks = sums(2, 40, 5, scale=0.1).float()
    exact = torch.linalg.inv(damped(blocks.double(), 1e-8))
    eigenvalues = torch.linalg.eigvalsh(damped(blocks.double(), 1e-8))
    assert (eigenvalues[:, 0] / eigenvalues[:, -1] < DIGITS).all()
    made = blocks.clone()
    used = invert_(made, 1e-8)
    expected = torch.linalg.inv(blocks.double() + used.double()[:, None, None] * torch.eye(40, dtype=torch.float64))
    torch.testing.assert_close(made, expected.float(), rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


def test_sums_that_are_not_finite_are_refused():
    blocks = sums(2, 5, 9)
    blocks[1, 2, 2] = torch.inf
    with pytest.raises(SparsityError, match="not positive definite"):
        invert_(blocks, 1e-8)


def test_memory_is_that_of_the_blocks_and_a_bounded_buffer():
    """In a process of its own: 64 MiB of blocks are inverted within as much again, whatever they are cut into."""
    code = (
        "import resource, torch\n"
        "from sparsity.inverse import invert_\n"
        "torch.set_num_threads(1)\n"
        "invert_(torch.eye(256).repeat(4, 1, 1), 1e-3)\n"
        "blocks = torch.eye(256).repeat(256, 1, 1)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "invert_(blocks, 1e-3)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (4 * blocks.numel() / 1024))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 0.8  # chunks of 8 MiB, a few at a time


def test_torch_s_own_solvers_work_after_the_compiled_ones():
    """Numba's OpenMP settings made them hang in a process with one thread of torch's."""
    code = (
        "import torch\n"
        "torch.set_num_threads(1)\n"
        "from sparsity.inverse import invert_\n"
        "blocks = torch.eye(160, dtype=torch.float64).repeat(2, 1, 1)\n"
        "invert_(blocks.clone(), 1e-3)\n"
        "assert torch.equal(torch.linalg.inv(blocks), blocks)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")
