"""Labelled images drawn by a formula: gratings, and sums of two of them.

A grating is a sine wave over the plane; its phase is random, so no pixel by itself says anything about the label.
"""

import math

import torch
from torch import Tensor

GRATING_CLASSES = 16

PLAID_SIZE = 32
PLAID_ORIENTATIONS = 12
PLAID_WAVELENGTHS = (4.0, 6.5)
PLAID_PAIRS = torch.combinations(torch.arange(PLAID_ORIENTATIONS * len(PLAID_WAVELENGTHS)))
"""The two gratings of each class, (276, 2); grating = 12 * wavelength + orientation, the smaller one first."""


def grating_images(count: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Gratings of 8 orientations x 2 wavelengths with random phase, contrast, tilt, gradient, offset and pixel noise.

    Returns:
        Images (count, 1, 24, 24) and labels (count,), the label being 2 * orientation + wavelength.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, GRATING_CLASSES, (count,), generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, generator=generator) * (high - low) + low

    tilt = 0.06 * torch.randn(count, 1, 1, generator=generator)
    angle = (labels // 2).float()[:, None, None] * math.pi / 8 + tilt
    wavelength = torch.where(labels % 2 == 0, 4.5, 8.0)[:, None, None]
    frequency = 2 * math.pi / wavelength * uniform(0.94, 1.06)
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    phase = frequency * (torch.cos(angle) * columns + torch.sin(angle) * rows)
    images = uniform(0.5, 1.0) * torch.sin(phase + uniform(0, 2 * math.pi))
    images = images + uniform(-0.04, 0.04) * (columns - 12) + uniform(-0.5, 0.5)
    images = images + noise * torch.randn(images.shape, generator=generator)
    return images[:, None], labels


def plaid_images(count: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sums of two different gratings, of 12 orientations x 2 wavelengths, with random phases and contrasts, in noise.

    Orientations are 15 degrees apart and each grating masks the other: finer differences than those of `gratings`.

    Returns:
        Images (count, 1, 32, 32) and labels (count,), a label being the row of PLAID_PAIRS.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, len(PLAID_PAIRS), (count,), generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, generator=generator) * (high - low) + low

    rows, columns = torch.meshgrid(torch.arange(PLAID_SIZE), torch.arange(PLAID_SIZE), indexing="ij")
    images = noise * torch.randn(count, PLAID_SIZE, PLAID_SIZE, generator=generator)
    for gratings in PLAID_PAIRS[labels].T:
        angle = (gratings % PLAID_ORIENTATIONS)[:, None, None] * math.pi / PLAID_ORIENTATIONS
        wavelength = torch.tensor(PLAID_WAVELENGTHS)[gratings // PLAID_ORIENTATIONS][:, None, None]
        frequency = 2 * math.pi / wavelength * uniform(0.97, 1.03)
        phase = frequency * (torch.cos(angle) * columns + torch.sin(angle) * rows)
        images += uniform(0.6, 1.0) * torch.sin(phase + uniform(0, 2 * math.pi))
    return images[:, None], labels
