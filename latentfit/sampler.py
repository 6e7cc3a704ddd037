"""LatentSampler: what a user holds after a fit, and gets back from a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentfit.arguments import check_path, check_whole, reason, told
from latentfit.condition import Condition
from latentfit.custom import probe_of
from latentfit.encoding import check_finite
from latentfit.errors import (
    DataError,
    DecoderUnavailable,
    DensityUnavailable,
    FileFormatError,
    LatentfitError,
    NonFiniteError,
    OptionError,
)
from latentfit.models import Model, rows_with_nan, warn_of_nan
from latentfit.outputs import as_array, from_array
from latentfit.persistence import check_target, write_tensors
from latentfit.randomness import check_seed, isolated_rng, plugin_defaults
from latentfit.sampler_base import Sampler
from latentfit.transforms import Transform

if TYPE_CHECKING:
    from latentfit.reporting import Report

__all__ = ["DTYPES", "LatentSampler", "resolve_device"]

_CHUNK = 8192  # rows that a plugin sees at once; bounds the memory of large draws
_FAR = 1e15  # rows whose squares leave float32's range have no density that it could hold
_UNSTABLE = "the fit is unstable: fit again with a lower learning_rate"
DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float64, torch.float16)}
DTYPES["bfloat16"] = torch.bfloat16


class LatentSampler:
    r"""A distribution over an encoder's latents: draws them, scores them, and can be saved.

    Made by :func:`latentfit.fit_latent_sampler` and :func:`latentfit.load_sampler`. Latents have the shape
    (n, \*shape), the dtype and the units of the encoder's own.

    Attributes:
        history: The training curves: lists of equal length by name, with "step" among them. Losses of
            methods with a density are in nats per standardised latent.
        info: What was fitted, how and on what: method, options, shape, dim, dtype, n (rows trained on),
            n_validation, seconds, seed, encoder (its class, output and autocast), transform,
            constant_dimensions, parameters, condition, versions, under "fit" what the method tells of its
            fit, and "transform_class" of a "custom" transform.
    """

    def __init__(
        self,
        plugin: Sampler,
        transform: Transform,
        *,
        info: dict[str, Any],
        history: dict[str, list[float]],
        device: torch.device,
        decoder: Model | None = None,
        condition: Condition | None = None,
        file: str | None = None,
    ) -> None:
        self._file = file  # that it was loaded from
        self._plugin = plugin.requires_grad_(False).eval()
        plugin.zero_grad(set_to_none=True)  # the training's last gradients
        self._transform = transform
        self._decoder = decoder
        self._condition = condition
        self._device = device
        self.info = info
        self.history = history

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.info["method"])

    @property
    def options(self) -> dict[str, Any]:
        """All options of the method, defaults included."""
        return dict(self.info["options"])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one latent."""
        return tuple(self.info["shape"])

    @property
    def dim(self) -> int:
        """The number of values in one latent."""
        return int(self.info["dim"])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the latents that are drawn: the encoder's."""
        return DTYPES[self.info["dtype"]]

    @property
    def device(self) -> torch.device:
        """Where latents are drawn and scored."""
        return self._device

    @property
    def has_density(self) -> bool:
        """Whether :meth:`log_prob` works."""
        return type(self._plugin).has_density

    def to(self, device: str | torch.device) -> LatentSampler:
        """Move to a device, and return itself."""
        self._device = resolve_device(device)
        self._plugin.to(self._device)
        return self

    def sample(self, n: int, *, seed: int | None = None, condition: Any = None) -> Tensor:
        r"""Draw latents.

        Args:
            n: How many, a whole number >= 0.
            seed: A whole number for the same latents each time, on the same kind of device; None for new
                ones. The global random state is neither used nor changed.
            condition: For a sampler that was fitted with one: a class (a whole number) or one for each
                latent (n,); or a vector (C,) or one for each (n, C).

        Returns:
            Latents (n, \*shape).

        Raises:
            OptionError: n or seed is not such a number, n latents do not fit in memory, or a condition
                that is missing, unknown or not wanted.
            NonFiniteError: The fitted method drew NaN or infinity.
            FileFormatError: It was loaded from a file whose numbers the method can't use.
        """
        n, seed = check_whole("n", n, 0), check_seed(seed)
        rows = self._empty_rows(n)
        context = self._context(condition, n)
        with (
            isolated_rng(seed, self.device) as generator,
            plugin_defaults(self.device),
            torch.no_grad(),
            self._blaming_the_file(),
        ):
            for part, given in _chunks(rows, context):
                drawn = self._plugin.sample(len(part), generator, *given)
                part.copy_(drawn.reshape(part.shape))  # copy_ alone would broadcast
        check_finite(rows, "samples", _UNSTABLE)
        return self._transform.inverse(rows, self.dtype).view(n, *self.shape)

    def log_prob(self, z: Tensor | np.ndarray[Any, Any], *, condition: Any = None) -> Tensor:
        r"""Compute the exact log density of latents, differentiable in z.

        Where dimensions are constant in the data, the density is over the others, and minus infinity for
        a latent that departs from the constants.

        Args:
            z: Latents (n, \*shape) in the encoder's units.
            condition: For a sampler that was fitted with one: what the density is conditioned on, one for
                all or one for each latent, as in :meth:`sample`.

        Returns:
            (n,) float32, in nats, in the encoder's units (the transform's determinant is included).

        Raises:
            DensityUnavailable: The method has no density; ``has_density`` tells beforehand.
            DataError: z has another shape.
            NonFiniteError: z holds NaN or infinity, or the fitted method's density is no number.
            OptionError: A condition that is missing, unknown or not wanted.
            FileFormatError: It was loaded from a file whose numbers the method can't use.
        """
        if not self.has_density:
            raise DensityUnavailable(
                f"{self.method!r} draws samples but has no density; choose a method with has_density."
            )
        latents = self._latents(z)
        context = self._context(condition, len(latents))
        if not len(latents):
            return torch.zeros(0, dtype=torch.float32, device=self.device)
        parts = []
        with plugin_defaults(self.device), self._blaming_the_file():
            for part, given in _chunks(latents.reshape(len(latents), self.dim), context):
                rows = self._transform.forward(part)
                far = ~(rows.detach().abs().amax(1) < _FAR)  # or no longer finite
                near = torch.where(far[:, None], torch.zeros_like(rows), rows)
                scores = self._plugin.log_prob(near, *given) + self._transform.log_determinant(part)
                parts.append(scores.masked_fill(far, -torch.inf))
        scores = torch.cat(parts)
        _check_scores(scores.detach())
        return scores

    def score_samples(self, z: Tensor | np.ndarray[Any, Any], *, condition: Any = None) -> Tensor:
        """Do what :meth:`log_prob` does; scikit-learn's name for it."""
        return self.log_prob(z, condition=condition)

    @contextmanager
    def _blaming_the_file(self) -> Iterator[None]:
        """Tell of the file, if it was loaded from one, where its method fails: the numbers are the file's."""
        try:
            yield
        except (LatentfitError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if self._file is None:
                raise
            raise FileFormatError(
                f"{self._file}: expected numbers that {self.method!r} can use; {type(error).__name__}: "
                f"{reason(error)}."
            ) from error

    def decode(self, z: Tensor | np.ndarray[Any, Any]) -> Tensor:
        r"""Decode latents (n, \*shape) with the decoder, in eval mode; differentiable in z.

        Raises:
            DecoderUnavailable: None was given.
            DataError: z has another shape.

        Warns:
            LatentsWarning: The decoder made NaN of some; they are returned as they are.
        """
        if self._decoder is None:
            raise DecoderUnavailable(
                "This sampler has no decoder; pass decoder= to fit_latent_sampler or load_sampler."
            )
        latents = self._latents(z)
        if not len(latents):  # some decoders can't take none: decode one to learn the shape
            return self._decoder.in_parts(latents.new_zeros(1, *self.shape), 1)[:0]
        decoded = self._decoder.in_parts(latents, int(self.info["batch_size"]))
        warn_of_nan(rows_with_nan(decoded), len(decoded))
        return decoded

    def generate(self, n: int, *, seed: int | None = None, condition: Any = None) -> Tensor:
        """Draw n latents, as :meth:`sample` does, and decode them.

        The seed counts for a decoder that draws, too.

        Raises:
            DecoderUnavailable: No decoder was given.
        """
        if self._decoder is None:
            return self.decode(torch.empty(0, *self.shape))  # raises, before anything is drawn
        seed = check_seed(seed)
        z = self.sample(n, seed=seed, condition=condition)
        device = self._decoder.device or self.device
        with isolated_rng(seed ^ 1, device), torch.no_grad():  # not the noise that made z
            return self.decode(z)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to one safetensors file, atomically; the decoder is not saved.

        Raises:
            OptionError: It is no path.
            OSError: The file can't be written; what was there before is unchanged.
        """
        write_tensors(check_path("path", path), *self._content())

    def _content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file has of it: tensors and a header, as write_tensors takes them."""
        tensors = {f"sampler.{k}": v for k, v in self._plugin.state_dict().items()}
        tensors |= {f"transform.{k}": v for k, v in self._transform.state().items()}
        if self.info["transform"] == Transform.name:
            tensors |= {f"probe.{k}": v for k, v in probe_of(self._transform).items()}
        if self._condition is not None:
            tensors |= {f"condition.{k}": v for k, v in self._condition.state().items()}
        return tensors, {"info": self.info, "history": self.history}

    def save_pretrained(
        self,
        directory: str | os.PathLike[str],
        **card: Any,
    ) -> Path:
        """Write the sampler and a model card to a folder, which is made.

        Args:
            directory: The folder; it gets ``sampler.safetensors``, and ``README.md`` unless it has one and
                nothing is told here.
            **card: What the card tells beyond ``info``: ``encoder``, ``dataset`` and ``license``, texts (the
                hub's names, if they have one), and ``metrics``, a dict of numbers by name.

        Raises:
            OptionError: Something that the card can't tell, or no path.
            OSError: The folder can't be written.
        """
        from latentfit.hub import save_pretrained

        return save_pretrained(self, directory, **card)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        decoder: Any = None,
        transform: Transform | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> LatentSampler:
        """Load what :meth:`save_pretrained` or :meth:`push_to_hub` wrote.

        Nothing that is loaded is run: see :func:`latentfit.load_sampler`.

        Args:
            source: A folder, or a repository of the Hugging Face hub as "user/name".
            device: Where to put it; None means the CPU.
            decoder: As for :func:`latentfit.load_sampler`.
            transform: As for :func:`latentfit.load_sampler`.
            revision: The repository's branch, tag or commit.
            token: For private repositories; None means what ``hf auth login`` stored.
            cache_dir: Where downloads are kept; None means the hub's own cache.
            local_files_only: Whether to take what was downloaded before, and ask nobody.

        Raises:
            OptionError: An argument that does not fit.
            ImportError: It is not a folder, and huggingface_hub is not installed.
            FileFormatError: There is no such sampler, or it is damaged.
            OSError: The source is not there, or can't be read.
        """
        from latentfit.hub import from_pretrained

        return from_pretrained(
            source,
            device=device,
            decoder=decoder,
            transform=transform,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a sampler",
        **card: Any,
    ) -> str:
        """Upload the sampler and a model card to the Hugging Face hub.

        Args:
            repo_id: The repository, "user/name"; it is made if it is not there.
            private: Whether a new one is private; None means the account's default.
            token: None means what ``hf auth login`` stored.
            revision: The branch.
            commit_message: Of the commit.
            **card: As for :meth:`save_pretrained`.

        Returns:
            The commit's address.

        Raises:
            ImportError: huggingface_hub is not installed.
            OptionError: Something that the card can't tell, or an argument that does not fit.
        """
        from latentfit.hub import push_to_hub

        return push_to_hub(
            self,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            **card,
        )

    def report(
        self,
        path: str | os.PathLike[str],
        encoder: Any,
        dataset: Any,
        *,
        decoder: Any = None,
        output: Any = None,
        features: Any = None,
        labels: Any = None,
        n: int = 1000,
        seed: int | None = 0,
    ) -> Report:
        r"""Write a page of HTML on what it draws: beside real data, reconstructions and latents drawn again.

        The page has the measures, images, a map of the latents, training curves and the data nearest to the
        samples; it is one file that loads nothing. Several samplers are compared by
        :func:`latentfit.reporting.evaluate`.

        Args:
            path: The .html file to write.
            encoder: As for :func:`latentfit.fit_latent_sampler`; None if the dataset holds latents.
            dataset: As for :func:`latentfit.fit_latent_sampler`; best what it was not fitted to.
            decoder: As for :func:`latentfit.load_sampler`; None takes its own. Without any there are no
                images.
            output: What to take of what the encoder returns; None takes what it was fitted to.
            features: A callable that makes features (n, d) of images (n, ...), for the Fréchet distance of
                images; None leaves that of latents.
            labels: Classes of the dataset's rows (N,), whole numbers; None takes the dataset's, if it has
                any.
            n: How many images and latents are compared, a whole number >= 16; at most half of the data.
            seed: Of the choice of rows and of all draws, a whole number; None for a new one.

        Returns:
            What the page shows.

        Raises:
            OptionError: An argument that does not fit.
            DataError: A path that is not one of an .html file in a folder that is there; a dataset that can't
                be used, or of less than 32 rows; labels that do not fit.
            NonFiniteError: NaN or infinity.
            EncoderOutputError: The encoder, the decoder or the features are no single tensor with a row each.
            OSError: The file can't be written.

        Warns:
            LatentsWarning: The decoder made NaN of some latents.
        """
        from latentfit.reporting import evaluate, write_report
        from latentfit.reporting._page import PAGES

        target = check_target(path, suffixes=PAGES)  # before the work
        report = evaluate(
            {self.method: self},
            encoder,
            dataset,
            decoder=decoder,
            output=output,
            features=features,
            labels=labels,
            n=n,
            seed=seed,
        )
        write_report(target, report)
        return report

    def _context(self, condition: Any, n: int) -> Tensor | None:
        """Turn the user's condition into n contexts on the device."""
        if self._condition is None:
            if condition is not None:
                raise OptionError(
                    f"Expected no condition, as this sampler was fitted without one; got {told(condition)}. "
                    "Fit with condition='labels'."
                )
            return None
        if condition is None:
            raise OptionError(
                f"Expected a condition, as this sampler was fitted with one: {self._condition.expected(n)}; "
                "got None."
            )
        return self._condition.encode(condition, n).to(self.device)

    def _empty_rows(self, n: int) -> Tensor:
        """Allocate for n rows at once, so that too many are refused before any is drawn."""
        try:
            return torch.empty(n, self._transform.dim, dtype=torch.float32, device=self.device)
        except (RuntimeError, TypeError, OverflowError) as error:
            raise OptionError(
                f"Expected n latents of {self.dim} values to fit in memory; got n={told(n)}. Draw fewer at a "
                "time."
            ) from error

    def _latents(self, z: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """Check latents and put them on the device."""
        try:
            latents = z if isinstance(z, Tensor) else from_array(as_array(z))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"Expected latents as a tensor or an array for z; got {told(z)} ({reason(error)})."
            ) from error
        if latents.ndim != len(self.shape) + 1 or tuple(latents.shape[1:]) != self.shape:
            raise DataError(
                f"Expected z as latents of shape (n, {', '.join(map(str, self.shape))}); "
                f"got {tuple(latents.shape)}{'' if latents.ndim else f', {told(z)}'}."
            )
        if latents.layout != torch.strided:
            raise DataError(
                f"Expected dense latents; got {latents.layout} for z. Use z.to_dense()."
            )
        if latents.is_complex():
            raise DataError(f"Expected real latents; got {latents.dtype} for z.")
        if not latents.is_floating_point():
            latents = latents.float()
        check_finite(latents.detach(), "latents in z", "leave these rows out")
        return latents.to(self.device)

    def __repr__(self) -> str:
        info = self.info
        chosen = ", ".join(f"{k}={v!r}" for k, v in info["options"].items())
        rows = f"{info['n']:,} latents + {info['n_validation']:,} held out"
        return (
            f"LatentSampler({self.method!r}, shape={self.shape}, dtype={self.info['dtype']}, "
            f"device={str(self.device)!r},\n"
            f"    has_density={self.has_density}, decoder={'yes' if self._decoder else 'no'}, "
            f"condition={self._condition.kind if self._condition else None!r}, "
            f"transform={info['transform']!r}, parameters={info['parameters']:,},\n"
            f"    fitted on {rows} in {info['seconds']:.1f} s,\n"
            f"    {chosen})"
        )


def _chunks(rows: Tensor, context: Tensor | None) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
    """Split rows, and contexts where there are any, into what a plugin sees at once."""
    if not len(rows):
        return
    parts = rows.split(_CHUNK)
    contexts = ((),) * len(parts) if context is None else zip(context.split(_CHUNK), strict=True)
    yield from zip(parts, contexts, strict=True)


def _check_scores(scores: Tensor) -> None:
    """Raise if log densities (n,) are NaN or plus infinity; minus infinity is that of an impossible latent.

    Raises:
        NonFiniteError: With the count, the first index and the remedy.
    """
    bad = ~(scores < torch.inf)
    if bool(bad.any()):
        raise NonFiniteError(
            f"Expected log densities that are numbers; got {int(bad.sum())} of {len(scores)} that are NaN or "
            f"plus infinity, the first at index {int(bad.int().argmax())}; {_UNSTABLE}."
        )


def resolve_device(device: str | torch.device) -> torch.device:
    """Check a device.

    Raises:
        OptionError: It is no device's name, or not on this machine.
    """
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()
    except (RuntimeError, TypeError, ValueError, OverflowError, AssertionError) as error:
        raise OptionError(
            f"Expected a device that this machine has, such as 'cpu'; got {told(device)} "
            f"({reason(error)})."
        ) from error
    return resolved
