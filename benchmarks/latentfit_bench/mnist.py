"""`latentfit bench mnist`: the paper's comparison on binarised MNIST."""

from pathlib import Path
from typing import Any

import click

from latentfit_bench.commands import Request, execute, log, shared_options, systems_epilog


@click.command("mnist", epilog=systems_epilog())
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Folder with a sub-folder mnist/ that holds the IDX files; by default the one that "
    "LATENTFIT_DATA names, else the user's cache, filled by a download.",
)
@shared_options("mnist")
def command(data_dir: Path | None, **options: Any) -> None:
    """Compare samplers on the latents of the paper's autoencoder of MNIST.

    Trains the autoencoder on binarised images, freezes it, fits the samplers to its latents and
    measures the Fréchet classifier distance of 10,000 samples to the training images; about seven
    minutes on two cores.

    \b
    Examples:
      latentfit bench mnist
      latentfit bench mnist --seeds 3 --out results/mnist
      latentfit bench mnist --systems Real,Resample,FlowAE-default --quick
      latentfit bench mnist --methods all,auto
      latentfit bench mnist --systems Real,Resample --conditional realnvp,spline
      latentfit bench mnist --quick --json | python -m json.tool
    """  # noqa: D301 - click looks for the backspace itself
    from latentfit_bench.datasets import load_mnist
    from latentfit_bench.settings import Settings

    request = Request(**options)
    epochs = 3 if request.quick else 20
    settings = Settings(
        k=10,
        hidden=(512, 256),
        # On a validation split of 5,000 the autoencoder reaches 59.7 nats with batches of 128 and
        # 61.5 with 256.
        batch_size=128,
        epochs={"AE": epochs, "VAE": epochs, "AAE": epochs},
        samples=10_000,
        tsne_points=500 if request.quick else 2000,
        sampler_options=QUICK if request.quick else {},
        method_seconds=10.0 if request.quick else None,
    )
    execute(request, lambda: load_mnist(data_dir, log=log), settings)


QUICK: dict[str, dict[str, Any]] = {
    "FlowAE": {"steps": 400},
    "AdvAE": {"steps": 300},
    "FlowAE-default": {"steps": 300},
    "Spline-default": {"steps": 200},
}
