"""The comparison itself: train, freeze, fit, sample, measure; for every seed."""

import datetime
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from latentfit import fit_latent_sampler
from latentfit.metrics import frechet_distance_from_moments, gaussian_moments
from latentfit_bench.classifier import LoadedClassifier
from latentfit_bench.datasets import Binarize, ImageData, binarize
from latentfit_bench.models import (
    AdversarialAutoencoder,
    Autoencoder,
    VariationalAutoencoder,
    reconstruction_loss,
)
from latentfit_bench.systems import System
from latentfit_bench.training import Trained, in_batches, train_autoencoder

SCHEMA = 1
MODELS: dict[str, type[Autoencoder]] = {
    cls.name: cls for cls in (Autoencoder, VariationalAutoencoder, AdversarialAutoencoder)
}
SHOWN = 64
_LIBRARIES = ("latentfit", "torch", "numpy", "normflows", "nflows", "scikit-learn", "matplotlib")


@dataclass(frozen=True)
class Settings:
    """How large a run is.

    Attributes:
        k: The latent space's dimension.
        hidden: The encoder's hidden layers; the decoder mirrors them.
        batch_size: Images a step in the training of the autoencoders.
        epochs: Passes over the training images, by model.
        samples: Images that every system's distance is measured on.
        tsne_points: Test latents in the t-SNE figure.
        model_options: More constructor arguments, by model.
        sampler_options: Options of the samplers that override the systems' own, by system.
    """

    k: int
    hidden: tuple[int, ...]
    batch_size: int
    epochs: Mapping[str, int]
    samples: int
    tsne_points: int
    model_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sampler_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass
