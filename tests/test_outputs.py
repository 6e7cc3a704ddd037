"""What encoders return: one tensor is taken, anything else is told."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentfit.errors import EncoderOutputError, OptionError
from latentfit.outputs import check_choice, from_array, single_tensor

Z = torch.arange(6.0).view(3, 2)
Y = Z + 100
Pair = namedtuple("Pair", "z extra")
NORMAL = torch.distributions.Normal(Z, torch.ones_like(Z))


@dataclass
class Output:
    z: Any
    extra: Any = None


class Mode:
    """A posterior as diffusers' are: with no public mean."""

    def __init__(self, mean: Tensor) -> None:
        self._mean = mean

    def sample(self) -> Tensor:
        return self._mean + torch.randn_like(self._mean)

    def mode(self) -> Tensor:
        return self._mean


@pytest.mark.parametrize(
    "output",
    [
        Z,
        Z.numpy(),
        (Z,),
        [Z],
        (Z, None),
        (None, "loss", Z.numpy()),
        {"z": Z},
        {0: Z, "name": "x"},
        OrderedDict(z=Z),
        Pair(Z, None),
        Output(Z),
        NORMAL,
        Mode(Z),
        (Mode(Z),),
        {"posterior": NORMAL, "loss": None},
        Output(Mode(Z)),
    ],
)
def test_the_one_tensor_is_taken(output: object) -> None:
    assert torch.equal(single_tensor(output), Z)


@pytest.mark.parametrize(
    "output",
    [
        {"latents": Y, "latent_dist": Mode(Z)},
        {"other": Y, "latents": Z},
        {"latent": Z, "embedding": Y, "latents": None},
        {"log_covariance": Y, "embedding": Z},
        {"last_hidden_state": Y, "pooler_output": Z},
        {"hidden_states": (Y, Y), "last_hidden_state": Z, "mask": Y},
        namedtuple("Encoded", "mask latents")(Y, Z),
    ],
)
def test_among_several_a_name_of_the_libraries_is_taken(output: object) -> None:
    assert torch.equal(single_tensor(output), Z)


@pytest.mark.parametrize(
    "output", [{"commit_loss": Y, "sample": Z}, {"reconstruction": Z, "z": Y, "latents": Y}]
)
def test_decoders_have_names_of_their_own(output: object) -> None:
    assert torch.equal(single_tensor(output, role="decoder"), Z)


NESTED = {"a": {"b": Z, "c.d": Y}, "a.b": Y, "list": [Y, (Z,)], "object": Output(Z, extra=Y)}
LONG = torch.zeros(3, 2)


@pytest.mark.parametrize(
    "output, choice",
    [
        ((Z, Y), 0),
        ((Y, Z), 1),
        ([Y, Z], -1),
        (Pair(Y, Z), 1),
        (Pair(Y, Z), "extra"),
        ({"x": Y, "z": Z}, 1),
        ({5: Y, 0: Y, 1: Z}, 1),
        ((Y, Mode(Z)), 1),
        ((Y, {"latents": Z, "other": Y}), 1),
        ({"mu": Z, "logvar": Y}, "mu"),
        ({"mean": Z, "other": Y}, "mean"),
        ({"sample": Z, "other": Y}, "sample"),
        (NESTED, "list.1"),
        (NESTED, "list.1.0"),
        (NESTED, "object.z"),
        (Output(Y, extra=Z), "extra"),
        ((Y, Y), lambda pair: pair[0] - 100),
        ((Y, Y), lambda pair: {"latents": Z, "loss": Y}),
        (Y, lambda tensor: tensor - 100),
        ((Z, Y), "mean"),
        ([Z, Y], "mean"),
        ({"log_var": Y, "mu": Z}, "mean"),
        ((Mode(Z),), "mean"),
        (Mode(Z), "mean"),
        (NORMAL, "mean"),
        (NORMAL, "loc"),
    ],
)
def test_a_choice_is_followed(output: object, choice: Any) -> None:
    assert torch.equal(single_tensor(output, choice=check_choice(choice)), Z)


def test_a_key_with_dots_is_no_path() -> None:
    assert torch.equal(single_tensor(NESTED, choice="a.b"), Y)


