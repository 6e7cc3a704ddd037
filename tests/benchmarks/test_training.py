import pytest
import torch

from latentfit.metrics import frechet_distance_from_moments, gaussian_moments
from latentfit_bench.datasets import load_digits
from latentfit_bench.models import AdversarialAutoencoder, Autoencoder, VariationalAutoencoder
from latentfit_bench.training import in_batches, train_autoencoder

IMAGES = load_digits().train_images


def build(cls, **options):
    return lambda: cls(64, 4, (32, 16), **options)


def parameters(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("how", ["threshold", "bernoulli"])
@pytest.mark.parametrize("cls", [Autoencoder, VariationalAutoencoder, AdversarialAutoencoder])
def test_a_seed_decides_everything_and_the_global_rng_is_untouched(cls, how):
    def train(seed):
        return train_autoencoder(build(cls), IMAGES, epochs=2, seed=seed, batch_size=64, how=how)

    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first = train(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(456)
    second, other = train(0), train(1)
    assert torch.equal(parameters(first.model), parameters(second.model))
    assert not torch.equal(parameters(first.model), parameters(other.model))
    assert first.history == second.history


def test_it_comes_back_frozen_and_better_than_it_was():
    trained = train_autoencoder(build(Autoencoder), IMAGES, epochs=8, seed=0, batch_size=64)
    assert not trained.model.training
    assert not any(p.requires_grad for p in trained.model.parameters())
    losses = trained.history["reconstruction"]
    assert len(losses) == 8
    assert losses[-1] < 0.6 * losses[0]
    assert trained.seconds > 0


class Probe(Autoencoder):
    """Keeps the batches that it is given."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = []

    def losses(self, images, generator):
        self.seen.append(images.clone())
        yield from super().losses(images, generator)


@pytest.mark.parametrize("how", ["threshold", "bernoulli"])
def test_every_image_is_seen_once_an_epoch_binary_and_bernoulli_draws_anew(how):
    images = IMAGES[:128]
    trained = train_autoencoder(build(Probe), images, epochs=2, seed=0, batch_size=64, how=how)
    seen = torch.cat(trained.model.seen)
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    epochs = [sorted(map(tuple, epoch.tolist())) for epoch in seen.split(128)]
    threshold = sorted(map(tuple, (images >= 0.5).float().tolist()))
    if how == "threshold":
        assert epochs == [threshold, threshold]
    else:
        assert epochs[0] != epochs[1]
        assert threshold not in epochs
    assert not torch.equal(*seen.split(128))


def test_a_batch_larger_than_the_data_is_all_of_it():
    trained = train_autoencoder(build(Autoencoder), IMAGES[:10], epochs=1, seed=0, batch_size=64)
    assert len(trained.history["reconstruction"]) == 1


def test_on_epoch_hears_every_epoch():
    heard = []
    trained = train_autoencoder(
        build(Autoencoder), IMAGES, epochs=3, seed=0, on_epoch=lambda *what: heard.append(what)
    )
    assert heard == list(enumerate(trained.history["reconstruction"], start=1))


def test_an_aae_whose_adversary_stands_still_is_the_autoencoder():
    still = {"discriminator_learning_rate": 0.0, "adversarial_learning_rate": 0.0}
    aae, ae = (
        train_autoencoder(made, IMAGES, epochs=1, seed=0, batch_size=64).model
        for made in (build(AdversarialAutoencoder, **still), build(Autoencoder))
    )
    assert torch.equal(parameters(aae.encoder), parameters(ae.encoder))
    assert torch.equal(parameters(aae.decoder), parameters(ae.decoder))


def test_each_phase_moves_its_own_parameters_only():
    def trained(**rates):
        names = ("learning_rate", "discriminator_learning_rate", "adversarial_learning_rate")
        options = {name: rates.get(name, 0.0) for name in names}
        made = build(AdversarialAutoencoder, **options)
        model = train_autoencoder(made, IMAGES, epochs=1, seed=0, batch_size=64).model
        return [parameters(part) for part in (model.encoder, model.decoder, model.discriminator)]

    start = trained()
    for rate, moves in (
        ("learning_rate", [True, True, False]),
        ("discriminator_learning_rate", [False, False, True]),
        ("adversarial_learning_rate", [True, False, False]),
    ):
        end = trained(**{rate: 1e-3})
        assert [not torch.equal(a, b) for a, b in zip(start, end, strict=True)] == moves


def test_the_aae_and_the_vae_pull_the_latents_to_the_prior_and_the_autoencoder_does_not():
    distance = {}
    binary = (IMAGES >= 0.5).float()
    for cls in (Autoencoder, AdversarialAutoencoder, VariationalAutoencoder):

        def far_off(cls=cls):
            model = build(cls)()
            with torch.no_grad():
                model.encoder[-1].bias[:4] += 3
            return model

        model = train_autoencoder(far_off, IMAGES, epochs=15, seed=0, batch_size=64).model
        mean, covariance = gaussian_moments(in_batches(model.encode, binary))
        distance[cls.name] = frechet_distance_from_moments(
            mean, covariance, 0 * mean, torch.eye(4).numpy()
        )
    assert distance["AAE"] < 0.5 * distance["AE"]
    assert distance["VAE"] < 0.5 * distance["AE"]


def test_in_batches_is_the_same_in_one_piece():
    rows = torch.arange(10.0)[:, None]
    assert torch.equal(in_batches(lambda x: 2 * x, rows, size=3), 2 * rows)