class Gallery:
    """What the figures show, from the first seed.

    Attributes:
        images: Up to 64 binary images (n, pixels) of each system.
        histories: The training curves of each sampler.
        latents: Test latents of "AE" and "VAE", (n, k).
        labels: The digits of these latents.
    """

    images: dict[str, Tensor] = field(default_factory=dict)
    histories: dict[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    latents: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


@dataclass(frozen=True)
class BinaryImages:
    """The binary images that a run evaluates with, drawn once."""

    train: Tensor
    test: Tensor


class Ruler:
    """Fréchet distances to the binary training images, in a frozen classifier's features."""

    def __init__(self, classifier: LoadedClassifier, train: Tensor) -> None:
        self._model = classifier.model
        penultimate, logits = self._model.features(train)
        self._moments = [gaussian_moments(features) for features in (logits, penultimate)]

    def distances(self, images: Tensor) -> tuple[float, float]:
        """Return the distances in the logits and in the penultimate layer."""
        penultimate, logits = self._model.features(images)
        pairs = zip(self._moments, (logits, penultimate), strict=True)
        first, second = (
            frechet_distance_from_moments(*gaussian_moments(features), *reference)
            for reference, features in pairs
        )
        return first, second


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, sample standard deviation (0 for one value, None for none) and all values."""
    if not values:
        return {"mean": None, "std": None, "values": []}
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": spread, "values": list(values)}


def standardised_nll(
    log_prob: Callable[[Tensor], Tensor], train: Tensor, held_out: Tensor
) -> float:
    """Return the mean negative log density of held-out latents (m, k), in nats.

    It is that of latents standardised with the training latents' moments, so that the scale an
    autoencoder happens to have does not matter; `log_prob` is in the autoencoder's own units.
    """
    scale = train.double().std(0).log().sum().item()
    return -log_prob(held_out).double().mean().item() - scale


class Run:
    """One run of the comparison.

    Args:
        data: The images.
        classifier: The frozen reference classifier.
        systems: The rows of the table.
        settings: How large the run is.
        how: How images are binarised.
        device: Where everything is computed.
        log: Told one line after each phase.
    """

    def __init__(
        self,
        data: ImageData,
        classifier: LoadedClassifier,
        systems: Sequence[System],
        settings: Settings,
        *,
        how: Binarize = "threshold",
        device: torch.device | str = "cpu",
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.data = data
        self.classifier = classifier
        self.systems = systems
        self.settings = settings
        self.how: Binarize = how
        self.device = torch.device(device)
        self.log = log
        self.gallery = Gallery(labels=data.test_labels)
        self._measured: dict[str, dict[str, list[float]]] = {system.name: {} for system in systems}
        self._options: dict[str, dict[str, Any]] = {system.name: {} for system in systems}
        self._trained: dict[str, dict[str, list[float]]] = {}

    def run(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Run all seeds and return the results, ready for JSON."""
        began = time.perf_counter()
        with self._phase("features of the training images"):
            # One draw of "bernoulli" for the whole run: all rows are measured against the same.
            generator = torch.Generator().manual_seed(0)
            images = BinaryImages(
                binarize(self.data.train_images, self.how, generator).to(self.device),
                binarize(self.data.test_images, self.how, generator).to(self.device),
            )
            ruler = Ruler(self.classifier, images.train)
        for seed in seeds:
            self._run_seed(seed, images, ruler, show=seed == seeds[0])
        return self._results(seeds, time.perf_counter() - began)

    def _run_seed(self, seed: int, images: BinaryImages, ruler: Ruler, *, show: bool) -> None:
        # The latents of one model serve all systems on it; one model at a time bounds the memory.
        for name in dict.fromkeys(system.model for system in self.systems):
            systems = [system for system in self.systems if system.model == name]
            model, seconds, latents = None, 0.0, torch.empty(0)
            if name is not None:
                trained = self._train(name, seed)
                model, seconds = trained.model, trained.seconds
                latents = in_batches(model.encode, images.train)
                test_latents = in_batches(model.encode, images.test)
                reconstructed = in_batches(model.decode, test_latents)
                self._note_training(name, trained, test_latents, images.test)
                if show and name in ("AE", "VAE"):
                    self.gallery.latents[name] = test_latents.cpu()
            for system in systems:
                with self._phase(f"seed {seed}: {system.name}") as note:
                    measured: dict[str, float] = {}
                    if system.kind == "real":
                        produced = images.test[: self.settings.samples]
                    elif model is None:
                        raise ValueError(f"Expected a model for {system.name}; got None.")
                    elif system.kind == "reconstruction":
                        produced = reconstructed[: self.settings.samples]
                    elif system.kind == "resample":
                        produced = self._resample(model, latents, seed)
                    elif system.kind == "prior":
                        produced = self._from_prior(model, seed, measured)
                        measured["fit_seconds"] = seconds
                    else:
                        produced = self._from_sampler(
                            system, model, latents, test_latents, seed, measured, show
                        )
                    produced = (produced >= 0.5).float()
                    logit, penultimate = ruler.distances(produced)
                    measured |= {"fcd": logit, "fcd_penultimate": penultimate}
                    for key, value in measured.items():
                        self._measured[system.name].setdefault(key, []).append(value)
                    if show:
                        self.gallery.images[system.name] = produced[:SHOWN].cpu()
                    note(f"FCD {logit:.2f}, penultimate {penultimate:.1f}")

    def _train(self, name: str, seed: int) -> Trained:
        settings = self.settings
        pixels = self.data.train_images.shape[1]
        epochs = settings.epochs[name]
        with (
            self._phase(f"seed {seed}: training the {name}, {epochs} epochs") as note,
            # None: a bar on a terminal only.
            tqdm(total=epochs, desc=name, unit="epoch", disable=None, leave=False) as bar,
        ):

            def on_epoch(_: int, loss: float) -> None:
                bar.set_postfix(loss=f"{loss:.1f}")
                bar.update()

            trained = train_autoencoder(
                lambda: MODELS[name](
                    pixels, settings.k, settings.hidden, **settings.model_options.get(name, {})
                ),
                self.data.train_images,
                epochs=epochs,
                seed=seed,
                batch_size=settings.batch_size,
                how=self.how,
                device=self.device,
                on_epoch=on_epoch,
            )
            note(f"loss {next(iter(trained.history.values()))[-1]:.1f}")
        return trained

    def _note_training(self, name: str, trained: Trained, latents: Tensor, test: Tensor) -> None:
        with torch.inference_mode():
            loss = reconstruction_loss(trained.model.decoder(latents), test).item()
        record = self._trained.setdefault(name, {"seconds": [], "test_reconstruction": []})
        record["seconds"].append(trained.seconds)
        record["test_reconstruction"].append(loss)

    def _resample(self, model: Autoencoder, latents: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(latents), (self.settings.samples,), generator=generator)
        return in_batches(model.decode, latents[rows.to(latents.device)])

    def _from_prior(self, model: Autoencoder, seed: int, measured: dict[str, float]) -> Tensor:
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(self.settings.samples, self.settings.k, generator=generator)
        images = in_batches(model.decode, z.to(self.device))
        measured["sample_seconds"] = time.perf_counter() - start
        return images

    def _from_sampler(
        self,
        system: System,
        model: Autoencoder,
        latents: Tensor,
        test_latents: Tensor,
        seed: int,
        measured: dict[str, float],
        show: bool,
    ) -> Tensor:
        if system.method is None:
            raise ValueError(f"Expected a method for {system.name}; got None.")
        options = {**system.options, **self.settings.sampler_options.get(system.name, {})}
        start = time.perf_counter()
        sampler = fit_latent_sampler(
            None,
            latents,
            method=system.method,
            decoder=model.decode,
            device=self.device,
            seed=seed,
            **options,
        )
        fitted = time.perf_counter()
        images = sampler.generate(self.settings.samples, seed=seed)
        measured["sample_seconds"] = time.perf_counter() - fitted
        measured["fit_seconds"] = fitted - start
        if sampler.has_density:
            measured["nll"] = standardised_nll(sampler.log_prob, latents, test_latents)
        self._options[system.name] = {"method": system.method, **sampler.info["options"]}
        if show:
            self.gallery.histories[system.name] = sampler.history
        return images

    def _results(self, seeds: Sequence[int], seconds: float) -> dict[str, Any]:
        settings = asdict(self.settings)
        rows = {}
        for system in self.systems:
            measured = self._measured[system.name]
            rows[system.name] = {
                "description": system.description,
                # The paper measured MNIST; on other images its values would mislead.
                "paper_fcd": system.paper_fcd if self.data.name == "mnist" else None,
                "options": self._options[system.name],
                **{
                    key: summary(measured.get(key, []))
                    for key in ("fcd", "fcd_penultimate", "fit_seconds", "sample_seconds", "nll")
                },
            }
        return {
            "schema": SCHEMA,
            "benchmark": self.data.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
            "device": str(self.device),
            "seeds": list(seeds),
            "classifier": {
                "sha256": self.classifier.sha256,
                "test_accuracy": self.classifier.provenance["test_accuracy"],
            },
            "systems": rows,
            "models": {
                name: {key: summary(values) for key, values in record.items()}
                for name, record in self._trained.items()
            },
            "data": {
                "train": len(self.data.train_images),
                "test": len(self.data.test_images),
                "binarize": self.how,
                "sha256": self.data.sha256,
            },
            "settings": settings,
            "machine": {
                "platform": f"{platform.system()} {platform.machine()}",
                "cpus": os.cpu_count(),
                "torch_threads": torch.get_num_threads(),
            },
            "seconds": seconds,
        }

    @contextmanager
    def _phase(self, name: str) -> Iterator[Callable[[str], None]]:
        start = time.perf_counter()
        notes: list[str] = []
        yield notes.append
        seconds = f"{time.perf_counter() - start:.1f} s"
        self.log("; ".join([f"{name}: {seconds}", *notes]))


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
