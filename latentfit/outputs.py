"""From what an encoder or decoder returns to one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.arguments import scalar, told
from latentfit.errors import DataError, EncoderOutputError, OptionError

__all__ = ["Choice", "as_array", "check_choice", "from_array", "single_tensor"]

Choice = str | int | Callable[[Any], Any] | None
"""What ``output=`` takes: "mean", "sample", a key or attribute path, an index, a callable, or nothing."""

# Where nothing is chosen, the first of these that is there is taken, and otherwise the only tensor. They are
# what diffusers (latent_dist, latents, latent), pythae (embedding) and transformers call their latents.
_LATENTS = ("latent_dist", "latents", "latent", "embedding", "pooler_output", "last_hidden_state")
# The same for decoders: diffusers (sample) and pythae (reconstruction).
_IMAGES = ("sample", "reconstruction")
# What the two halves of a Gaussian posterior are called, where they come by name.
_MEANS = ("mean", "mu", "loc", "embedding")
_MOST_NAMED = 8  # members or choices, in a message
_LOG_VARIANCES = ("logvar", "log_var", "log_variance", "log_covariance")


def single_tensor(output: Any, *, role: str = "encoder", choice: Choice = None) -> Tensor:
    """Take the one tensor that is meant out of what an encoder or a decoder returned.

    Without a choice that is a tensor or an array itself; the mean of a posterior (an object with ``sample()``
    and ``mode()`` or ``mean``); in a tuple, list, dict or object, the first of the names in this module's
    table; or the only one that it holds.

    Args:
        output: What was returned.
        role: Who returned it: "encoder", "decoder" or "feature extractor".
        choice: "mean" or "sample" of a posterior (or of a pair of mean and log-variance), a key or attribute
            path ("a.b"), an index, or a callable that is given all that was returned.

    Raises:
        EncoderOutputError: There is no such tensor, or more than one and no choice; the message lists what
            was seen and tells how to choose.
    """
    if choice is None:
        return _default(output, role)
    if isinstance(choice, int):
        return _default(_at(output, choice, role), role, f"{choice}.")
    if isinstance(choice, str):
        if choice in ("mean", "sample"):
            found = _of_posterior(output, choice)
            if found is not None:
                return found
        return _default(_follow(output, choice, role), role, f"{choice}.")
    return _default(choice(output), role)


def check_choice(choice: Any) -> Choice:
    """Check what a user gave as ``output=``.

    Raises:
        OptionError: It is none of the kinds that there are.
    """
    given, choice = choice, scalar(choice)
    valid = choice is None or callable(choice) or isinstance(choice, int | str)
    if not valid or isinstance(choice, bool | type) or choice == "":
        raise OptionError(
            "Expected output as 'mean', 'sample', a key or attribute path such as 'latent_dist.mean', an "
            f"index, a callable or None; got {told(given)}."
        )
    return choice  # type: ignore[no-any-return]


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """Give anything array-like as an array.

    Raises:
        DataError: A masked array with masked values, which would be taken for numbers.
    """
    if np.ma.is_masked(value):
        count = int(np.ma.getmaskarray(value).sum())
        raise DataError(
            f"Expected an array with no value masked; got {count} that are. Leave these rows out."
        )
    return np.asarray(value)


def from_array(array: np.ndarray[Any, Any]) -> Tensor:
    """Give an array as a tensor; copies what tensors can't share: read-only, strided or byte-swapped memory.

    Raises:
        TypeError: torch has no such dtype.
    """
    native = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(array, native, ["C", "W", "E"]))


def _default(output: Any, role: str, within: str = "") -> Tensor:
    """Take the tensor that is meant where nobody chose, or in what is at a chosen path."""
    if isinstance(output, Tensor | np.ndarray) or _is_sparse(output):
        return _tensor(output)
    if _is_posterior(output):
        return _moment(output, "mean")
    members = _members(output)
    usable = {name: value for name, value in members.items() if _is_usable(value)}
    names = [name for name in (_IMAGES if role == "decoder" else _LATENTS) if name in usable]
    if not names and len(usable) == 1:
        names = list(usable)
    if names:
        return _default(usable[names[0]], role, within)
    if not members and not isinstance(output, Mapping | tuple | list):
        raise EncoderOutputError(
            f"Expected the {role} to return a tensor, an array, a posterior, or a tuple, list, dict or "
            f"object that holds exactly one; got {_describe(output)}. {_remedy(role, {}, within)}"
        )
    raise EncoderOutputError(
        f"Expected the {role} to return exactly one tensor; got a {type(output).__name__} with "
        f"{len(usable)} of them ({_listed(members)}). {_remedy(role, usable, within, output)}"
    )


def _remedy(role: str, usable: Mapping[Any, Any], within: str, output: Any = None) -> str:
    if role == "decoder":
        return "Wrap it to choose: decoder=lambda z: decoder(z)[...]"
    if role == "feature extractor":
        return "Wrap it to choose: features=lambda x: extractor(x)[...]"
    if isinstance(output, list) and len(usable) == len(output) > _MOST_NAMED and not within:
        return "Choose with output=0, or of a list of rows with output=torch.stack."
    if isinstance(output, list | tuple) and output and not usable:
        return (
            "Choose with output=lambda returned: ..., which gives the tensor: torch.tensor(returned) of "
            "lists of numbers, torch.stack(returned[0]) of tensors in a list in a list."
        )
    if not usable:
        return "Choose with output=lambda returned: ..., which gives the tensor."
    choices = [f"output={f'{within}{name}' if within else name!r}" for name in usable]
    if within.startswith("-") or within.count(".") > 1:  # no path that could be followed
        return "Choose with output=lambda returned: ..., which gives the tensor."
    if not within and _gaussian(usable) is not None:
        choices += ["output='mean'", "output='sample'"]
    named = list(dict.fromkeys(choices))
    more = " or ..." if len(named) > _MOST_NAMED else ""
    return f"Choose with {' or '.join(named[:_MOST_NAMED])}{more}."


def _of_posterior(output: Any, moment: str) -> Tensor | None:
    """Compute the mean or a sample of the one posterior in an output; None if there is none."""
    if _is_posterior(output):
        return _moment(output, moment)
    members = {} if isinstance(output, Tensor | np.ndarray) else _members(output)
    posteriors = [value for value in members.values() if _is_posterior(value)]
    if len(posteriors) == 1:
        return _moment(posteriors[0], moment)
    pair = _gaussian(members)
    if pair is None:
        return None
    mean, log_variance = pair
    if moment == "mean":
        return mean
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)


def _is_posterior(value: Any) -> bool:
    return not isinstance(value, Tensor | np.ndarray | Mapping) and callable(
        getattr(value, "sample", None)
    )


def _moment(posterior: Any, moment: str) -> Tensor:
    """Take the mean or a sample; the mode of a Gaussian is its mean, and some in diffusers have no other."""
    if moment == "sample":
        return _tensor(posterior.sample())
    mode = _attribute(posterior, "mode")
    mean = _tensor(mode() if callable(mode) else _attribute(posterior, "mean"))
    if isinstance(posterior, torch.distributions.Distribution) and bool(mean.isnan().all()):
        raise EncoderOutputError(
            f"Expected a posterior with a mean; got {type(posterior).__name__}, whose mean is NaN. Choose "
            "with output='mode' or output='sample'."
        )
    return mean


def _gaussian(members: Mapping[Any, Any]) -> tuple[Tensor, Tensor] | None:
    """Find a mean and a log-variance of one shape: by name, or a tuple's or list's only two members."""
    if list(members) == [0, 1]:
        pair = (members[0], members[1])
    else:
        mean = next((members[name] for name in _MEANS if name in members), None)
        pair = (mean, next((members[name] for name in _LOG_VARIANCES if name in members), None))
    mean, log_variance = pair
    if not isinstance(mean, Tensor) or not isinstance(log_variance, Tensor):
        return None
    return (mean, log_variance) if mean.shape == log_variance.shape else None


def _members(output: Any) -> dict[Any, Any]:
    """What an output holds, by key, index or public attribute."""
    if isinstance(output, Mapping):
        return dict(output.items())
    if isinstance(output, tuple | list):
        return dict(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    return {k: v for k, v in getattr(output, "__dict__", {}).items() if not k.startswith("_")}


def _follow(output: Any, path: str, role: str) -> Any:
    """Follow a path of keys, indices and attributes."""
    whole = isinstance(output, Mapping) and path in output  # a key may hold dots
    value = output
    for step in [path] if whole else path.split("."):
        members = {} if isinstance(value, Tensor | np.ndarray) else _members(value)
        if step in members:
            value = members[step]
        elif step.isdecimal() and int(step) in members:
            value = members[int(step)]
        else:
            found = None if isinstance(value, Tensor | np.ndarray) else _attribute(value, step)
            if found is None or (callable(found) and not _is_usable(found)):
                kind = "a method" if callable(found) else "none"
                holds = f", which holds {_listed(members)}" if members else ""
                remedy = "Choose one that is there, or a callable"
                if not members:
                    remedy = "Leave output= out" if value is output else "End the path before it"
                raise EncoderOutputError(
                    f"Expected the {role} to return something with {told(step)}, for output={told(path)}; "
                    f"got {_describe(value)}{holds}, and {kind} of that name. {remedy}."
                )
            value = found
    return value


def _at(output: Any, index: int, role: str) -> Any:
    """Take the member at an index (or under a whole number as a key)."""
    members = {} if isinstance(output, Tensor | np.ndarray) else _members(output)
    if index in members:
        return members[index]
    if isinstance(output, Mapping | Sequence) and -len(members) <= index < len(members):
        return list(members.values())[index]
    holds = f" with {len(members)} members ({_listed(members)})" if members else ""
    raise EncoderOutputError(
        f"Expected the {role} to return a tuple, list or dict with a member {told(index)}, for "
        f"output={told(index)}; got {_describe(output)}{holds}. "
        f"{'Choose another.' if members else 'Leave output= out.'}"
    )


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except NotImplementedError:  # some of torch's distributions have no closed mean
        return None


def _is_usable(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) or _is_sparse(value) or _is_posterior(value)


def _is_sparse(value: Any) -> bool:
    """Whether it is one of SciPy's matrices, which some of scikit-learn's transformers return."""
    return callable(getattr(value, "toarray", None))


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        if value.is_nested:
            raise EncoderOutputError(
                "Expected a tensor with rows of one shape; got a nested one. Choose with output=lambda "
                "returned: torch.nested.to_padded_tensor(returned, 0.0)."
            )
        plain = value.dequantize() if value.is_quantized else value
        return plain if plain.layout == torch.strided else plain.to_dense()
    if _is_sparse(value):
        value = value.toarray()
    if not isinstance(value, np.ndarray):
        raise EncoderOutputError(
            f"Expected a posterior whose mean and samples are tensors; got {_describe(value)}. Choose with "
            "output='sample' or output=lambda returned: ..."
        )
    try:
        return from_array(as_array(value))
    except TypeError:
        raise EncoderOutputError(
            f"Expected an array of numbers; got one of dtype {value.dtype}."
        ) from None


def _listed(members: Mapping[Any, Any]) -> str:
    listed = [f"{key!r}: {_describe(value)}" for key, value in members.items()]
    more = ["..."] if len(listed) > _MOST_NAMED else []
    return ", ".join(listed[:_MOST_NAMED] + more) or "empty"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {tuple(value.shape)} {value.dtype}"
    return type(value).__name__
