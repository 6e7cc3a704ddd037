"""The hash of an encoder: alike in each process, another after any change that counts."""

import copy
import functools
import importlib
import io
import math
import pickle
import sys
import threading
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomTreesEmbedding
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import Tensor, nn

from latentfit.errors import LatentsWarning
from latentfit.fingerprint import fingerprint
from latentfit.models import encoder_of

MODULE = """
import functools
import numpy as np
import torch
from torch import nn
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from latentfit.models import encoder_of

SCALE = {"b": 2.0, "a": 1.0}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.register_buffer("hidden", torch.ones(()), persistent=False)
    def forward(self, x):
        return self.layer(x)

class Wrapper:
    def __init__(self, net):
        self.net, self.names = net, {"left", "right", "up", "down"}
    def encode(self, x):
        return self.net(x)

def helper(x):
    return x * SCALE["a"]

def function(x):
    return helper(torch.stack([net(part) for part in x])) if "k" in {"k", "l", "m", "n"} else x

torch.manual_seed(0)
net = Net()
rows = np.arange(40.0).reshape(10, 4) ** 2 % 7
scaler = StandardScaler().fit(rows)
pipeline = make_pipeline(StandardScaler(), PCA(2, svd_solver="full")).fit(rows)
encoders = [
    net, net.double(), lambda x: net(x), function, Wrapper(net), Wrapper(net).encode, scaler, pipeline,
    functools.partial(function, x=3), torch.no_grad()(function),
]
for number, encoder in enumerate(encoders):
    print(encoder_of(encoder).fingerprint())
print(encoder_of(net, output="a.b", autocast="bfloat16").fingerprint())
print(encoder_of(net, output=lambda returned: returned[0]).fingerprint())
"""


def test_it_is_the_same_in_a_fresh_process(run_python, tmp_path, monkeypatch) -> None:
    (tmp_path / "encoders.py").write_text(MODULE)
    outputs = []
    for seed in ("1", "2"):  # of Python's hashes: sets have another order
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        outputs.append(
            run_python("-c", "import encoders").stdout.split()
        )  # the second from bytecode
    assert outputs[0] == outputs[1]
    assert all(len(digest) == 64 and int(digest, 16) for digest in outputs[0])
    assert len(set(outputs[0])) == len(outputs[0]) - 1  # .double() is in place


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("offset", torch.zeros(2, 2), persistent=False)
        self._calls: list[int] = []  # a log, of which its name says that nobody else needs it
        self.settings: Any = [0.0, {"scale": 1.0}]
        self.activation: Any = torch.relu
        self.config = types.SimpleNamespace(patch=4)
        self.gain: Any = 1.0
        self.mode = "mean"

    def forward(self, x: Tensor) -> Tensor:
        self._calls.append(1)
        result: Tensor = self.norm(self.linear(x))
        return result


class Renamed(Network):
    pass


@pytest.fixture
def network() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network()


def of(encoder: Any, **how: Any) -> str:
    return encoder_of(encoder, **how).fingerprint()


def one_ulp(tensor: Tensor) -> None:
    flat = tensor.data.view(-1)
    flat[-1] = torch.nextafter(flat[-1], torch.tensor(math.inf))


CHANGES: dict[str, Callable[[Network], Any]] = {
    "one weight by one ulp": lambda m: one_ulp(m.linear.weight),
    "the last bias by one ulp": lambda m: one_ulp(m.linear.bias),
    "a buffer": lambda m: m.norm.running_var.mul_(2),
    "a buffer that is not saved": lambda m: one_ulp(m.offset),
    "a whole-number buffer": lambda m: m.norm.num_batches_tracked.add_(1),
    "a dtype": lambda m: m.half(),
    "a shape": lambda m: setattr(m, "offset", m.offset.view(4)),
    "zero's sign": lambda m: m.offset.neg_(),
    "a setting without a tensor": lambda m: setattr(m.norm, "eps", 0.1),
    "an attribute": lambda m: setattr(m, "gain", 2.0),
    "a text": lambda m: setattr(m, "mode", "max"),
    "a tensor that is no buffer": lambda m: setattr(m, "gain", torch.ones(1)),
    "a number in a list": lambda m: m.settings.__setitem__(0, 9.0),
    "a number in a dict": lambda m: m.settings[1].update(scale=2.0),
    "a function": lambda m: setattr(m, "activation", torch.tanh),
    "a setting of an object": lambda m: setattr(m.config, "patch", 8),
    "a hook": lambda m: m.linear.register_forward_hook(lambda _, __, y: 2 * y),
    "a name": lambda m: setattr(m, "other", m._modules.pop("linear")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        lambda m: lambda x: m(x),
        lambda m: m.forward,
        lambda m: functools.partial(m.__class__.forward, m),
    ],
)
def test_it_changes_with_the_state(change: str, wrap: Any, network: Network) -> None:
    before = of(wrap(network))
    assert of(wrap(copy.deepcopy(network))) == before
    CHANGES[change](network)
    assert of(wrap(network)) != before


