"""Encoders and decoders of every kind: called rightly, and left as they were found."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from latentfit import fit_latent_sampler
from latentfit.errors import EncoderOutputError, OptionError
from latentfit.models import decoder_of, encoder_of

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Batch norm and dropout, in mixed modes: both would show if it ran in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.ELU())
        self.head = nn.Linear(5, 3)
        self.body[2].eval()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        result: Tensor = self.head(self.body(x))
        return result


class WithEncode(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def encode(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(x)
        return result

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("encode is what encodes")


class Wrapper:
    """No module itself."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def encode(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(x)
        return result


class Callable_:
    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(x)
        return result


def decorated(network: nn.Module) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def encoder(x: Tensor) -> Tensor:
        result: Tensor = network(x)
        return result

    return encoder


GLOBAL = Network()


def with_global(x: Tensor) -> Tensor:
    return torch.cat([GLOBAL(part) for part in x.split(4)])  # read inside a comprehension


KINDS: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda m: m,
    "module with encode": WithEncode,
    "closure": lambda m: lambda x: m(x),
    "default argument": lambda m: lambda x, model=m: model(x),
    "keyword default": lambda m: lambda x, *, model=m: model(x),
    "bound method": lambda m: m.forward,
    "bound method of a wrapper": lambda m: Wrapper(m).encode,
    "object with encode": Wrapper,
    "callable object": Callable_,
    "closure over a wrapper": lambda m: (lambda w: lambda x: w.encode(x))(Wrapper(m)),
    "closure over a list": lambda m: (lambda ms: lambda x: sum(m(x) for m in ms))([m]),
    "partial": lambda m: functools.partial(m.__class__.forward, m),
    "partial of a closure": lambda m: functools.partial(lambda y, x: m(x), None),
    "decorated function": decorated,
}


def snapshot(module: nn.Module) -> dict[str, Any]:
    return {
        "state": {k: v.clone() for k, v in module.state_dict().items()},
        "modes": {name: part.training for name, part in module.named_modules()},
        "places": {k: (v.data_ptr(), v.device, v.dtype) for k, v in module.state_dict().items()},
        "grads": {n: copy.copy(p.grad) for n, p in module.named_parameters()},
        "wants": {n: p.requires_grad for n, p in module.named_parameters()},
    }


def assert_unchanged(before: dict[str, Any], module: nn.Module) -> None:
    after = snapshot(module)
    for part in ("modes", "places", "wants"):
        assert after[part] == before[part]
    for part in ("state", "grads"):
        for name, tensor in before[part].items():
            assert (tensor is None) == (after[part][name] is None)
            assert tensor is None or torch.equal(tensor, after[part][name])


@pytest.fixture
def network() -> Network:
    network = Network()
    network(X).sum().backward()  # gradients that must stay
    network.head.bias.requires_grad_(False)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_runs_in_eval_mode_and_is_left_as_it_was(kind: str, network: Network) -> None:
    expected = copy.deepcopy(network).eval()(X).detach()
    before = snapshot(network)
    model = encoder_of(KINDS[kind](network))
    with model.evaluating():
        assert not any(part.training for part in network.modules())
        torch.testing.assert_close(model(X), expected)
    assert_unchanged(before, network)


def test_a_module_read_from_the_globals_is_found_too() -> None:
    before = snapshot(GLOBAL)
    model = encoder_of(with_global)
    with model.evaluating():
        torch.testing.assert_close(model(X), copy.deepcopy(GLOBAL).eval()(X))
    assert_unchanged(before, GLOBAL)


@pytest.mark.parametrize("kind", ["module", "closure", "object with encode"])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_a_fit_leaves_the_encoder_as_it_was_also_when_it_raises(
    kind: str, error: type[BaseException] | None, network: Network
) -> None:
    before = snapshot(network)

    def interrupt(*_: Any) -> None:
        if error is not None and network.calls > 2:
            raise error("midway")

    hook = network.head.register_forward_hook(interrupt)
    options: dict[str, Any] = {"batch_size": 8, "steps": 1}
    if error is None:
        sampler = fit_latent_sampler(KINDS[kind](network), X, **options)
        assert sampler.shape == (3,)
    else:
        with pytest.raises(error, match="midway"):
            fit_latent_sampler(KINDS[kind](network), X, **options)
    hook.remove()
    assert_unchanged(before, network)
    network.requires_grad_(True)(X).sum().backward()  # still trainable


