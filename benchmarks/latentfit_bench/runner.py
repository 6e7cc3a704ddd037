"""The comparison itself: train, freeze, fit, sample, measure; for every seed."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from latentfit_bench.classifier import LoadedClassifier
from latentfit_bench.datasets import Binarize, ImageData, binarize
from latentfit_bench.fits import Frozen, fit_and_draw, held_out_nll
from latentfit_bench.measure import (
    COMPARED,
    Ruler,
    balanced_labels,
    balanced_rows,
    latent_measures,
)
from latentfit_bench.models import (
    AdversarialAutoencoder,
    Autoencoder,
    VariationalAutoencoder,
    reconstruction_loss,
)
from latentfit_bench.records import STATISTICS, Part, Record
from latentfit_bench.results import LIBRARIES, assemble, versions
from latentfit_bench.settings import Gallery, Settings
from latentfit_bench.systems import FLOOR, RECONSTRUCTION, SYSTEMS, System
from latentfit_bench.training import Trained, in_batches, train_autoencoder
from latentfit_bench.unfinished import Unfinished

MODELS: dict[str, type[Autoencoder]] = {
    cls.name: cls for cls in (Autoencoder, VariationalAutoencoder, AdversarialAutoencoder)
}
SHOWN = 64
SHOWN_CONDITIONAL = 80  # eight of each digit
SHOWN_LATENTS = 300  # in the report's maps


@dataclass(frozen=True)
class BinaryImages:
    """The binary images that a run evaluates with, drawn once."""

    train: Tensor
    test: Tensor


class Run:
    """One run of the comparison.

    Args:
        data: The images.
        classifier: The frozen reference classifier.
        systems: The rows of the table.
        settings: How large the run is.
        conditional: The rows of methods that are given the digit.
        how: How images are binarised.
        device: Where everything is computed.
        log: Told one line after each phase.
        unfinished: A folder for what is done, from which the same run goes on after it was ended; None
            without.
    """

    def __init__(
        self,
        data: ImageData,
        classifier: LoadedClassifier,
        systems: Sequence[System],
        settings: Settings,
        *,
        conditional: Sequence[System] = (),
        how: Binarize = "threshold",
        device: torch.device | str = "cpu",
        log: Callable[[str], None] = lambda _: None,
        unfinished: Path | None = None,
    ) -> None:
        self.data = data
        self.classifier = classifier
        self.systems = systems
        self.settings = settings
        self.how: Binarize = how
        self.device = torch.device(device)
        self.log = log
        self.gallery = Gallery(labels=data.test_labels)
        self._records = {system.name: Record(system) for system in systems}
        references = (SYSTEMS[RECONSTRUCTION], SYSTEMS[FLOOR]) if conditional else ()
        self._conditional = {s.name: Record(s) for s in (*references, *conditional)}
        self._trained: dict[str, dict[str, list[float]]] = {}
        self.unfinished = Unfinished(
            unfinished,
            {
                "data": [data.name, data.sha256, how],
                "classifier": classifier.sha256,
                "settings": asdict(settings),
                "device": str(self.device),
                "versions": versions(LIBRARIES),
            },
        )

    def run(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Run all seeds and return the results, ready for JSON.

        A sampler that fails is told in its row, and does not end the run.
        """
        began = time.perf_counter()
        with self._phase("features of the training images"):
            # One draw of "bernoulli" for the whole run: all rows are measured against the same.
            generator = torch.Generator().manual_seed(0)
            self._images = BinaryImages(
                binarize(self.data.train_images, self.how, generator).to(self.device),
                binarize(self.data.test_images, self.how, generator).to(self.device),
            )
            self._ruler = Ruler(self.classifier, self._images.train, COMPARED)
        self.gallery.train = self._images.train.cpu()
        self._first = seeds[0]
        for seed in seeds:
            self._run_seed(seed)
        # The paper measured MNIST; on other images its values would mislead.
        paper = self.data.name == "mnist"
        return assemble(
            self,
            seeds,
            {
                name: {"paper_fcd": record.system.paper_fcd if paper else None} | record.result()
                for name, record in self._records.items()
            },
            {
                name: record.result((*STATISTICS, "accuracy"))
                for name, record in self._conditional.items()
            },
            self._trained,
            time.perf_counter() - began,
        )

    def _run_seed(self, seed: int) -> None:
        needed = [system.model for system in self.systems]
        if self._conditional:
            needed.append(Autoencoder.name)
        # The latents of one model serve all systems on it; one model at a time bounds the memory.
        for name in dict.fromkeys(needed):
            frozen = None if name is None else self._freeze(name, seed)
            for record in self._records.values():
                if record.system.model == name:
                    self._add(record, frozen, seed)
            if frozen is not None and name == Autoencoder.name:
                for record in self._conditional.values():
                    self._add(record, frozen, seed, conditional=True)

    def _add(
        self, record: Record, frozen: Frozen | None, seed: int, *, conditional: bool = False
    ) -> None:
        """Measure a row with one seed, or take it from what was done before."""
        system = record.system
        title = f"seed {seed}: {system.name}{' by digit' if conditional else ''}"
        name = f"{title}, {system!r}"
        taken = self.unfinished.take(name)
        if taken is not None:
            values, tensors = taken
            part = Part(
                Record.restored(system, values["record"]),
                tensors.get("images"),
                tensors.get("latents"),
                values["history"],
            )
            self.log(f"{title}: done before")
        else:
            began = time.perf_counter()
            part = Part(Record(system))
            with self._phase(title) as note:
                if conditional and frozen is not None:
                    self._measure_conditional(part, frozen, seed, note)
                else:
                    self._measure(part, frozen, seed, note)
            if not part.record.errors:  # what failed is tried again
                values = {"record": part.record.state(), "history": part.history}
                kept = {"images": part.images, "latents": part.latents}
                tensors = {key: tensor for key, tensor in kept.items() if tensor is not None}
                self.unfinished.keep(name, time.perf_counter() - began, values, tensors)
        record.merge(part.record)
        self._show(part, seed, conditional=conditional)

    def _show(self, part: Part, seed: int, *, conditional: bool) -> None:
        """Put what there is to see of a row into the gallery."""
        system, gallery = part.record.system, self.gallery
        if part.images is not None:
            shelf = gallery.conditional if conditional else gallery.images
            shelf.setdefault(system.name, {})[seed] = part.images
        if conditional:
            return
        if part.history is not None:
            gallery.histories.setdefault(system.name, part.history)
        # Latents of one seed's autoencoder say nothing about those of another's.
        if part.latents is not None and system.model is not None and seed == self._first:
            gallery.sampled.setdefault(system.model, {})[system.name] = part.latents

    def _measure(
        self, part: Part, frozen: Frozen | None, seed: int, note: Callable[[str], None]
    ) -> None:
        system, count = part.record.system, self.settings.samples
        kind = system.kind
        measured: dict[str, float] = {}
        if kind == "real":
            produced = self._images.test[:count]
        elif frozen is None:
            raise ValueError(f"Expected a model for {system.name}; got None.")
        elif kind == "sampler":
            self._measure_sampler(part, frozen, seed, note)
            return
        elif kind == "reconstruction":
            produced = in_batches(frozen.model.decode, frozen.test[:count])
        elif kind == "resample":
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randint(len(frozen.train), (count,), generator=generator)
            z = frozen.train[rows.to(self.device)]
            # The control: these are copies.
            measured = latent_measures(z, frozen.train, frozen.test, seed=seed, told_apart=False)
            produced = in_batches(frozen.model.decode, z)
        else:
            produced = self._from_prior(part, frozen, seed, measured)
            measured["fit_seconds"] = frozen.seconds
        self._keep(part, produced, measured, note)

    def _measure_conditional(
        self, part: Part, frozen: Frozen, seed: int, note: Callable[[str], None]
    ) -> None:
        kind, count = part.record.system.kind, self.settings.samples
        if kind == "sampler":
            self._measure_sampler(part, frozen, seed, note, conditional=True)
            return
        if kind == "reconstruction":
            z, labels = frozen.test[:count], frozen.test_labels[:count]
        else:  # what a sampler that is right in everything would do
            labels = balanced_labels(count)
            generator = torch.Generator().manual_seed(seed)
            rows = balanced_rows(frozen.train_labels, count, generator)
            z = frozen.train[rows.to(self.device)]
        produced = in_batches(frozen.model.decode, z)
        self._keep(part, produced, {}, note, labels, show=False)

    def _measure_sampler(
        self,
        part: Part,
        frozen: Frozen,
        seed: int,
        note: Callable[[str], None],
        *,
        conditional: bool = False,
    ) -> None:
        """Fit, draw and measure; what a plugin raises is told in its row, and is no end of the run."""
        record, settings = part.record, self.settings
        system = record.system
        try:
            drawn = fit_and_draw(
                system,
                frozen,
                settings.samples,
                seed=seed,
                device=self.device,
                options={**system.options, **settings.sampler_options.get(system.name, {})},
                max_seconds=settings.method_seconds,
                conditional=conditional,
            )
        except Exception as error:
            note(f"failed: {record.fail(seed, error)}")
            return
        record.describe(drawn.sampler)
        measured = {
            "fit_seconds": drawn.fit_seconds,
            "sample_seconds": drawn.sample_seconds,
            "parameters": drawn.sampler.info["parameters"],
        }
        if drawn.sampler.has_density:
            try:
                measured["nll"] = held_out_nll(drawn, frozen)
            except Exception as error:
                note(f"failed: {record.fail(seed, error)}")
        if not conditional:
            try:
                z = drawn.sampler.sample(min(COMPARED, len(frozen.test)), seed=seed)
                self._look_at(part, z, frozen, seed, measured)
            except Exception as error:
                note(f"failed: {record.fail(seed, error)}")
        part.history = drawn.sampler.history
        self._keep(part, drawn.images, measured, note, drawn.labels)

    def _keep(
        self,
        part: Part,
        produced: Tensor,
        measured: dict[str, float],
        note: Callable[[str], None],
        labels: Tensor | None = None,
        *,
        show: bool = True,
    ) -> None:
        """Measure decoded images (n, pixels), and keep the first for the figures."""
        binary = (produced >= 0.5).float()
        measured = measured | self._ruler.measure(binary, labels)
        part.record.add(measured)
        if show:
            part.images = binary[: SHOWN if labels is None else SHOWN_CONDITIONAL].cpu()
        if "accuracy" in measured:
            note(f"accuracy {measured['accuracy']:.2%}")
        note(f"FCD {measured['fcd']:.2f}, penultimate {measured['fcd_penultimate']:.1f}")

    def _freeze(self, name: str, seed: int) -> Frozen:
        trained = self._train(name, seed)
        latents = in_batches(trained.model.encode, self._images.train)
        test = in_batches(trained.model.encode, self._images.test)
        with torch.inference_mode():
            loss = reconstruction_loss(trained.model.decoder(test), self._images.test).item()
        record = self._trained.setdefault(name, {"seconds": [], "test_reconstruction": []})
        record["seconds"].append(trained.seconds)
        record["test_reconstruction"].append(loss)
        self.gallery.latents.setdefault(name, test.cpu())
        self.gallery.losses.setdefault(name, trained.history)
        return Frozen(
            trained.model,
            trained.seconds,
            latents,
            test,
            self.data.train_labels,
            self.data.test_labels,
        )

    def _train(self, name: str, seed: int) -> Trained:
        settings = self.settings
        pixels = self.data.train_images.shape[1]
        epochs = settings.epochs[name]
        title = f"seed {seed}: training the {name}, {epochs} epochs"

        def build() -> Autoencoder:
            options = settings.model_options.get(name, {})
            return MODELS[name](pixels, settings.k, settings.hidden, **options)

        taken = self.unfinished.take(title)
        if taken is not None:
            values, state = taken
            with torch.random.fork_rng(devices=[]):  # its weights are replaced at once
                model = build()
            model.load_state_dict(state)
            self.log(f"{title}: done before")
            frozen = model.to(self.device).eval().requires_grad_(False)
            return Trained(frozen, values["history"], values["seconds"])
        with (
            self._phase(title) as note,
            # None: a bar on a terminal only.
            tqdm(total=epochs, desc=name, unit="epoch", disable=None, leave=False) as bar,
        ):

            def on_epoch(_: int, loss: float) -> None:
                bar.set_postfix(loss=f"{loss:.1f}")
                bar.update()

            trained = train_autoencoder(
                build,
                self.data.train_images,
                epochs=epochs,
                seed=seed,
                batch_size=settings.batch_size,
                how=self.how,
                device=self.device,
                on_epoch=on_epoch,
            )
            note(f"loss {next(iter(trained.history.values()))[-1]:.1f}")
        values = {"history": trained.history, "seconds": trained.seconds}
        self.unfinished.keep(title, trained.seconds, values, trained.model.state_dict())
        return trained

    def _from_prior(
        self, part: Part, frozen: Frozen, seed: int, measured: dict[str, float]
    ) -> Tensor:
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(self.settings.samples, self.settings.k, generator=generator)
        images = in_batches(frozen.model.decode, z.to(self.device))
        measured["sample_seconds"] = time.perf_counter() - start
        self._look_at(part, z, frozen, seed, measured)
        return images

    def _look_at(
        self, part: Part, z: Tensor, frozen: Frozen, seed: int, measured: dict[str, float]
    ) -> None:
        """Hold latents that were drawn (n, k) against those of the test images, and keep some for a map."""
        measured |= latent_measures(z, frozen.train, frozen.test, seed=seed)
        part.latents = z[:SHOWN_LATENTS].float().cpu()

    @contextmanager
    def _phase(self, name: str) -> Iterator[Callable[[str], None]]:
        start = time.perf_counter()
        notes: list[str] = []
        yield notes.append
        seconds = f"{time.perf_counter() - start:.1f} s"
        self.log("; ".join([f"{name}: {seconds}", *notes]))
