"""One batch that peers' losses and topr's weights are computed on, in float64."""

import torch

from topr.objectives import ScoredBatch, make_objective

LENGTHS = torch.tensor([3, 1, 5, 2, 4, 6])
MASK = torch.arange(6) < LENGTHS[:, None]
GROUP = torch.tensor([0, 0, 0, 1, 1, 1])
REWARD = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0])
MEAN = torch.tensor([-1 / 3] * 3 + [1 / 3] * 3)
ADVANTAGE = (REWARD - MEAN) / (8**0.5 / 3 + 1e-4)  # as GRPO normalises it


def made_logprobs(scale: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """log mu and log pi of the same tokens; log pi takes a gradient."""
    generator = torch.Generator().manual_seed(7)
    log_mu = -3 * torch.rand(6, 6, generator=generator)
    log_pi = (log_mu + scale * torch.randn(6, 6, generator=generator)).clamp(max=-1e-3)
    return log_mu, log_pi.requires_grad_()


def weights(name: str, log_mu: torch.Tensor, log_pi: torch.Tensor, **arguments) -> torch.Tensor:
    """topr's weights, group-normalised as the objective does it itself."""
    return make_objective(name, **arguments).weights(
        ScoredBatch(
            log_ratio=log_pi.detach() - log_mu,
            advantage=REWARD,
            mask=MASK,
            group=GROUP,
            behavior_logprobs=log_mu,
        )
    )


def descent(loss: torch.Tensor, log_pi: torch.Tensor) -> torch.Tensor:
    """Minus the gradient of a peer's loss with respect to log pi: what weights are."""
    (gradient,) = torch.autograd.grad(loss, log_pi)
    return -gradient


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal to a millionth, and not all zero."""
    assert ours.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
