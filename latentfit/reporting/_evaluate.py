"""A report on one's own samplers: real data, reconstructions, latents drawn again, and samples."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentfit._version import __version__
from latentfit.arguments import check_text, check_whole, reason, told
from latentfit.encoding import check_finite
from latentfit.errors import DataError, OptionError
from latentfit.metrics import (
    c2st,
    density_coverage,
    energy_distance,
    frechet_distance,
    kernel_distance,
)
from latentfit.models import (
    Model,
    decoder_of,
    encoder_of,
    extractor_of,
    rows_with_nan,
    warn_of_nan,
)
from latentfit.outputs import check_choice
from latentfit.randomness import check_seed, isolated_rng
from latentfit.reporting._images import Shades, as_images
from latentfit.reporting._maps import map_latents
from latentfit.reporting._measures import seconds
from latentfit.reporting._model import Curves, Exhibits, LatentMap, Neighbours, Picture, Report, Row
from latentfit.reporting._pictures import draw_grid, find_neighbours
from latentfit.reporting._subset import Subset, random_subset

if TYPE_CHECKING:
    from latentfit.sampler import LatentSampler

__all__ = ["evaluate"]

_SHOWN = 64  # images of a grid
_POINTS = 600  # real latents in the map; of each sampler it has half as many
_LEAST = 16  # rows of each half
_BATCH = 256

_DESCRIPTIONS = {
    "Real": "data that nothing was compared with",
    "Reconstruction": "the same, encoded and decoded",
    "Resample": "their latents drawn again and decoded: the floor",
}


def evaluate(
    samplers: Mapping[str, LatentSampler],
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
    r"""Hold samplers against data, through their encoder and decoder.

    Two times n random rows of the data are taken. One half is what everything is compared with; the other
    is the row "Real", whose reconstructions are "Reconstruction", and whose latents, drawn again and
    decoded, are "Resample": what a perfect sampler would reach.

    Args:
        samplers: Samplers of this encoder's latents, by the names that their rows get.
        encoder: As for :func:`latentfit.fit_latent_sampler`; None if the dataset holds latents.
        dataset: As for :func:`latentfit.fit_latent_sampler`; best what no sampler was fitted to.
        decoder: As for :func:`latentfit.load_sampler`; None takes that of each sampler. Without any, latents
            are compared, and there are no images.
        output: What to take of what the encoder returns; None takes what the sampler was fitted to.
        features: A callable that makes features (n, d) of inputs or decoded images (n, ...): with it the
            Fréchet distance of images is measured. None leaves that of latents.
        labels: Classes of the dataset's rows (N,), whole numbers, for the map, and for samplers on a
            condition; None takes those of the dataset, if it has any.
        n: How many latents and images are compared, a whole number >= 16; half of the data, if that is less.
        seed: Of the choice of rows and of all draws, a whole number; None for a new one.

    Returns:
        The report; :func:`write_report` makes a page of it.

    Raises:
        DataError: A dataset that can't be used, or of less than 32 rows; latents of another shape than a
            sampler's; labels that do not fit.
        OptionError: Another argument that does not fit.
        NonFiniteError: NaN or infinity.
        EncoderOutputError: The encoder, the decoder or the features are no single tensor with a row each.

    Warns:
        LatentsWarning: The decoder made NaN of some latents.
    """
    given: Any = samplers
    if (
        not isinstance(given, Mapping)
        or not given
        or not all(hasattr(sampler, "log_prob") for sampler in given.values())
    ):
        raise OptionError(
            f"Expected samplers as a dict of LatentSamplers by name; got {told(samplers)}."
        )
    for name in given:
        check_text("a sampler's name", name)
        if name in _DESCRIPTIONS:
            raise OptionError(
                f"Expected a sampler's name that is none of the other rows' ({', '.join(_DESCRIPTIONS)}); "
                f"got {name!r}."
            )
    n, seed = check_whole("n", n, _LEAST), check_seed(seed)
    some = next(iter(samplers.values()))
    if check_choice(output) is not None and encoder is None:
        raise OptionError(
            f"Expected output=None where the dataset holds latents, as no encoder returns anything; got "
            f"{told(output)}."
        )
    model = None if encoder is None else encoder_of(encoder, output=_output(output, some))
    decoding = None if decoder is None else decoder_of(decoder)
    extractor = None if features is None else _extractor(features, encoder)
    data = random_subset(dataset, 2 * n, model, labels=labels, seed=seed)
    if len(data.latents) < 2 * _LEAST:
        raise DataError(
            f"Expected a dataset of at least {2 * _LEAST} rows; got {len(data.latents)}."
        )
    for name, sampler in samplers.items():
        if tuple(data.latents.shape[1:]) != sampler.shape:
            source, remedy = "the encoder and the dataset", ""
            if model is None:
                source, remedy = (
                    "the dataset",
                    " If these are an encoder's inputs, pass encoder (--encoder), too.",
                )
            raise DataError(
                f"Expected latents of shape (n, {', '.join(map(str, sampler.shape))}) of {source}, as "
                f"{name!r} was fitted to such; got {tuple(data.latents.shape)}.{remedy}"
            )
    return _Evaluation(dict(samplers), data, model, decoding, extractor, seed).report()


def _output(output: Any, sampler: LatentSampler) -> Any:
    """Take what the sampler was fitted to, where nobody says otherwise."""
    if output is not None:
        return output
    kept = (sampler.info.get("encoder") or {}).get("output")
    return kept if isinstance(kept, str | int) and kept != "a callable" else None


def _extractor(features: Any, encoder: Any) -> Model:
    if encoder is None:
        raise OptionError(
            f"Expected features=None where the dataset holds latents, as there are no images to compare "
            f"with; got {told(features)}."
        )
    try:
        return extractor_of(features)
    except OptionError as error:
        raise OptionError(
            f"Expected features as a callable, or an object with .encode or .transform, or None; got "
            f"{told(features)} ({reason(error)})."
        ) from error


@dataclass
class _Half:
    """Rows of the data: inputs, if there are any, latents and labels."""

    inputs: Tensor | None
    latents: Tensor
    labels: Tensor | None


class _Evaluation:
    """What is measured, row by row."""

    def __init__(
        self,
        samplers: dict[str, LatentSampler],
        data: Subset,
        encoder: Model | None,
        decoder: Model | None,
        features: Model | None,
        seed: int,
    ) -> None:
        self.samplers, self.data, self.seed = samplers, data, seed
        self.encoder, self.decoder, self.features = encoder, decoder, features
        half = len(data.latents) // 2
        self.reference, self.held_out = (
            _Half(
                None if data.inputs is None else data.inputs[part],
                data.latents[part],
                None if data.labels is None else data.labels[part],
            )
            for part in (slice(half), slice(half, 2 * half))
        )
        self.n = half
        rows = self.reference.latents.reshape(half, -1).double()
        self.mean, scale = rows.mean(0), rows.std(0)
        self.scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        self.flat = self._standardised(self.reference.latents)
        self.features_of_reference = (
            None
            if features is None or self.reference.inputs is None
            else self._features("Real", self.reference.inputs)
        )
        self.images: dict[str, Tensor] = {}
        self.sampled: dict[str, Tensor] = {}

    def report(self) -> Report:
        rows = [*self._references(), *(self._sampler(*item) for item in self.samplers.items())]
        decoded = [images for name, images in self.images.items() if name != "Real"]
        warn_of_nan(sum(map(rows_with_nan, decoded)), sum(map(len, decoded)))
        has_features = self.features_of_reference is not None and any(
            "fd" in r.values for r in rows
        )
        return Report(
            title="Samplers of one's own latents"
            if len(self.samplers) > 1
            else "A sampler, evaluated",
            name=", ".join(self.samplers),
            kind="evaluation",
            rows=tuple(rows),
            primary="fd" if has_features else "c2st",
            floor="Resample" if has_features else "Real",
            seeds=(self.seed,),
            notes=self._notes(has_features),
            facts=self._facts(),
            exhibits=self._exhibits(),
            warnings=self._warnings(),
        )

    def _references(self) -> list[Row]:
        """Measure real data, reconstructions, and latents drawn again."""
        z = self.held_out.latents
        generator = torch.Generator().manual_seed(self.seed)
        again = z[torch.randint(len(z), (self.n,), generator=generator)]
        some = next(iter(self.samplers.values()))
        made = {
            "Real": (self.held_out.inputs, z),
            "Reconstruction": (self._decoded(some, z), None),
            "Resample": (self._decoded(some, again), None),  # whose latents are those of Real
        }
        return [
            Row(name, self._measured(name, images, latents), True, _DESCRIPTIONS[name])
            for name, (images, latents) in made.items()
            if images is not None or latents is not None
        ]

    def _sampler(self, name: str, sampler: LatentSampler) -> Row:
        condition = self._condition(name, sampler, self.held_out)
        began = time.perf_counter()
        z = sampler.sample(self.n, seed=self.seed, condition=condition).cpu()
        images = self._decoded(sampler, z)
        took = time.perf_counter() - began
        values = self._measured(name, images, z)
        if sampler.has_density:
            given = self._condition(name, sampler, self.reference)
            with torch.no_grad():
                scores = sampler.log_prob(self.reference.latents, condition=given).double()
            nll = float(-scores.mean().cpu() - self.scale.log().sum())
            if np.isfinite(nll):  # a latent may be impossible
                values["nll"] = [nll]
        values["fit_seconds"] = [float(sampler.info["seconds"])]
        values["sample_seconds"] = [took]
        values["parameters"] = [float(sampler.info["parameters"])]
        self.sampled[name] = z
        options = {"method": sampler.method, **sampler.options}
        return Row(name, values, description=sampler.method, options=options)

    def _condition(self, name: str, sampler: LatentSampler, half: _Half) -> Tensor | None:
        if sampler.info.get("condition") is None:
            return None
        if half.labels is None:
            raise DataError(
                f"Expected labels, as {name!r} was fitted on a condition; the dataset has none. Pass them as "
                "labels=."
            )
        return half.labels

    def _measured(
        self, name: str, images: Tensor | None, latents: Tensor | None
    ) -> dict[str, list[float]]:
        """Hold images and latents against the half of the data that is the reference."""
        if images is not None:
            self.images[name] = images
        values: dict[str, float] = {}
        if images is not None and self.features_of_reference is not None:
            found = self._features(name, images)
            values["fd"] = frechet_distance(found, self.features_of_reference)
            values["kid"] = kernel_distance(found, self.features_of_reference)
        if latents is not None:
            rows = self._standardised(latents)
            density, coverage = density_coverage(self.flat, rows)
            values |= {
                "fd_latents": frechet_distance(rows, self.flat),
                "density": density,
                "coverage": coverage,
                "c2st": c2st(rows, self.flat, seed=self.seed),
                "energy_distance": energy_distance(rows, self.flat),
            }
        return {key: [value] for key, value in values.items()}

    def _standardised(self, latents: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
        rows = latents.detach().cpu().double().reshape(len(latents), -1)
        flat: np.ndarray[Any, np.dtype[np.float64]] = ((rows - self.mean) / self.scale).numpy()
        return flat

    def _decoded(self, sampler: LatentSampler, z: Tensor) -> Tensor | None:
        """Decode latents into what the encoder's inputs look like; None without a decoder."""
        model = self.decoder or sampler._decoder
        if model is None:
            return None
        device = model.device or torch.device("cpu")
        with isolated_rng(self.seed, device), torch.no_grad():
            images = model.in_parts(z, _BATCH).cpu()
        like = self.held_out.inputs
        if like is not None and images[0].numel() == like[0].numel():
            images = images.reshape(len(images), *like.shape[1:])
        return images

    def _features(self, name: str, images: Tensor) -> Tensor:
        assert self.features is not None
        whose, remedy = "of the decoder", "if it runs in half precision, run it in float32"
        if name == "Real":
            whose, remedy = "in the dataset", "leave these rows out"
        check_finite(
            images, f"images {whose} to make features of", remedy
        )  # else the extractor is blamed
        with torch.no_grad():
            found = self.features.in_parts(images, _BATCH)
        features = found.cpu().double().reshape(len(found), -1)
        check_finite(
            features, "features", "is the extractor in eval mode, and fed what it expects?"
        )
        return features

    def _exhibits(self) -> Exhibits:
        shown: dict[str, Tensor] = {}
        # What is decoded may have other shades than what was encoded.
        decoded = self.images.get("Reconstruction")
        for name, images in self.images.items():
            shades = Shades.of(images if name == "Real" or decoded is None else decoded)
            form = as_images(images, shades)
            if form is not None:
                shown[name] = form
        histories = [Curves.of(name, sampler.history) for name, sampler in self.samplers.items()]
        return Exhibits(
            pictures=tuple(
                Picture(name, self.seed, draw_grid(images[:_SHOWN]), len(images[:_SHOWN]))
                for name, images in shown.items()
            ),
            curves=tuple(curves for curves in histories if curves is not None),
            maps=(self._map(),),
            neighbours=self._neighbours(shown),
        )

    def _map(self) -> LatentMap:
        labels = self.reference.labels
        is_classes = labels is not None and labels.ndim == 1 and not labels.is_floating_point()
        return map_latents(
            "Latents",
            self.reference.latents[:_POINTS],
            {name: z[: _POINTS // 2] for name, z in self.sampled.items()},
            labels=labels[:_POINTS] if labels is not None and is_classes else None,
            seed=self.seed,
        )

    def _neighbours(self, shown: Mapping[str, Tensor]) -> tuple[Neighbours, ...]:
        if self.reference.inputs is None or "Real" not in shown:
            return ()
        inputs = self.reference.inputs
        known = as_images(inputs, Shades.of(self.held_out.inputs))  # type: ignore[arg-type]
        if known is None:
            return ()
        known = known[_finite_rows(inputs)]
        found = []
        for name, images in shown.items():
            # What is not finite is shown as grey, which is near to anything.
            own = images[_finite_rows(self.images[name])][:_SHOWN]
            if len(own) and len(known) and own.shape[1:] == known.shape[1:]:
                found.append(find_neighbours(name, own, known))
        return tuple(found)

    def _warnings(self) -> tuple[str, ...]:
        bad = {
            name: int((~_finite_rows(images)).sum())
            for name, images in self.images.items()
            if name != "Real"
        }
        told = ", ".join(
            f"{name} ({count:,} of {self.n:,})" for name, count in bad.items() if count
        )
        if not told:
            return ()
        return (
            f"The decoder made NaN or infinity of latents of {told}: such pixels are grey, black or white, "
            "and these images have no neighbours. If it runs in half precision, run it in float32.",
        )

    def _notes(self, has_features: bool) -> tuple[str, ...]:
        notes = [
            f"Everything is compared with {self.n:,} random rows of the data; Real is as many other rows. A "
            "Fréchet distance depends on their number: compare values of one page only.",
            f"By chance alone an AUC is off 0.5 by up to about {1.1 / self.n**0.5:.2f} (two deviations).",
        ]
        notes.append(
            "Resample, latents of other data drawn again and decoded, is the floor: what a perfect sampler "
            "would reach with this autoencoder."
            if has_features
            else "Latents are compared, each dimension over its standard deviation. The row Real tells what "
            "other latents of the data reach. With a feature extractor images are compared, too."
        )
        return tuple(notes)

    def _facts(self) -> tuple[tuple[str, str], ...]:
        facts = [
            (
                "Data",
                f"{2 * self.n:,} of {self.data.rows:,} rows (n={self.n:,}), chosen at random, seed "
                f"{self.seed}",
            ),
            ("Latents", f"shape {' x '.join(map(str, self.reference.latents.shape[1:]))}"),
        ]
        if self.encoder is not None:
            facts.append(("Encoder", str(self.encoder.describe()["class"])))
        for name, sampler in self.samplers.items():
            info = sampler.info
            facts.append(
                (
                    name,
                    f"{sampler.method}, fitted on {info['n']:,} latents in {seconds(info['seconds'])}, seed "
                    f"{info['seed']}, transform {info['transform']}",
                )
            )
        facts.append(("Made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"))
        facts.append(("Versions", f"latentfit {__version__}, torch {torch.__version__}"))
        return tuple(facts)


def _finite_rows(images: Tensor) -> Tensor:
    """Tell which rows (n, ...) hold neither NaN nor infinity."""
    return images.detach().cpu().reshape(len(images), -1).isfinite().all(1)
