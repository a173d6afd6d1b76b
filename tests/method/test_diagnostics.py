"""Figures of a run's health, as functions of tensors."""

from __future__ import annotations

import torch

from raysid.method.diagnostics import batch_spread, clamped_share, relative_error

B, D = 512, 64


def test_relative_error_of_known_denoisers() -> None:
    """1 for the two that need no network, below it for the best linear one, far above it for a wrong scale."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(B, D, generator=source)
    sigma = torch.linspace(0.1, 10, B)
    scales = torch.ones(B), sigma
    x_t = x + sigma[:, None] * torch.randn(B, D, generator=source)
    small = sigma < 1
    assert torch.allclose(relative_error(x_t, x, scales)[small].mean(), torch.tensor(1.0), atol=0.05)
    assert torch.allclose(
        relative_error(torch.zeros_like(x), x, scales)[~small], torch.ones(int((~small).sum())), atol=0.7
    )
    best = x_t / (1 + sigma[:, None] ** 2)
    assert relative_error(best, x, scales).mean().item() < 0.95
    assert relative_error(10 * best, x, scales).mean().item() > 10


def test_relative_error_takes_each_process_by_its_scales() -> None:
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(1))
    a, s = torch.full((4,), 0.5), torch.full((4,), 0.1)
    trivial = D * (0.1 / 0.5) ** 2
    expected = ((0.9 * x - x) ** 2).sum(1) / trivial
    assert torch.allclose(relative_error(0.9 * x, x, (a, s)), expected)


def test_spread_is_zero_for_one_image() -> None:
    one = torch.randn(1, 3, 8, 8)
    assert batch_spread(one.expand(4, 3, 8, 8)) == 0
    assert abs(batch_spread(torch.randn(4096, 3, 2, 2)).item() - 1) < 0.05


def test_clamped_share() -> None:
    logits = torch.tensor([[9.9, -10.0], [11.0, -200.0]]).reshape(2, 1, 1, 2)
    assert clamped_share(logits).tolist() == [0.5, 1.0]
