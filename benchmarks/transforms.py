"""Which transform suits which method: fits on the latents of the paper's autoencoder of MNIST, in one run.

    LATENTFIT_DATA=FOLDER python benchmarks/transforms.py [--methods gmm,realnvp] [--steps 1000] [--seeds 2]
        [--embed 64]

Trains the autoencoder (some minutes; --autoencoder FILE keeps it for the next run) and fits each method under
each transform to the 60,000 training latents. Prints a table, a line when it is measured: the energy
distance (times 1,000) and the classifier two-sample test between 10,000 samples and the test images' latents,
the negative log likelihood of the latter in the encoder's units, the Fréchet distance of the decoded samples
to the training images in the logits of the benchmark's classifier, and the seconds of the fit; means over
the seeds. The first row is a perfect sampler's: training latents drawn again. With --embed the fits see the
ten numbers as so many, of rank 10, and the deviations of the principal axes differ a hundred times and more;
samples are mapped back by least squares, and "off" is the share of their variance that lies elsewhere.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentfit import LatentSampler, fit_latent_sampler
from latentfit.metrics import c2st, energy_distance
from latentfit_bench.classifier import load_classifier
from latentfit_bench.datasets import binarize, load_mnist
from latentfit_bench.measure import Ruler
from latentfit_bench.models import Autoencoder
from latentfit_bench.training import in_batches, train_autoencoder

METHODS = ("gmm", "kde", "realnvp", "maf", "spline", "flow-matching", "wgan-gp", "r3gan")
TRANSFORMS = ("scale", "standardize", "whiten")
WITHOUT_STEPS = ("gmm", "kde")
SAMPLES = 10_000
COLUMNS = ("energy", "c2st", "nll", "fcd", "off", "seconds")


class Judge:
    """The autoencoder's latents, and what is measured of samples.

    Args:
        kept: Where the autoencoder is read from, or written to after its training.
        embed: The columns of the latents that are fitted; None for the autoencoder's own ten.
    """

    def __init__(self, kept: Path | None, embed: int | None) -> None:
        data = load_mnist()
        train, test = (binarize(x, "threshold") for x in (data.train_images, data.test_images))
        self.model = Autoencoder(train.shape[1], 10)
        if kept and kept.exists():
            self.model.load_state_dict(torch.load(kept, weights_only=True))
        else:
            build = lambda: Autoencoder(train.shape[1], 10)  # noqa: E731
            self.model = train_autoencoder(build, data.train_images, epochs=20, seed=0).model
            if kept:
                torch.save(self.model.state_dict(), kept)
        self.model.eval().requires_grad_(False)
        self.train, self.test = (in_batches(self.model.encode, x) for x in (train, test))
        self.ruler = Ruler(load_classifier("mnist"), train)
        self.embedding = torch.eye(10)
        if embed:
            noise = torch.randn(embed, 10, generator=torch.Generator().manual_seed(0))
            basis = torch.linalg.qr(noise)[0].T  # (10, embed), orthonormal rows
            self.embedding = torch.logspace(0, -2, 10)[:, None] * basis

    def measure(self, samples: Tensor) -> dict[str, float]:
        """Compare samples with the test images' latents, in units of the training latents."""
        embedded = samples
        samples = samples @ torch.linalg.pinv(self.embedding)  # (n, 10)
        off = (embedded - samples @ self.embedding).square().sum() / embedded.var(0).sum()
        real, drawn = ((z - self.train.mean(0)) / self.train.std(0) for z in (self.test, samples))
        images = binarize(in_batches(self.model.decode, samples), "threshold")
        return {
            "energy": 1000 * energy_distance(real, drawn),
            "c2st": c2st(real, drawn),
            "fcd": self.ruler.measure(images)["fcd"],
            "off": float(off) / len(samples),
        }

    def fit(self, method: str, transform: str, seed: int, options: dict[str, Any]) -> LatentSampler:
        """Fit as a user does."""
        return fit_latent_sampler(
            None,
            self.train @ self.embedding,
            method=method,
            transform=transform,
            seed=seed,
            progress=False,
            **options,
        )


def show(name: str, transform: str, runs: list[dict[str, float]]) -> None:
    """Print a row: the mean of each column that the runs have."""
    cells = [
        f"{statistics.mean(run[column] for run in runs):.4g}" if column in runs[0] else ""
        for column in COLUMNS
    ]
    print("| " + " | ".join((name, transform, *cells)) + " |", flush=True)


def main() -> None:
    """Measure all and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--transforms", default=",".join(TRANSFORMS))
    parser.add_argument("--steps", type=int, default=1000, help="of methods that have them")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--autoencoder", type=Path, metavar="FILE")
    parser.add_argument("--embed", type=int, metavar="D", help="fit the latents in D dimensions")
    given = parser.parse_args()
    judge = Judge(given.autoencoder, given.embed)
    print("| method | transform | " + " | ".join(COLUMNS) + " |")
    print("| --- | --- |" + " ---: |" * len(COLUMNS))
    again = torch.randperm(len(judge.train), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    show("(training latents)", "", [judge.measure(judge.train[again] @ judge.embedding)])
    for method in given.methods.split(","):
        options = {} if method in WITHOUT_STEPS else {"steps": given.steps}
        for transform in given.transforms.split(","):
            runs = []
            for seed in range(given.seeds):
                sampler = judge.fit(method, transform, seed, options)
                run = judge.measure(sampler.sample(SAMPLES, seed=seed))
                run["seconds"] = sampler.info["seconds"]
                if sampler.has_density:
                    run["nll"] = -float(
                        in_batches(sampler.log_prob, judge.test @ judge.embedding).mean()
                    )
                runs.append(run)
            show(method, transform, runs)


if __name__ == "__main__":
    main()