@pytest.mark.parametrize(
    "output",
    [
        (Z, LONG + 2),
        {"mu": Z, "logvar": LONG + 2},
        {"loc": Z, "log_variance": LONG + 2},
        torch.distributions.Normal(Z, LONG + torch.e),
        (torch.distributions.Normal(Z, LONG + torch.e),),
    ],
)
def test_a_sample_has_the_posteriors_mean_and_deviation(output: object) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = torch.stack([single_tensor(output, choice="sample") for _ in range(2000)])
    scores = (draws - Z) / torch.e  # the log-variance is 2
    assert abs(float(scores.mean())) < 5 / scores.numel() ** 0.5
    assert abs(float(scores.std()) - 1) < 5 / (2 * scores.numel()) ** 0.5


@pytest.mark.parametrize(
    "output, choice, told",
    [
        (Z, "mean", r"something with 'mean', .*got Tensor \(3, 2\).*Leave output= out"),
        (Z, "sample", "something with 'sample'"),
        (Z, 0, r"with a member 0, .*got Tensor \(3, 2\) torch.float32. Leave output= out"),
        (Z, "T", "something with 'T'"),
        ((Z, Y[:2]), "mean", "something with 'mean'"),
        ((Z, Y), 2, r"a member 2, .*a?tuple with 2 members \(0: Tensor .*Choose another"),
        ((Z, Y), -3, "a member -3"),
        ((Z, Y), "mu", "'mu', for output='mu'; got tuple, which holds 0: Tensor"),
        (
            {"a": Z, "b": Y},
            "c",
            r"got dict, which holds 'a': Tensor \(3, 2\) .*and none of that name",
        ),
        ({"a": Z, "b": Y}, "keys", "a method of that name"),
        ({"a": {"b": Z}}, "a.c", r"with 'c', for output='a.c'; got dict, which holds 'b': Tensor"),
        ({"a": Z}, "a.b", "with 'b', for output='a.b'; got Tensor .*End the path before it"),
        (Mode(Z), "mode", "a method of that name"),
        (Mode(Z), 0, "got Mode"),
        ((Z, Y), lambda pair: pair, "exactly one tensor; got a tuple with 2 of them"),
        ((Z, Y), lambda pair: None, "got NoneType"),
    ],
)
def test_a_choice_that_is_not_there_is_told_with_what_is(
    output: object, choice: Any, told: str
) -> None:
    with pytest.raises(EncoderOutputError, match=told):
        single_tensor(output, choice=check_choice(choice))


@pytest.mark.parametrize("choice", ["", True, 1.5, None, ["a"], ("a", 0), dict, b"a"])
def test_what_is_no_choice_is_refused(choice: Any) -> None:
    if choice is None:
        assert check_choice(choice) is None
        return
    with pytest.raises(OptionError, match="Expected output as 'mean', 'sample', a key"):
        check_choice(choice)


@pytest.mark.parametrize(
    "output, remedy",
    [
        ((Z, Y), "Choose with output=0 or output=1 or output='mean' or output='sample'."),
        ((Z, Y[:2]), "Choose with output=0 or output=1."),
        ({"z": Z, "x": Y}, "Choose with output='z' or output='x'."),
        ({"mu": Z, "logvar": Y}, "or output='logvar' or output='mean' or output='sample'."),
        ((NORMAL, NORMAL), "Choose with output=0 or output=1."),
        ({"a": 1}, "Choose with output=lambda returned: ..."),
    ],
)
def test_the_remedy_is_one(output: object, remedy: str) -> None:
    with pytest.raises(EncoderOutputError) as told:
        single_tensor(output)
    assert remedy in str(told.value)


def test_a_decoders_remedy_is_to_wrap_it() -> None:
    with pytest.raises(EncoderOutputError, match=r"Wrap it to choose: decoder=lambda z: decoder"):
        single_tensor((Z, Y), role="decoder")


def test_a_distribution_without_a_closed_mean_is_told() -> None:
    skewed = torch.distributions.TransformedDistribution(
        NORMAL, [torch.distributions.SigmoidTransform()]
    )
    for choice in (None, "mean"):
        with pytest.raises(
            EncoderOutputError, match="whose mean .* got NoneType. .*output='sample'"
        ):
            single_tensor(skewed, choice=choice)
    with torch.random.fork_rng(devices=[]):
        assert single_tensor(skewed, choice="sample").shape == Z.shape