def test_an_encoder_that_changes_its_own_mode_gets_it_back(network: Network) -> None:
    model = encoder_of(lambda x: network.train()(x))
    before = snapshot(network)["modes"]
    with model.evaluating():
        model(X)
    assert snapshot(network)["modes"] == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floating_point_data_is_given_in_the_encoders_precision(dtype: torch.dtype) -> None:
    linear = nn.Linear(6, 2).to(dtype)
    for given in (X.double(), X, X.half()):
        sampler = fit_latent_sampler(linear, given.numpy(), steps=1)
        assert sampler.dtype == dtype
        assert sampler.sample(2).dtype == dtype


def test_whole_numbers_stay_whole_for_an_embedding() -> None:
    model = encoder_of(nn.Embedding(10, 3))
    assert model(torch.arange(5)).shape == (5, 3)


def test_an_encoder_without_floating_parameters_gets_the_data_as_they_are() -> None:
    seen = []
    encoder_of(lambda x: seen.append(x.dtype) or x)(X.double())
    assert seen == [torch.float64]


def test_scikit_learn_transforms_arrays_both_ways() -> None:
    pca = PCA(2).fit(X.double().numpy())
    sampler = fit_latent_sampler(pca, X.double().numpy(), decoder=pca, steps=1)
    assert sampler.dtype == torch.float64
    assert sampler.shape == (2,)
    z = sampler.sample(5, seed=0)
    expected = pca.inverse_transform(z.numpy())
    np.testing.assert_allclose(sampler.decode(z).numpy(), expected)
    np.testing.assert_allclose(sampler.generate(5, seed=0).numpy(), expected)
    assert sampler.generate(0).shape == (0, 6)


@pytest.mark.parametrize(
    "output",
    [
        lambda z: z,
        lambda z: z.numpy(),
        lambda z: (z,),
        lambda z: {"latents": z, "kind": "mean"},
    ],
)
def test_an_encoder_may_return_its_tensor_wrapped(output: Callable[[Tensor], Any]) -> None:
    linear = nn.Linear(6, 2).requires_grad_(False)
    sampler = fit_latent_sampler(lambda x: output(linear(x)), X, steps=1)
    assert sampler.shape == (2,)


def test_an_encoder_that_returns_a_pair_is_told_what_was_seen() -> None:
    told = r"2 of them \(0: Tensor \(40, 6\).*output=0 or output=1 or output='mean'"
    with pytest.raises(EncoderOutputError, match=told):
        fit_latent_sampler(lambda x: (x, x), X)
    for choice in (0, "mean"):
        sampler = fit_latent_sampler(lambda x: (x[:, :3], -x[:, :3]), X, output=choice, steps=1)
        assert sampler.shape == (3,)


