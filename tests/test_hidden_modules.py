"""Encoders whose modules are out of sight: run in eval mode all the same, and no store of theirs is stale."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentfit.encoding import encode
from latentfit.errors import OptionError
from latentfit.models import encoder_of
from latentfit.storing import fill_store

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


class Noisy(nn.Module):
    """Batch norm and dropout: both would show in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.drop(self.norm(x))
        return result


NET = Noisy()


@functools.lru_cache
def cached() -> Noisy:
    return NET


def helper(x: Tensor) -> Tensor:
    result: Tensor = NET(x)
    return result


def decorator(function: Any) -> Any:
    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapped


class Method:
    def encode(self, x: Tensor) -> Any:
        return NET(x)


class Decorated:
    @decorator
    def encode(self, x: Tensor) -> Any:
        return NET(x)


class Static:
    @staticmethod
    def encode(x: Tensor) -> Any:
        return NET(x)


class OfClass:
    @classmethod
    def encode(cls, x: Tensor) -> Any:
        return NET(x)


class Property:
    @property
    def net(self) -> Noisy:
        return NET

    def encode(self, x: Tensor) -> Any:
        return self.net(x)


class CachedProperty:
    @functools.cached_property
    def net(self) -> Noisy:
        return NET

    def encode(self, x: Tensor) -> Any:
        return self.net(x)


class Attribute:
    net = NET

    def encode(self, x: Tensor) -> Any:
        return self.net(x)


class ListAttribute:
    _nets = [NET]  # noqa: RUF012 - as users write it

    def encode(self, x: Tensor) -> Any:
        return self._nets[0](x)


class Module(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return NET(x)


class Through(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return helper(x)


class Inherited(Method):
    pass


class Nested:
    def __init__(self) -> None:
        self.inner = Method()

    def encode(self, x: Tensor) -> Any:
        return self.inner.encode(x)


class DeepDict:
    def __init__(self) -> None:
        self.nets = {"a": {"b": NET}}

    def encode(self, x: Tensor) -> Any:
        return self.nets["a"]["b"](x)


class Lambda:
    def __init__(self) -> None:
        self.f: Callable[..., Any] = lambda x: NET(x)

    def encode(self, x: Tensor) -> Any:
        return self.f(x)


class Partial:
    def __init__(self) -> None:
        self.f = functools.partial(helper)

    def encode(self, x: Tensor) -> Any:
        return self.f(x)


class PlainList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._nets = [NET]

    def forward(self, x: Tensor) -> Any:
        return self._nets[0](x)


def deep_global(x: Tensor) -> Any:
    return DEEP["a"]["b"](x)


DEEP = {"a": {"b": NET}}


def by_cache(x: Tensor) -> Any:
    return cached()(x)


def by_name(x: Tensor) -> Any:
    return globals()["NET"](x)  # nobody can see what it reads


SEEN: dict[str, Callable[[], Any]] = {
    cls.__name__: cls
    for cls in (
        *(
            Method,
            Decorated,
            Static,
            OfClass,
            Property,
            CachedProperty,
            Attribute,
            ListAttribute,
            Module,
        ),
        *(Through, Inherited, Nested, DeepDict, Lambda, Partial, PlainList),
    )
} | {
    "deep global": lambda: deep_global,
    "cached function": lambda: by_cache,
    "cached lambda": lambda: functools.lru_cache(lambda x: NET(x)),
}
UNSEEN: dict[str, Callable[[], Any]] = {"by name": lambda: by_name}


@pytest.fixture(autouse=True)
def net() -> Noisy:
    torch.nn.init.ones_(NET.norm.weight)
    NET.norm.reset_running_stats()
    NET.train().norm.eval()  # of mixed modes
    return NET


@pytest.mark.parametrize("kind", SEEN | UNSEEN)
def test_they_run_in_eval_mode_and_are_left_as_they_were(kind: str, net: Noisy) -> None:
    model = encoder_of((SEEN | UNSEEN)[kind]())
    net.norm.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with model.evaluating():
        latents, _ = encode(model, X, batch_size=16)
    torch.testing.assert_close(latents, X / (1 + net.norm.eps) ** 0.5)
    assert net.training
    assert net.norm.training
    assert net.drop.training
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("kind", SEEN)
def test_a_change_in_one_is_another_encoder(kind: str, net: Noisy, tmp_path: Path) -> None:
    for factor in (1.0, 3.0, 3.0):
        with torch.no_grad():
            net.norm.weight.fill_(factor)
        model = encoder_of(SEEN[kind]())
        with model.evaluating():
            store = fill_store(tmp_path / "store", model, X, batch_size=16)
        expected = factor * X / (1 + net.norm.eps) ** 0.5
        torch.testing.assert_close(store.read(0, len(store)), expected)


@pytest.mark.parametrize("kind", UNSEEN)
def test_a_store_of_what_is_out_of_sight_is_refused(kind: str, tmp_path: Path) -> None:
    model = encoder_of(UNSEEN[kind]())
    with (
        pytest.raises(OptionError, match=r"ran a Noisy that it does not hold.*attribute"),
        model.evaluating(),
    ):
        fill_store(tmp_path / "store", model, X, batch_size=16)
    assert not [file for file in (tmp_path / "store").iterdir() if file.name != ".lock"]


def test_modules_made_for_the_call_are_no_secret(tmp_path: Path) -> None:
    model = encoder_of(lambda x: nn.Flatten()(nn.Dropout(0.5)(x)))
    with model.evaluating():
        store = fill_store(tmp_path / "store", model, X, batch_size=16)
    torch.testing.assert_close(store.read(0, len(store)), X)


def test_globals_of_other_kinds_that_a_method_reads_count() -> None:
    space: dict[str, Any] = {"__name__": "somebodys", "WEIGHT": torch.ones(3), "SCALE": 2.0}
    exec(
        "class Encoder:\n"
        "    def encode(self, x):\n"
        "        return helper(x) * SCALE\n"
        "def helper(x):\n"
        "    return x @ WEIGHT\n",
        space,
    )
    encoder = encoder_of(space["Encoder"]())
    seen = {encoder.fingerprint()}
    space["WEIGHT"] = torch.tensor([1.0, 1.0, 2.0])
    seen.add(encoder.fingerprint())
    space["SCALE"] = 3.0
    seen.add(encoder.fingerprint())
    assert len(seen) == 3
    space["unrelated"] = 1
    assert encoder.fingerprint() in seen


def test_what_an_encoder_keeps_can_be_trained_with_later() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.places: dict[int, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            if len(x) not in self.places:
                self.places[len(x)] = torch.linspace(0, 1, len(x))[:, None]
            result: Tensor = self.linear(x * self.places[len(x)])
            return result

    encoder = Caching()
    model = encoder_of(encoder)
    with model.evaluating():
        encode(model, X, batch_size=16)  # 16, 16 and 8 rows
    assert set(encoder.places) == {16, 8}
    for n in (16, 8):
        encoder(X[:n]).sum().backward()  # an inference tensor could not be saved for this
    assert encoder.linear.weight.grad is not None
