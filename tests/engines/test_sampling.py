"""The distribution that is sampled, the draw from it, and the random numbers behind it."""

import math

import numpy as np
import pytest
import torch

from topr.engines.rng import uniform_stream
from topr.engines.sampling import draw, sampled_log_probs
from topr.records import SamplingParams

# Probabilities 0.5, 0.25, 0.15, 0.1 in a shuffled vocabulary order.
PROBS = [0.15, 0.5, 0.1, 0.25]
LOGITS = torch.tensor([PROBS]).log()


def log_probs(**sampling: float) -> list[float]:
    return sampled_log_probs(LOGITS, SamplingParams(**sampling)).exp()[0].tolist()


def test_plain_sampling_is_the_softmax() -> None:
    assert log_probs() == pytest.approx(PROBS)


def test_temperature_half_squares_the_odds() -> None:
    squares = [p * p for p in PROBS]
    assert log_probs(temperature=0.5) == pytest.approx([s / sum(squares) for s in squares])


def test_top_k_keeps_the_k_likeliest_renormalised() -> None:
    assert log_probs(top_k=2) == pytest.approx([0, 0.5 / 0.75, 0, 0.25 / 0.75])


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, [1]), (0.6, [1, 3]), (0.76, [1, 3, 0]), (0.95, [1, 3, 0, 2])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: list[int]) -> None:
    mass = sum(PROBS[token] for token in kept)
    expected = [p / mass if token in kept else 0 for token, p in enumerate(PROBS)]
    assert log_probs(top_p=top_p) == pytest.approx(expected)


def test_a_tiny_top_p_keeps_the_likeliest() -> None:
    assert log_probs(top_p=1e-9) == pytest.approx([0, 1, 0, 0])


def test_top_p_is_of_the_mass_that_top_k_left() -> None:
    # After top_k=3: 0.5/0.9 = 0.56, 0.28, 0.17. 0.8 of that mass needs two tokens (0.83); of the
    # whole distribution's it would need three (0.75 < 0.8).
    assert log_probs(top_k=3, top_p=0.8) == pytest.approx([0, 2 / 3, 0, 1 / 3])


def test_ties_at_top_k_leave_exactly_k() -> None:
    tied = sampled_log_probs(torch.zeros(1, 6), SamplingParams(top_k=4)).exp()
    assert sorted(tied[0].tolist()) == pytest.approx([0, 0, 0.25, 0.25, 0.25, 0.25])


def test_greedy_takes_the_likeliest_with_log_probability_zero() -> None:
    tokens, logprobs = draw(LOGITS, torch.tensor([0.99]), SamplingParams(temperature=0.0))
    assert (tokens.tolist(), logprobs.tolist()) == ([1], [0.0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_show_in_the_log_probability(temperature: float) -> None:
    logits = torch.tensor([[0.0, math.nan, 1.0], [0.0, 1.0, 2.0]])
    _, logprobs = draw(logits, torch.tensor([0.5, 0.5]), SamplingParams(temperature=temperature))
    assert logprobs.isnan().tolist() == [True, False]


def test_the_draw_inverts_the_cumulative_distribution() -> None:
    # Cumulative, in vocabulary order: 0.15, 0.65, 0.75, 1.
    uniforms = torch.tensor([0.0, 0.149, 0.151, 0.649, 0.651, 0.749, 0.751], dtype=torch.float64)
    tokens, logprobs = draw(LOGITS.expand(7, -1), uniforms, SamplingParams())
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert logprobs.tolist() == pytest.approx([math.log(PROBS[token]) for token in tokens])


def test_the_ends_of_the_unit_interval_never_draw_what_has_no_chance() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.5, -torch.inf]]).expand(3, -1)
    largest = np.nextafter(1.0, 0.0)
    tokens, logprobs = draw(
        logits, torch.tensor([0.0, largest, 1.0], dtype=torch.float64), SamplingParams()
    )
    assert tokens.tolist() == [1, 3, 3]
    assert logprobs.isfinite().all()


@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(temperature=0.7, top_k=12, top_p=0.9)]
)
def test_counts_agree_with_the_exact_distribution(sampling: SamplingParams) -> None:
    """Chi-square: below the 99.9 % point (mean k, variance 2k, plus 4 standard deviations)."""
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(5)) * 2
    draws = 50_000
    uniforms = torch.from_numpy(uniform_stream(0, "chi", 0).random(draws))
    tokens, _ = draw(logits.expand(draws, -1), uniforms, sampling)
    probs = sampled_log_probs(logits, sampling)[0].exp().double()
    counts = torch.bincount(tokens, minlength=30).double()
    assert counts[probs == 0].sum() == 0
    expected = (probs * draws)[probs > 0]
    assert expected.min() > 5  # where the chi-square distribution holds
    statistic = float(((counts[probs > 0] - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, 50, generator=generator)
    uniforms = torch.rand(8, generator=generator, dtype=torch.float64)
    sampling = SamplingParams(top_k=20, top_p=0.8)
    together = draw(logits, uniforms, sampling)
    alone = [draw(logits[i : i + 1], uniforms[i : i + 1], sampling) for i in range(8)]
    assert together[0].tolist() == [int(tokens) for tokens, _ in alone]
    assert together[1].tolist() == [float(logprobs) for _, logprobs in alone]


def test_streams_are_fixed_by_seed_problem_and_sample() -> None:
    first = uniform_stream(3, "p", 1).random(8).tolist()
    assert uniform_stream(3, "p", 1).random(8).tolist() == first
    # However many numbers are asked for at a time.
    stream = uniform_stream(3, "p", 1)
    assert [*stream.random(3), *stream.random(5)] == first
    others = [(4, "p", 1), (3, "q", 1), (3, "p", 2), (31, "p", 1), (3, "1p", 1)]
    assert all(uniform_stream(*other).random(8).tolist() != first for other in others)


def test_streams_stay_what_they_are_between_releases() -> None:
    """A run is repeated, or resumed, from the same numbers: changing them is a breaking change."""
    assert uniform_stream(0, "p", 0).random(2).tolist() == [0.0836740092645345, 0.5706983264598985]
