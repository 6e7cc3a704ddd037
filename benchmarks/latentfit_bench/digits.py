"""`latentfit bench digits`: the same comparison on scikit-learn's 8x8 digits; no download."""

from typing import Any

import click

from latentfit_bench.commands import Request, execute, shared_options, systems_epilog


@click.command("digits", epilog=systems_epilog())
@shared_options("digits")
def command(**options: Any) -> None:
    """Compare samplers on the latents of an autoencoder of scikit-learn's 8x8 digits.

    The systems of `latentfit bench mnist` on 1,797 small images that are installed already; under
    a minute on two cores. So few images say little about which system is best.

    \b
    Examples:
      latentfit bench digits
      latentfit bench digits --systems Resample,FlowAE-default --seeds 3
      latentfit bench digits --systems Resample --methods gmm,maf --conditional spline
      latentfit bench digits --quick --json | python -m json.tool
    """  # noqa: D301 - click looks for the backspace itself
    import torch

    from latentfit_bench.datasets import load_digits
    from latentfit_bench.settings import Settings

    request = Request(**options)
    epochs = 10 if request.quick else 60
    settings = Settings(
        k=8,
        hidden=(128, 64),
        batch_size=64,
        epochs={"AE": epochs, "VAE": epochs, "AAE": epochs},
        # As many as there are test images: distances depend on the number.
        samples=500,
        tsne_points=200 if request.quick else 500,
        sampler_options={name: {"steps": 50 if request.quick else full} for name, full in STEPS},
        method_seconds=2.0 if request.quick else None,
    )
    threads = torch.get_num_threads()
    # Layers this small gain nothing from a second thread, and lose much on a busy machine, where
    # the threads of every operation wait for each other.
    torch.set_num_threads(1)
    try:
        execute(request, load_digits, settings)
    finally:
        torch.set_num_threads(threads)


STEPS = (("FlowAE", 800), ("AdvAE", 300), ("FlowAE-default", 600), ("Spline-default", 400))