class Whole(nn.Module):
    """An autoencoder whose forward reconstructs, and that has neither encode nor decode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = network, nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("that is no latent")


def test_of_a_whole_autoencoder_the_halves_are_called(network: Network) -> None:
    whole = Whole(network)
    before = snapshot(whole)
    sampler = fit_latent_sampler(whole, X, decoder=whole, steps=1)
    assert sampler.shape == (3,)
    z = sampler.sample(4, seed=0)
    torch.testing.assert_close(sampler.generate(4, seed=0), whole.decoder(z))
    assert_unchanged(before, whole)
    assert encoder_of(whole).fingerprint() == encoder_of(network).fingerprint()


def test_a_module_with_one_half_is_called_itself() -> None:
    half = nn.Sequential()
    half.encoder = nn.Linear(6, 2)
    assert encoder_of(half)(X).shape == (40, 2)
    half.decoder = None
    assert encoder_of(half)(X).shape == (40, 2)


@pytest.mark.parametrize("how", [{"output": 0}, {"autocast": "bfloat16"}])
def test_what_is_for_encoders_is_refused_without_one(how: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="as there is no encoder"):
        fit_latent_sampler(None, X, **how)


def test_a_choice_is_checked_before_anything_is_encoded() -> None:
    calls: list[Tensor] = []
    with pytest.raises(OptionError, match="Expected output as"):
        fit_latent_sampler(lambda x: calls.append(x) or x, X, output=1.5)
    with pytest.raises(OptionError, match="Expected autocast as"):
        fit_latent_sampler(lambda x: calls.append(x) or x, X, autocast="float8")
    assert not calls


def test_a_function_without_modules_runs_under_autocast_too() -> None:
    seen = []
    weight = torch.ones(6, 2)
    model = encoder_of(lambda x: seen.append((x @ weight).dtype) or x @ weight, autocast="bfloat16")
    assert model(X).dtype == torch.float32
    assert seen == [torch.bfloat16]


def stochastic(x: Tensor) -> Tensor:
    noise = torch.randn_like(x) + torch.as_tensor(np.random.randn(*x.shape))  # noqa: NPY002
    return x + noise.to(x)


def test_a_stochastic_encoder_draws_by_the_seed() -> None:
    one, again, other = (
        fit_latent_sampler(stochastic, X, steps=1, seed=seed).sample(4, seed=0)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("model", [None, 3, "model.pt", b"x", nn.Linear, [], object()])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(OptionError, match="Expected encoder as"):
        encoder_of(model)
    with pytest.raises(OptionError, match="Expected decoder as"):
        decoder_of(model)


def test_a_class_is_refused_with_the_remedy() -> None:
    with pytest.raises(OptionError, match="the class Linear. Pass an instance"):
        fit_latent_sampler(nn.Linear, X)


class WithDecode:
    def __init__(self, network: nn.Module) -> None:
        self.parts = {"decoder": network}

    def decode(self, z: Tensor) -> Tensor:
        result: Tensor = self.parts["decoder"](z)
        return result


@pytest.fixture
def decoder() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: lambda z: m(z), WithDecode])
def test_a_decoder_runs_in_eval_mode_and_is_left_as_it_was(
    wrap: Callable[[nn.Module], Any], decoder: nn.Module
) -> None:
    expected = copy.deepcopy(decoder).eval()(X)
    before = snapshot(decoder)
    sampler = fit_latent_sampler(None, X, decoder=wrap(decoder), steps=1, batch_size=16)
    torch.testing.assert_close(sampler.decode(X), expected)
    torch.testing.assert_close(sampler.decode(X.double().numpy()), expected)
    sampler.generate(5)
    assert_unchanged(before, decoder)


def test_decoding_is_differentiable() -> None:
    linear = nn.Linear(6, 1)
    sampler = fit_latent_sampler(None, X, decoder=linear, steps=1)
    z = X.clone().requires_grad_()
    sampler.decode(z).sum().backward()
    torch.testing.assert_close(z.grad, linear.weight.detach().expand(40, 6))


@pytest.mark.parametrize("autocast", ["bfloat16", torch.bfloat16])
def test_info_tells_what_made_the_latents(autocast: Any) -> None:
    encoder = nn.Linear(X.shape[1], 3)
    sampler = fit_latent_sampler(encoder, X, method="gaussian", autocast=autocast)
    told = {"class": "torch.nn.modules.linear.Linear", "output": None, "autocast": "bfloat16"}
    assert sampler.info["encoder"] == told
    assert fit_latent_sampler(None, X, method="gaussian").info["encoder"] is None


class Counting(nn.Module):
    """Writes over one buffer, puts another in the place of a second, and turns a part to training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 2), nn.BatchNorm1d(2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("average", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train()
        z: Tensor = self.norm(self.linear(x))
        self.calls += 1
        self.average = 0.9 * self.average + 0.1 * z.mean(0)
        return z


def test_buffers_that_an_encoder_writes_are_given_back() -> None:
    encoder = Counting()
    before = {name: (value, value.clone()) for name, value in encoder.named_buffers()}
    fit_latent_sampler(encoder, torch.randn(100, 4), batch_size=20, method="gaussian")
    after = dict(encoder.named_buffers())
    for name, (buffer, content) in before.items():
        assert after[name] is buffer
        assert torch.equal(buffer, content)
    encoder.average.zero_()  # no tensor of inference mode is left


def test_an_autocast_of_the_callers_does_not_change_the_latents() -> None:
    encoder, x = nn.Linear(4, 2), torch.randn(100, 4)
    one = fit_latent_sampler(encoder, x, method="gaussian")
    with torch.autocast("cpu", torch.bfloat16):
        other = fit_latent_sampler(encoder, x, method="gaussian")
    assert torch.equal(one.sample(5, seed=0), other.sample(5, seed=0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["exported", "frozen", "traced and frozen"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_forms_without_a_mode_are_taken(kind: str, wrapped: bool, tmp_path: Path) -> None:
    x = torch.randn(100, 4)
    network, back = nn.Sequential(nn.Linear(4, 2)).eval(), nn.Sequential(nn.Linear(2, 4)).eval()
    if kind == "exported":
        rows = torch.export.Dim("rows", min=1, max=1000)
        exported = torch.export.export(network, (x,), dynamic_shapes={"input": {0: rows}})
        form: Any = exported.module()
    elif kind == "frozen":
        form, back = (torch.jit.freeze(torch.jit.script(m)) for m in (network, back))
    else:
        form, back = torch.jit.freeze(torch.jit.trace(network, x)), torch.jit.script(back)
    encoder = (lambda batch: form(batch)) if wrapped else form
    sampler = fit_latent_sampler(
        encoder, x, decoder=back, method="gaussian", store=tmp_path / "store"
    )
    plain = fit_latent_sampler(network, x, method="gaussian")
    torch.testing.assert_close(sampler.sample(5, seed=0), plain.sample(5, seed=0))
    assert sampler.generate(3).shape == (3, 4)
