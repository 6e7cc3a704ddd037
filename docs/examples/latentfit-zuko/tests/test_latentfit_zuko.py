"""The conformance suite, and what is particular to flows of zuko."""

from pathlib import Path

import pytest
import torch
from latentfit_zuko import NAF, NSF

from latentfit import fit_latent_sampler, list_samplers, load_sampler
from latentfit.testing import parametrize_with_checks

BRIEF = {"hidden": (32,), "components": 4, "steps": 200}


@parametrize_with_checks([(NSF, BRIEF), (NAF, BRIEF)])
def test_sampler(check):
    check()


def built(cls: type[NSF] | type[NAF], dim: int = 3, **options: object) -> NSF | NAF:
    """A flow with random weights on rows of some columns."""
    torch.manual_seed(0)
    sampler = cls(**options)
    sampler.build(dim, 100)
    return sampler.requires_grad_(False).eval()


@pytest.mark.parametrize("cls", [NSF, NAF])
@pytest.mark.parametrize("dim, passes", [(1, None), (2, None), (5, None), (5, 2), (6, 3)])
def test_flow_and_inverse_undo_each_other(cls, dim, passes):
    sampler = built(cls, dim, passes=passes)
    rows = 2 * torch.randn(200, dim, generator=torch.Generator().manual_seed(1))
    noise, log_determinant = sampler.to_base(rows)
    assert log_determinant.shape == (200,)
    assert torch.allclose(sampler.from_base(noise), rows, atol=1e-3)


@pytest.mark.parametrize("cls", [NSF, NAF])
def test_log_determinant_is_the_jacobian_s(cls):
    sampler = built(cls).double()
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _, log_determinant = sampler.to_base(rows)
    for row, value in zip(rows, log_determinant, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: sampler.to_base(x[None])[0][0], row)
        assert torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, value, atol=1e-5)


def test_splines_are_the_identity_beyond_five():
    rows = torch.tensor([[6.0, -7.0, 5.5], [-9.0, 8.0, 100.0]])
    noise, log_determinant = built(NSF).to_base(rows)
    assert torch.equal(noise, rows)
    assert torch.equal(log_determinant, torch.zeros(2))


@pytest.mark.parametrize("method", ["zuko-nsf", "zuko-naf"])
def test_it_is_a_method_like_any_other(method, tmp_path: Path):
    info = next(info for info in list_samplers() if info.name == method)
    assert (info.distribution, info.error) == ("latentfit-zuko", None)
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(2, (400,), generator=generator)
    latents = torch.randn(400, 2, 2, generator=generator) + 20 * labels[:, None, None]
    sampler = fit_latent_sampler(
        None, latents, method=method, condition=labels, progress=False, **BRIEF
    )
    drawn = sampler.sample(100, seed=0, condition=1)
    assert drawn.shape == (100, 2, 2)
    assert ((drawn.mean((1, 2)) - 20).abs() < 6).float().mean() > 0.9
    sampler.save(tmp_path / "sampler.safetensors")
    again = load_sampler(tmp_path / "sampler.safetensors")
    assert torch.equal(again.sample(100, seed=0, condition=1), drawn)
    scores = sampler.log_prob(latents, condition=labels)
    assert torch.equal(again.log_prob(latents, condition=labels), scores)
    assert (scores > sampler.log_prob(latents, condition=1 - labels)).float().mean() > 0.99