def test_use_changes_nothing(network: Network) -> None:
    model = encoder_of(network)
    before = model.fingerprint()
    with model.evaluating(), torch.inference_mode():
        model(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
        assert model.fingerprint() == before
    network.eval().requires_grad_(False)
    assert network._calls
    assert of(network) == before


def test_the_class_the_choice_and_autocast_count(network: Network) -> None:
    renamed = Renamed()
    renamed.load_state_dict(network.state_dict())
    variants = [
        of(network),
        of(renamed),
        of(network, output="mean"),
        of(network, output="sample"),
        of(network, output=0),
        of(network, output="0"),
        of(network, output=lambda r: r[0]),
        of(network, output=lambda r: r[1]),
        of(network, autocast="bfloat16"),
        of(network, autocast="float16"),
    ]
    assert len(set(variants)) == len(variants)


def test_a_function_counts_with_its_code_and_what_it_captures() -> None:
    def by(factor: Any) -> Callable[[Any], Any]:
        return lambda x: x * factor

    def default(x: Any, factor: int = 2) -> Any:
        return x * factor

    functions: list[Any] = [
        lambda x: x * 2,
        lambda x: x * 3,
        lambda x: x + 2,
        lambda x: x.real * 2,
        lambda x: x.imag * 2,
        lambda x: [y * 2 for y in x],
        lambda x: [y * 3 for y in x],
        by(2),
        by(2.0),
        by("2"),
        by(torch.tensor(2)),
        by(np.array(2)),
        by([2]),
        by((2,)),
        by({2: 2}),
        by({2}),
        by(by(2)),
        default,
        functools.partial(default, factor=3),
        torch.tanh,
        torch.sigmoid,
        torch.ones(2).add,
        torch.zeros(2).add,
    ]
    digests = [of(function) for function in functions]
    assert len(set(digests)) == len(digests)
    assert of(by(2)) == of(by(2))
    for _ in range(100):  # the interpreter rewrites code that is hot
        functions[7](3)
        functions[5]([3])
    assert [of(function) for function in functions] == digests


def test_objects_that_hold_each_other_end() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    other: list[Any] = [2]
    other.append(other)
    assert fingerprint(ring) != fingerprint(other)

    def recursive(x: int) -> int:
        return recursive(x - 1) if x else 0

    assert len(of(recursive)) == 64


ROWS = np.random.default_rng(0).normal(size=(50, 4))
SKLEARN: dict[str, Callable[[np.ndarray], Any]] = {
    "PCA": lambda rows: PCA(2).fit(rows),
    "pipeline": lambda rows: make_pipeline(StandardScaler(), PCA(2)).fit(rows),
    "trees, in Cython": lambda rows: RandomTreesEmbedding(2, random_state=0).fit(rows),
    "a function": lambda rows: make_pipeline(FunctionTransformer(np.tanh), PCA(2)).fit(rows),
}


@pytest.mark.parametrize("kind", SKLEARN)
def test_scikit_learn_counts_with_what_was_fitted(kind: str) -> None:
    fitted = SKLEARN[kind](ROWS)
    copied = pickle.loads(pickle.dumps(fitted))
    assert of(copied) == of(fitted)
    assert of(SKLEARN[kind](ROWS + ROWS**2)) != of(fitted)
    assert of(PCA(2).fit(ROWS)) != of(PCA(2, whiten=True).fit(ROWS))


def test_arrays_of_every_kind_count() -> None:
    arrays = [
        np.arange(6.0),
        np.arange(6.0).reshape(2, 3),
        np.arange(6.0, dtype=">f8"),
        np.arange(6),
        np.array(["a", "b"]),
        np.array(["a", "c"]),
        np.array(["a", ["b"]], dtype=object),
        np.array(["a", ["c"]], dtype=object),
        np.zeros(2, dtype=[("x", "f4"), ("y", "i8")]),
        np.array("2020-01-01", dtype="datetime64[D]"),
        np.empty((0, 3)),
        np.float32(1),
        np.float64(1),
    ]
    digests = [fingerprint(array) for array in arrays]
    assert len(set(digests)) == len(arrays)
    fortran = np.asfortranarray(arrays[1])
    assert fingerprint(fortran) == fingerprint(np.ascontiguousarray(fortran)) == digests[1]


def test_tensors_of_every_kind_count() -> None:
    base = torch.arange(6.0).view(2, 3)
    tensors = [
        base,
        base.bfloat16(),
        base.half(),
        base.bool(),
        base.to(torch.complex64),
        base.to(torch.complex64) * 1j,
        base.int(),
        base.view(3, 2),
        base.t(),
        torch.tensor(1.0),
        torch.empty(0, 3),
    ]
    digests = [fingerprint(tensor) for tensor in tensors]
    assert len(set(digests)) == len(tensors)
    assert fingerprint(base.t().contiguous().t()) == digests[0]
    image = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert fingerprint(image.to(memory_format=torch.channels_last)) == fingerprint(image)
    assert fingerprint(base.to_sparse()) == digests[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_count(network: Network) -> None:
    before = of(network.bfloat16())
    assert of(network.cuda()) == before


def test_large_state_is_hashed_in_parts(network: Network, monkeypatch) -> None:
    whole = of(network)
    monkeypatch.setattr("latentfit.fingerprint._CHUNK", 7)
    assert of(network) == whole


def test_what_pickle_refuses_counts_by_its_class() -> None:
    class Unpicklable:
        def __init__(self) -> None:
            self.file = io.StringIO()

        def __reduce_ex__(self, protocol: Any) -> Any:
            raise RuntimeError("no")

        def encode(self, x: Tensor) -> Tensor:
            return x

    with pytest.warns(
        LatentsWarning, match="it holds .*Unpicklable, which pickle can't keep"
    ) as told:
        one = of(Unpicklable())
    assert told[0].filename == __file__
    with pytest.warns(LatentsWarning):
        assert of(Unpicklable()) == one


def test_locks_and_generators_are_not_warned_of(recwarn) -> None:
    lock, generator = threading.Lock(), torch.Generator()
    of(lambda x: (x, lock, generator))
    assert not list(recwarn)


class Scripted(nn.Module):
    factor: float

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.factor


def quiet_script(module: nn.Module, *, freeze: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(module.eval())
        return torch.jit.freeze(scripted) if freeze else scripted


@pytest.mark.parametrize("freeze", [False, True])
def test_scripts_count_with_their_constants_and_weights(freeze: bool) -> None:
    one, same, other, shifted = (Scripted(f) for f in (2.0, 2.0, 3.0, 2.0))
    with torch.no_grad():
        shifted.linear.bias += 1
    one, same, other, shifted = (
        of(quiet_script(m, freeze=freeze)) for m in (one, same, other, shifted)
    )
    assert one == same
    assert len({one, other, shifted}) == 3


@pytest.mark.filterwarnings("ignore")  # quantisation is on its way out of torch
def test_quantised_weights_count() -> None:
    def quantised(seed: int) -> Any:
        torch.manual_seed(seed)
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 2)), {nn.Linear})

    assert of(quantised(0)) == of(quantised(0))
    assert of(quantised(0)) != of(quantised(1))


