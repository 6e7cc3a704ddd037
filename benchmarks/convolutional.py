"""Measure the methods, under each transform, on the latents of two convolutional autoencoders of MNIST.

    python benchmarks/convolutional.py --cache DIR [--data-dir DIR] [--autoencoder flat] [--methods "a;b"]
        [--transforms scale,whiten] [--max-seconds 600] [--out benchmarks/results/convolutional]

The autoencoders (latents of 4 channels of 4x4, and of 64 flat dimensions) are trained once and kept in the
cache. A row of the results that is there already is not measured again, nor is a transform that "auto" took:
delete results.json to start anew.
Distances are those of `latentfit bench mnist`: of 10,000 decoded samples to the training images, in the
reference classifier's logits and penultimate layer, and relative to Resample, training latents drawn again.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentfit import LatentSampler, fit_latent_sampler
from latentfit_bench.classifier import load_classifier
from latentfit_bench.convolutional import ConvolutionalAutoencoder
from latentfit_bench.datasets import ImageData, binarize, load_mnist
from latentfit_bench.figures import samples
from latentfit_bench.files import write_atomically
from latentfit_bench.measure import Ruler, plain, standardised_nll
from latentfit_bench.models import reconstruction_loss
from latentfit_bench.results import listed, provenance, read, write
from latentfit_bench.training import in_batches, train_autoencoder

AUTOENCODERS = ("spatial", "flat")
TRANSFORMS = ("auto", "scale", "standardize", "whiten", "none")
BASELINES = ("Real", "Reconstruction", "Resample")
# Methods with other options than their defaults, by the name of their row.
VARIANTS: dict[str, dict[str, Any]] = {
    "flow-matching, wide": {"method": "flow-matching", "hidden": 768, "steps": 15_000},
    # For comparing transforms, as the guidance that a fit chooses depends on the axes it is judged along.
    "flow-matching, 2 min at 0.4": {
        "method": "flow-matching",
        "max_seconds": 120.0,
        "guidance": 0.4,
    },
}
GUIDED = ("flow-matching", "flow-matching, wide")  # measured at these guidances, too:
GUIDANCES = (0.0, 0.2, 0.4, 0.6)
SAMPLES = 10_000
SCORED = 2_000  # held-out latents in the NLL
SHOWN = 64


class Study:
    """What the measurements share, and the results so far.

    Args:
        data: MNIST.
        arguments: Of the command line.
    """

    def __init__(self, data: ImageData, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.train = binarize(data.train_images, "threshold")
        self.test = binarize(data.test_images, "threshold")
        self.data = data
        self.classifier = load_classifier("mnist")
        self.ruler = Ruler(self.classifier, self.train)
        self.results = read(arguments.out)
        self.results.setdefault("autoencoders", {})

    def autoencoder(self, kind: str) -> ConvolutionalAutoencoder:
        """Train an autoencoder, or take it from the cache, and measure what no sampler is needed for."""
        seed, epochs = self.arguments.seed, self.arguments.epochs
        path = self.arguments.cache / f"{kind}-{epochs}-{seed}.safetensors"
        model = ConvolutionalAutoencoder(kind)
        seconds = None
        if path.exists():
            model.load_state_dict(load_file(path))
            model.eval().requires_grad_(False)
        else:
            log(f"{kind}: training the autoencoder, {epochs} epochs")
            trained = train_autoencoder(
                lambda: ConvolutionalAutoencoder(kind),
                self.data.train_images,
                epochs=epochs,
                seed=seed,
            )
            model, seconds = trained.model, trained.seconds
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
        self.latents = in_batches(model.encode, self.train)
        self.held_out = in_batches(model.encode, self.test)
        entry = self.results["autoencoders"].setdefault(kind, {"rows": {}})
        if "test_reconstruction" not in entry:
            logits = in_batches(model.decoder, self.held_out)
            entry |= {
                "shape": list(self.latents.shape[1:]),
                "epochs": epochs,
                "seconds": seconds,
                "test_reconstruction": reconstruction_loss(logits, self.test).item(),
            }
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randint(len(self.latents), (SAMPLES,), generator=generator)
            images = (
                self.test,
                self.decoded(model, self.held_out),
                self.decoded(model, self.latents[drawn]),
            )
            for name, binary in zip(BASELINES, images, strict=True):
                self.keep(kind, name, "", binary, {})
        return model

    def decoded(self, model: ConvolutionalAutoencoder, z: Tensor) -> Tensor:
        """Decode latents to binary images."""
        return (in_batches(model.decode, z) >= 0.5).float()

    def row(self, kind: str, model: ConvolutionalAutoencoder, name: str, transform: str) -> None:
        """Fit a method or a variant of one under a transform, draw, measure and write."""
        options = dict(VARIANTS.get(name, {}))
        method = options.pop("method", name)
        limit = options.pop("max_seconds", self.arguments.max_seconds)
        wall, processor = time.perf_counter(), time.process_time()
        sampler = fit_latent_sampler(
            None,
            self.latents,
            method=method,
            transform=transform,
            decoder=model.decode,
            seed=self.arguments.seed,
            max_seconds=limit,
            progress=False,
            **options,
        )
        measured: dict[str, Any] = {
            "max_seconds": limit,
            "fit_seconds": time.perf_counter() - wall,
            "fit_processor_seconds": time.process_time() - processor,
        }
        info = sampler.info
        measured |= {
            key: info[key]
            for key in ("method", "options", "transform", "fit", "parameters", "ranking")
            if key in info
        }
        self.keep(kind, name, transform, *self.judged(model, sampler, measured))
        if name in GUIDED and transform == "auto":  # of one network, as it is trained without
            field: Any = sampler._plugin
            for guidance in GUIDANCES:
                field.field.guidance.fill_(guidance)
                made = measured | {"guidance": guidance}
                other = f"{name}, guidance {guidance:g}"
                self.keep(kind, other, transform, *self.judged(model, sampler, made))

    def judged(
        self, model: ConvolutionalAutoencoder, sampler: LatentSampler, measured: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Draw images; what was measured, with the seconds of drawing and the likelihood."""
        started = time.perf_counter()
        z = sampler.sample(SAMPLES, seed=self.arguments.seed)
        added: dict[str, Any] = {"sample_seconds": time.perf_counter() - started}
        if sampler.has_density:
            train, held_out = self.latents.flatten(1), self.held_out[:SCORED]
            added["nll"] = standardised_nll(sampler.log_prob, train, held_out)
        return self.decoded(model, z), measured | added

    def keep(
        self, kind: str, name: str, transform: str, binary: Tensor, measured: dict[str, Any]
    ) -> None:
        """Measure images (n, 784), and write results.json, table.md and the images for the figure."""
        entry = self.results["autoencoders"][kind]
        row = self.ruler.measure(binary) | measured
        key = f"{name}, {transform}" if transform else name  # the row's own is what was used
        entry["rows"][key] = plain({"name": name, "transform": transform, **row})
        log(f"{kind}, {key}: FCD {row['fcd']:.2f}, penultimate {row['fcd_penultimate']:.2f}")
        shown = self.arguments.cache / f"{kind}, {key}.safetensors"
        save_file({"images": binary[:SHOWN].contiguous()}, shown)
        self.results |= {
            "seed": self.arguments.seed,
            "samples": SAMPLES,
            "classifier_sha256": self.classifier.sha256,
            "data_sha256": self.data.sha256,
            **provenance(),
        }
        write(self.arguments.out, self.results, table)

    def draw(self) -> None:
        """Draw the best row of each method whose images the cache has beside the baselines."""
        images = {}
        for kind, entry in self.results["autoencoders"].items():
            shown = {
                key: self.arguments.cache / f"{kind}, {key}.safetensors" for key in entry["rows"]
            }
            best: dict[str, str] = {}
            for key, row in sorted(entry["rows"].items(), key=lambda item: item[1]["fcd"]):
                if shown[key].exists():
                    best.setdefault(row["name"].split(",")[0], key)  # one of all variants
            for key in [k for k in entry["rows"] if k in best.values()]:
                images[f"{kind}: {key}"] = load_file(shown[key])["images"]
        write_atomically(self.arguments.out / "samples.png", samples(images, (28, 28), side=6))


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown document."""
    parts = ["# Methods and transforms on convolutional latents\n"]
    for kind, entry in results["autoencoders"].items():
        rows = entry["rows"]
        if "Resample" not in rows:
            continue
        parts.append(
            f"\n## {kind}: {'x'.join(map(str, entry['shape']))}, "
            f"{entry['test_reconstruction']:.1f} nats on test images\n\n"
            "| row | transform | FCD | / Resample | penultimate | / Resample | NLL, nats | fit, s | "
            "of processors | draw, s |\n| --- | --- |" + " ---: |" * 8 + "\n"
        )
        floor = rows["Resample"]
        order = sorted(rows, key=lambda k: (rows[k]["name"] not in BASELINES, rows[k]["fcd"]))
        for key in order:
            row = rows[key]
            asked, got = key.removeprefix(row["name"]).removeprefix(", "), row["transform"]
            cells = [row["name"], asked if asked == got else f"{asked}: {got}"]
            for feature in ("fcd", "fcd_penultimate"):
                cells += [f"{row[feature]:.2f}", f"{row[feature] / floor[feature]:.2f}"]
            cells.append("" if row.get("nll") is None else f"{row['nll']:.2f}")
            for part in ("fit_seconds", "fit_processor_seconds", "sample_seconds"):
                cells.append("" if row.get(part) is None else f"{row[part]:.1f}")
            if row.get("max_seconds") and row["fit_seconds"] > 0.95 * row["max_seconds"]:
                cells[-3] += " (limit)"
            parts.append("| " + " | ".join(cells) + " |\n")
    made_with = listed(results["versions"])
    used = results["machine"]
    parts.append(
        f"\nBy `python benchmarks/convolutional.py`, seed {results['seed']}, {results['samples']:,} samples, "
        f"on {used['torch_threads']} threads of {used['cpus']} cores, with {made_with}; last row "
        f"{results['created']}. Resample, training latents drawn again and decoded, is the floor. NLL is of "
        f"{SCORED:,} test latents, in units of the training latents' standard deviations.\n"
    )
    return "".join(parts)


def log(line: str) -> None:
    """Tell on stderr."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Do what the command line asks for."""
    from latentfit import list_samplers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    results = Path(__file__).parent / "results" / "convolutional"
    parser.add_argument("--cache", type=Path, required=True, help="keeps the trained autoencoders")
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--data-dir", help="a folder with a sub-folder mnist/")
    parser.add_argument("--autoencoder", choices=AUTOENCODERS, action="append")
    parser.add_argument("--methods", help="separated by semicolons; all by default")
    parser.add_argument("--transforms", default=",".join(TRANSFORMS))
    parser.add_argument("--max-seconds", type=float, help="of a fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    every = [
        *VARIANTS,
        *(info.name for info in list_samplers() if info.distribution == "latentfit"),
    ]
    names = arguments.methods.split(";") if arguments.methods else every
    study = Study(load_mnist(arguments.data_dir, log=log), arguments)
    for kind in arguments.autoencoder or AUTOENCODERS:
        model = study.autoencoder(kind)
        for name in names:
            for transform in arguments.transforms.split(","):
                rows = study.results["autoencoders"][kind]["rows"]
                known = rows.get(f"{name}, auto", {}).get("transform") == transform
                if f"{name}, {transform}" not in rows and not known:
                    study.row(kind, model, name, transform)
    study.draw()


if __name__ == "__main__":
    main()