@pytest.mark.parametrize(
    "output, seen",
    [
        ((Z, Z), r"tuple with 2 of them \(0: Tensor \(3, 2\) torch.float32, 1: Tensor"),
        ([], r"list with 0 of them \(empty\)"),
        ({"mu": Z, "logvar": Z.numpy()}, r"'mu': Tensor \(3, 2\) .* 'logvar': ndarray \(3, 2\)"),
        ({"a": 1, "b": None}, r"dict with 0 of them \('a': int, 'b': NoneType\)"),
        ((Pair(Z, None),), r"tuple with 0 of them \(0: Pair\)"),
        (None, "got NoneType"),
        (3.0, "got float"),
        (np.float64(3), "got float64"),
        ("text", "got str"),
    ],
)
def test_anything_else_is_told_as_it_was_seen(output: object, seen: str) -> None:
    with pytest.raises(EncoderOutputError, match=seen):
        single_tensor(output)


def test_the_role_is_named() -> None:
    with pytest.raises(EncoderOutputError, match="Expected the decoder"):
        single_tensor(None, role="decoder")


@pytest.mark.parametrize("dtype", [object, "U3", "datetime64[s]", [("a", "f4")]])
def test_arrays_without_numbers_are_refused(dtype: object) -> None:
    with pytest.raises(EncoderOutputError, match="array of numbers"):
        single_tensor(np.zeros(3, dtype=dtype))


def read_only() -> np.ndarray:
    array = Z.numpy().copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "array",
    [
        read_only(),
        Z.numpy()[::-1][::-1],
        np.asfortranarray(Z.numpy()),
        Z.numpy().astype(">f4"),
        np.lib.stride_tricks.as_strided(np.arange(6, dtype="f4"), (3, 2), (8, 4)),
    ],
    ids=["read-only", "reversed", "fortran", "big-endian", "strided"],
)
def test_memory_that_tensors_cannot_share_is_copied(array: np.ndarray) -> None:
    assert torch.equal(from_array(array), Z)


def test_a_scalar_array_stays_a_scalar() -> None:
    assert from_array(np.array(3.0)).shape == ()


@pytest.mark.parametrize("choice", ["a", 0])
def test_the_remedy_within_a_choice_is_a_path(choice: Any) -> None:
    returned = {"a": {"mu": Z, "x": Y}, "b": Z}
    at = "a" if choice == "a" else "0"
    with pytest.raises(
        EncoderOutputError, match=f"Choose with output='{at}.mu' or output='{at}.x'"
    ):
        single_tensor(returned if choice == "a" else (returned["a"], Z), choice=choice)
    assert single_tensor((returned["a"], Z), choice="0.mu") is Z
    assert single_tensor(returned, choice="a.mu") is Z


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_quantized_tensors_become_plain() -> None:
    quantized = torch.quantize_per_tensor(Z, 0.5, 0, torch.qint8)
    assert torch.equal(single_tensor(quantized), Z)
    assert torch.equal(single_tensor({"z": quantized}), Z)


@pytest.mark.parametrize(
    "output, remedy",
    [
        ([[Z, Y], [Z]], r"torch\.stack\(returned\[0\]\) of tensors in a list in a list"),
        ([[1.0, 2.0]], r"torch\.tensor\(returned\) of lists of numbers"),
        (list(torch.zeros(20, 2)), r"of a list of rows with output=torch\.stack"),
    ],
)
def test_lists_of_lists_and_rows_are_told_how_to_become_a_tensor(output: Any, remedy: str) -> None:
    with pytest.raises(EncoderOutputError, match=remedy):
        single_tensor(output)


def test_the_remedies_for_lists_do_what_they_say() -> None:
    assert torch.equal(single_tensor(list(Z), choice=torch.stack), Z)
    assert torch.equal(single_tensor([list(Z)], choice=lambda found: torch.stack(found[0])), Z)


def test_a_posterior_without_a_mean_is_told() -> None:
    cauchy = torch.distributions.Cauchy(Z, torch.ones_like(Z))
    with pytest.raises(
        EncoderOutputError, match="got Cauchy, whose mean is NaN.*'mode' or .*'sample'"
    ):
        single_tensor(cauchy)
    assert torch.equal(single_tensor(cauchy, choice="mode"), Z)
    assert single_tensor(cauchy, choice="sample").shape == Z.shape


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_told_how_to_become_plain(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([Z, Y[:2]], layout=layout)
    with pytest.raises(EncoderOutputError, match="nested one.*to_padded_tensor"):
        single_tensor(nested)
    padded = single_tensor(nested, choice=lambda found: torch.nested.to_padded_tensor(found, 0.0))
    assert padded.shape == (2, 3, 2)
