import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from latentfit_bench.models import (
    AdversarialAutoencoder,
    Autoencoder,
    VariationalAutoencoder,
    kl_to_standard_normal,
    reconstruction_loss,
)

MODELS = [Autoencoder, VariationalAutoencoder, AdversarialAutoencoder]


def test_kl_is_that_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)


def test_reconstruction_loss_is_the_papers_equation_3():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 9, generator=generator, dtype=torch.float64)
    x = torch.bernoulli(torch.full((4, 9), 0.4, dtype=torch.float64), generator=generator)
    p = 1 / (1 + (-logits).exp())
    expected = (-x * p.log() - (1 - x) * (1 - p).log()).sum() / 4
    torch.testing.assert_close(reconstruction_loss(logits, x), expected)


def test_the_autoencoder_is_the_papers():
    model = Autoencoder(784, 10)
    for network, sizes in (
        (model.encoder, [784, 512, 256, 10]),
        (model.decoder, [10, 256, 512, 784]),
    ):
        linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        assert [layer.in_features for layer in linear] == sizes[:-1]
        assert [layer.out_features for layer in linear] == sizes[1:]
        assert network[-1] is linear[-1]
        assert sum(isinstance(layer, nn.BatchNorm1d) for layer in network) == 2
        assert sum(isinstance(layer, nn.ELU) for layer in network) == 2


@pytest.mark.parametrize("cls", MODELS)
def test_shapes_and_units(cls):
    model = cls(12, 3, (8, 6)).eval()
    x = torch.bernoulli(torch.full((5, 12), 0.5))
    z = model.encode(x)
    assert z.shape == (5, 3)
    probabilities = model.decode(z)
    assert probabilities.shape == (5, 12)
    torch.testing.assert_close(probabilities, torch.sigmoid(model.decoder(z)))


@pytest.mark.parametrize("cls", MODELS)
def test_there_is_one_finite_loss_for_each_phase(cls):
    model = cls(12, 3, (8, 6))
    x = torch.bernoulli(torch.full((5, 12), 0.5))
    losses = list(model.losses(x, torch.Generator().manual_seed(0)))
    assert len(losses) == len(model.phases())
    assert all(loss.shape == () and loss.isfinite() for loss in losses)


def test_the_vae_loss_is_an_upper_bound_built_of_its_parts():
    torch.manual_seed(0)
    model = VariationalAutoencoder(12, 3, (8, 6)).eval()
    x = torch.bernoulli(torch.full((5, 12), 0.5))
    (loss,) = model.losses(x, torch.Generator().manual_seed(1))
    mean, log_variance = model.encoder(x).chunk(2, 1)
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    posterior = Normal(mean, (0.5 * log_variance).exp())
    z = posterior.mean + posterior.stddev * noise
    expected = reconstruction_loss(model.decoder(z), x)
    expected = expected + kl_divergence(posterior, Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_the_aae_losses_are_those_of_a_standard_gan():
    torch.manual_seed(0)
    model = AdversarialAutoencoder(12, 3, (8, 6)).eval()
    x = torch.bernoulli(torch.full((5, 12), 0.5))
    _, critic, encoder = model.losses(x, torch.Generator().manual_seed(1))
    prior = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    real = model.discriminator(prior).sigmoid()
    fake = model.discriminator(model.encode(x)).sigmoid()
    torch.testing.assert_close(critic, -real.log().mean() - (1 - fake).log().mean())
    torch.testing.assert_close(encoder, -fake.log().mean())
