"""The exceptions that latentfit raises on purpose; messages say what was expected, what came, the remedy.

::

    LatentfitError
    ├── DataError (ValueError)               a dataset, latents or an array that can't be used
    │   ├── NonFiniteError                   NaN or infinity where numbers were expected
    │   └── DatasetUnavailableError          a benchmark's data is not here and can't be fetched
    ├── EncoderOutputError (TypeError)       an encoder returned something that holds no single tensor
    ├── OptionError (ValueError)             an unknown option, or a value out of its range
    ├── NotFittedError (RuntimeError)        used before it was fitted
    ├── DensityUnavailable (RuntimeError)    log_prob of a method that has no density
    ├── DecoderUnavailable (RuntimeError)    decode or generate without a decoder
    ├── DivergenceError (RuntimeError)       training left the finite numbers
    ├── FileFormatError (ValueError)         a file that is not what its reader expects
    ├── UnknownPluginError (LookupError)     no plugin of that name is installed
    ├── DuplicatePluginError (RuntimeError)  two distributions registered one name
    └── PluginLoadError (ImportError)        an installed plugin can't be imported or has the wrong type
        └── PluginVersionError               it was written for another version of the plugin API

and the warning that it gives::

    UserWarning
    └── LatentsWarning                       latents that a fit, or a decoder, makes little of
"""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentfit.sampler import LatentSampler

__all__ = [
    "DataError",
    "DatasetUnavailableError",
    "DecoderUnavailable",
    "DensityUnavailable",
    "DivergenceError",
    "DuplicatePluginError",
    "EncoderOutputError",
    "FileFormatError",
    "LatentfitError",
    "LatentsWarning",
    "NonFiniteError",
    "NotFittedError",
    "OptionError",
    "PluginLoadError",
    "PluginVersionError",
    "UnknownPluginError",
]


class LatentfitError(Exception):
    """Base class of every exception that latentfit raises on purpose."""


class LatentsWarning(UserWarning):
    """Latents of which a fit, or a decoder, makes little, or of which nobody sees whether they still hold.

    ``latentfit.diagnose`` tells more of latents.
    """


class DataError(LatentfitError, ValueError):
    """A dataset, latents or an array can't be used as they are."""


class NonFiniteError(DataError):
    """Data holds NaN or infinity."""


class DatasetUnavailableError(DataError):
    """A benchmark's data is not on this machine and can't be downloaded."""


class EncoderOutputError(LatentfitError, TypeError):
    """An encoder returned something that does not hold exactly one tensor."""


class OptionError(LatentfitError, ValueError):
    """An unknown option, or an argument of the wrong type or out of range."""


class NotFittedError(LatentfitError, RuntimeError):
    """A sampler was used before it was fitted."""


class DensityUnavailable(LatentfitError, RuntimeError):
    """The method draws samples but has no density; ``has_density`` tells beforehand."""


class DecoderUnavailable(LatentfitError, RuntimeError):
    """Decoding was asked of a sampler that was given no decoder."""


class DivergenceError(LatentfitError, RuntimeError):
    """Training left the finite numbers.

    Attributes:
        sampler: The sampler with the best finite weights seen, or None where there were none yet.
    """

    sampler: LatentSampler | None = None


class FileFormatError(LatentfitError, ValueError):
    """A file is damaged, or is not what its reader expects."""


class UnknownPluginError(LatentfitError, LookupError):
    """No installed plugin has this name."""


class DuplicatePluginError(LatentfitError, RuntimeError):
    """Two installed distributions registered a plugin under one name."""


class PluginLoadError(LatentfitError, ImportError):
    """An installed plugin can't be imported, or is not of the type its group promises.

    Attributes:
        reason: What is wrong, without the plugin's name and owner; None where the message is that already.
    """

    reason: str | None = None


class PluginVersionError(PluginLoadError):
    """An installed plugin was written for another major version of the plugin API."""


def warn_caller(message: str) -> None:
    """Warn of latents, with the line of the user's that led here: the last outside of latentfit and torch."""
    level, frame = 1, inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] in ("latentfit", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, LatentsWarning, stacklevel=level)