USERS = """
import torch
W = torch.ones(4)
class Holder: pass
holder = Holder()
holder.scale = 2.0
def encode(x):
    return x * W
"""
users: Any = None  # is there in the test
READERS = {
    "a tensor of the module": lambda x: users.W * x,
    "an object of the module": lambda x: users.holder.scale * x,
    "a function of the module": lambda x: users.encode(x),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_read_of_an_imported_module_counts(reader, tmp_path, monkeypatch) -> None:
    (tmp_path / "users_module.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    users = importlib.import_module("users_module")
    monkeypatch.setitem(globals(), "users", users)
    encode = READERS[reader]
    before = of(encode)
    assert of(encode) == before
    users.unread = 3  # what it does not name
    assert of(encode) == before
    if "object" in reader:
        users.holder.scale = 3.0
    else:
        users.W[0] = 2
    assert of(encode) != before
    sys.modules.pop("users_module")


def test_objects_that_are_deep_or_lead_back_count_by_their_class(network: Network) -> None:
    class Node:
        def __init__(self) -> None:
            self.following: Any = None
            self.owners: set[Any] = set()

    network.config = first = Node()
    before = of(network)
    node = first
    for _ in range(5000):
        node.following = node = Node()
    assert len(of(network)) == 64
    assert of(network) != before
    first.following = None
    first.owners.add(first)
    assert len(of(network)) == 64


def test_where_a_module_is_does_not_count(network: Network) -> None:
    prints = set()
    for device in ("cpu", "cuda:1"):
        network.gain = torch.device(device)
        prints.add(of(network))
    assert len(prints) == 1
