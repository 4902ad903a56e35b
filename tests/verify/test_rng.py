"""Draws agree with torch's own, on whatever device the probabilities and the generator are."""

import itertools

import pytest
import torch

from dllm.verify.rng import TorchRng, row_seed

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]
PROBS = torch.tensor([0.1, 0.0, 0.6, 0.3])


def seeded(device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("at", DEVICES)
def test_a_choice_is_a_draw_of_the_generator(device, at):
    rng, twin = TorchRng(seeded(device)), seeded(device)
    for _ in range(20):
        wanted = torch.multinomial(PROBS.to(device)[None], 1, generator=twin)
        assert rng.choice(PROBS.to(at)) == int(wanted)


@pytest.mark.parametrize("at", DEVICES)
def test_without_a_generator_the_global_one_draws(at):
    torch.manual_seed(5)
    drawn = [TorchRng().choice(PROBS.to(at)) for _ in range(20)]
    torch.manual_seed(5)
    assert drawn == [int(torch.multinomial(PROBS.to(at)[None], 1)) for _ in range(20)]


@pytest.mark.parametrize("device", DEVICES)
def test_coins(device):
    rng = TorchRng(seeded(device))
    assert not any(rng.flip(0.0) for _ in range(100))
    assert all(rng.flip(1.0) for _ in range(100))
    heads = [rng.flip(0.25) for _ in range(2000)]
    assert 400 < sum(heads) < 600  # 5 standard deviations
    assert any(a != b for a, b in itertools.pairwise(heads))


def test_no_two_rows_of_a_run_and_no_two_runs_are_seeded_alike():
    """torch's generator takes 32 bits, so that a seed of more has to be hashed."""
    seeds = [0, 1, 2, 1000, 2**32, 2**32 + 1, 10**14, 2**63 - 1]
    rows = [*range(200), 2**32, 2**33, 2**62]
    found = {row_seed(seed, row) for seed in seeds for row in rows}
    assert len(found) == len(seeds) * len(rows)
    assert all(0 <= each < 2**32 for each in found)
    first = {float(torch.rand((), generator=torch.Generator().manual_seed(each))) for each in found}
    assert len(first) > 0.999 * len(found)


def test_a_row_is_seeded_as_ever():
    assert [row_seed(0, 0), row_seed(0, 1), row_seed(10**14, 7)] == [
        2968811710,
        2968811711,
        2405481527,
    ]
