"""Who takes part in benchmarks/peers.py: Pythae, scikit-learn, loops over raw libraries, and latentfit.

Pythae's samplers have their defaults, for 20 epochs in batches of 512; its trainer's learning rate, 1e-4, is
meant for batches of 64, so there is a row with 1e-3, too. The raw loops are written as their libraries'
documentation shows, on standardised latents, with the same epochs and batches.
"""

import copy
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentfit import fit_latent_sampler
from latentfit_bench.models import Autoencoder

EPOCHS = 20
BATCH = 512
MARKS = (1, 2, 5, 10, 20)  # epochs after which a loop's state is kept
BUDGETS = (2.0, 4.0, 8.0, 16.0, 32.0)  # seconds of latentfit's fits besides the default
FLOW_MATCHING_STEPS = 20_000  # torchcfm's tutorials train so long, with batches of 256

LogProb = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Fitted:
    """What a fit gives back.

    Attributes:
        sample: Draws n latents (n, k).
        log_prob: Their log densities in nats (n,), in the latents' units; None if it has none.
    """

    sample: Callable[[int], Tensor]
    log_prob: LogProb | None = None


@dataclass(frozen=True)
class Task:
    """What every contestant is given.

    Attributes:
        model: The trained autoencoder, frozen.
        images: Binary training images (n, 784).
        latents: Their latents (n, k).
        seed: Of all that is drawn.
    """

    model: Autoencoder
    images: Tensor
    latents: Tensor
    seed: int


@dataclass
class Watch:
    """A stop watch, and the states in between, for the curve of quality over time.

    Attributes:
        seconds: Of fitting; what `mark` takes is not counted.
        peak_mb: Of memory, where it was noted.
        curve: What a state is of ("5 epochs"), seconds, and what had been fitted by then.
    """

    seconds: float = 0.0
    curve: list[tuple[str, float, Fitted]] = field(default_factory=list)
    peak_mb: float | None = None
    _started: float = field(default_factory=time.perf_counter)

    def start(self) -> None:
        """Begin, once everything has been imported."""
        self.seconds, self._started = 0.0, time.perf_counter()

    def mark(self, name: str, make: Callable[[], Fitted]) -> None:
        """Stop, keep what is made of the present state under a name, and go on."""
        self.stop()
        self.curve.append((name, self.seconds, make()))
        self._started = time.perf_counter()

    def note_memory(self) -> None:
        """Keep the peak of memory as that of the fit: others follow."""
        self.peak_mb = peak_mb()

    def stop(self) -> None:
        """Count the time up to now."""
        self.seconds += time.perf_counter() - self._started
        self._started = time.perf_counter()


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # a child's ru_maxrss would begin with its parent's
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1e6 if sys.platform == "darwin" else 1e3)


Contestant = Callable[[Task, Watch], Fitted]


def ours(method: str, *, budgets: bool = False, **options: Any) -> Contestant:
    """Fit a method of latentfit with its defaults; within smaller budgets, too, for the curve."""

    def fit(task: Task, watch: Watch) -> Fitted:
        def once(max_seconds: float | None) -> tuple[float, Fitted]:
            started = time.perf_counter()
            sampler = fit_latent_sampler(
                task.model,
                task.images,
                method=method,
                seed=task.seed,
                progress=False,
                max_seconds=max_seconds,
                **options,
            )
            seconds = time.perf_counter() - started
            density = sampler.log_prob if sampler.has_density else None
            return seconds, Fitted(lambda n: sampler.sample(n, seed=task.seed), density)

        once(0.5)  # imports, as for all others, are not counted
        watch.seconds, fitted = once(None)
        watch.note_memory()
        if budgets:
            for budget in BUDGETS:
                watch.curve.append((f"{budget:g} s", *once(budget)))
        return fitted

    return fit


def resample(task: Task, watch: Watch) -> Fitted:
    """Draw training latents again: the floor."""
    del watch
    generator = torch.Generator().manual_seed(task.seed)
    n = len(task.latents)
    return Fitted(lambda m: task.latents[torch.randint(n, (m,), generator=generator)])


def sklearn_mixture(components: int) -> Contestant:
    """Fit scikit-learn's GaussianMixture with its defaults, on standardised latents."""

    def fit(task: Task, watch: Watch) -> Fitted:
        from sklearn.mixture import GaussianMixture

        rows, back = standardised(task.latents)
        watch.start()
        mixture = GaussianMixture(components, random_state=task.seed).fit(rows.numpy())
        watch.stop()
        return back(
            lambda n: torch.from_numpy(mixture.sample(n)[0]).float(),
            lambda x: torch.from_numpy(mixture.score_samples(x.numpy())),
        )

    return fit


def pythae(kind: str, *, learning_rate: float | None = None) -> Contestant:
    """Fit one of Pythae's samplers on the frozen autoencoder, as its documentation shows.

    Args:
        kind: "GaussianMixture", "MAF" or "IAF".
        learning_rate: Adam's; None means Pythae's own, 1e-4.
    """

    def fit(task: Task, watch: Watch) -> Fitted:
        with quiet():
            import pythae.samplers  # noqa: F401 - before the clock starts

            model = pythae_model(task.model)
            if kind == "GaussianMixture":
                return _pythae_mixture(model, task, watch)
            return _pythae_flow(kind, model, task, watch, learning_rate)

    return fit


def pythae_model(model: Autoencoder) -> Any:
    """Give the autoencoder as one of Pythae's, with the very same networks."""
    from pythae.models import AE, AEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = model.encoder

        def forward(self, x: Tensor) -> Any:
            return ModelOutput(embedding=self.network(x.flatten(1)))

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = model.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z).sigmoid().view(-1, 1, 28, 28))

    config = AEConfig(input_dim=(1, 28, 28), latent_dim=model.k)
    return AE(config, Encoder(), Decoder()).eval()


def _pythae_mixture(model: Any, task: Task, watch: Watch) -> Fitted:
    from pythae.samplers import GaussianMixtureSampler

    np.random.seed(task.seed)  # noqa: NPY002 - Pythae takes no seed
    sampler = GaussianMixtureSampler(model)
    watch.start()
    sampler.fit(task.images.view(-1, 1, 28, 28))
    watch.stop()
    return Fitted(
        lambda n: torch.from_numpy(sampler.gmm.sample(n)[0]).float(),
        lambda z: torch.from_numpy(sampler.gmm.score_samples(z.numpy())),
    )


def _pythae_flow(
    kind: str, model: Any, task: Task, watch: Watch, learning_rate: float | None
) -> Fitted:
    import pythae.samplers
    from pythae.trainers import BaseTrainerConfig

    def once(epochs: int) -> tuple[float, Fitted]:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            sampler = getattr(pythae.samplers, f"{kind}Sampler")(model)
            rate = {} if learning_rate is None else {"learning_rate": learning_rate}
            config = BaseTrainerConfig(
                output_dir=folder,
                num_epochs=epochs,
                per_device_train_batch_size=BATCH,
                keep_best_on_train=True,  # without data to judge by it fails otherwise
                seed=task.seed,
                no_cuda=True,
                **rate,
            )
            sampler.fit(task.images.view(-1, 1, 28, 28), training_config=config)
        seconds = time.perf_counter() - started
        flow = getattr(sampler, f"{kind.lower()}_model").eval()

        def draw(n: int) -> Tensor:
            with torch.no_grad():
                parts = [
                    flow.inverse(sampler.prior.sample((500,))).out for _ in range(-(-n // 500))
                ]
            return torch.cat(parts)[:n]

        def log_prob(z: Tensor) -> Tensor:
            with torch.no_grad():
                out = flow(z)
            return sampler.prior.log_prob(out.out) + out.log_abs_det_jac

        return seconds, Fitted(draw, log_prob)

    # Its trainer takes no callbacks from the sampler: shorter fits are fits of their own.
    watch.seconds, fitted = once(EPOCHS)
    watch.note_memory()
    watch.curve += [(f"{epochs} epochs", *once(epochs)) for epochs in MARKS if epochs < EPOCHS]
    return fitted


def loop(
    build: Callable[[int], Any], learning_rate: float, weight_decay: float = 0.0
) -> Contestant:
    """Train a flow of a raw library by maximum likelihood, as their documentation does.

    Args:
        build: Makes a `RawFlow` of so many dimensions.
        learning_rate: Adam's, as in the library's own example.
        weight_decay: Likewise.
    """

    def fit(task: Task, watch: Watch) -> Fitted:
        torch.manual_seed(task.seed)
        rows, back = standardised(task.latents)
        flow = build(rows.shape[1])
        optimiser = torch.optim.Adam(
            flow.module.parameters(), lr=learning_rate, weight_decay=weight_decay
        )
        flow.log_prob(flow.module, rows[:BATCH])
        watch.start()
        for epoch in range(1, EPOCHS + 1):
            for batch in torch.randperm(len(rows)).split(BATCH):
                optimiser.zero_grad()
                loss = -flow.log_prob(flow.module, rows[batch]).mean()
                if torch.isfinite(loss):
                    loss.backward()
                    optimiser.step()
            if epoch in MARKS:
                watch.mark(f"{epoch} epochs", lambda: _fitted(flow, back))
        return watch.curve[-1][2]

    return fit


@dataclass(frozen=True)
class RawFlow:
    """A raw library's flow: the module, and what is called to score rows and to draw n of them."""

    module: nn.Module
    log_prob: Callable[[Any, Tensor], Tensor]
    sample: Callable[[Any, int], Tensor]


def _fitted(flow: RawFlow, back: Callable[..., Fitted]) -> Fitted:
    kept = copy.deepcopy(flow.module).eval()
    return back(
        torch.no_grad()(lambda n: flow.sample(kept, n)),
        torch.no_grad()(lambda x: flow.log_prob(kept, x)),
    )


def normflows_realnvp(dim: int) -> RawFlow:
    """Follow normflows' README: 32 affine coupling blocks with MLPs of 64, 64, on a diagonal Gaussian."""
    import normflows as nf

    flows: list[nn.Module] = []
    for _ in range(32):
        network = nf.nets.MLP([dim // 2, 64, 64, dim], init_zeros=True)
        flows += [nf.flows.AffineCouplingBlock(network), nf.flows.Permute(dim, mode="swap")]
    model = nf.NormalizingFlow(nf.distributions.base.DiagGaussian(dim), flows)
    return RawFlow(model, lambda m, x: m.log_prob(x), lambda m, n: m.sample(n)[0])


def nflows_spline(dim: int) -> RawFlow:
    """Couple 6 rational-quadratic layers of 8 bins, with alternating masks and residual networks."""
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import (
        CompositeTransform,
        PiecewiseRationalQuadraticCouplingTransform,
        RandomPermutation,
    )
    from nflows.utils import create_alternating_binary_mask

    layers: list[Any] = []
    for layer in range(6):
        layers += [
            RandomPermutation(dim),
            PiecewiseRationalQuadraticCouplingTransform(
                create_alternating_binary_mask(dim, even=layer % 2 == 0),
                lambda n_in, n_out: ResidualNet(n_in, n_out, 128, num_blocks=2),
                num_bins=8,
                tails="linear",
                tail_bound=5.0,
            ),
        ]
    model = Flow(CompositeTransform(layers), StandardNormal([dim]))
    return RawFlow(model, lambda m, x: m.log_prob(x), lambda m, n: m.sample(n))


def zuko_spline(dim: int) -> RawFlow:
    """Follow zuko's README: NSF of three autoregressive transforms with networks of 128, 128, 128."""
    import zuko

    model = zuko.flows.NSF(dim, transforms=3, hidden_features=(128, 128, 128))
    return RawFlow(model, lambda m, x: m().log_prob(x), lambda m, n: m().sample((n,)))


def flow_matching(task: Task, watch: Watch) -> Fitted:
    """Match flows as torchcfm's tutorials do, but in a network 256 wide, not 64, and by Euler's method."""
    torch.manual_seed(task.seed)
    rows, back = standardised(task.latents)
    dim, width = rows.shape[1], 256
    sizes = [dim + 1, width, width, width]
    layers: list[nn.Module] = []
    for i in range(3):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.SELU()]
    network = nn.Sequential(*layers, nn.Linear(width, dim))
    optimiser = torch.optim.Adam(network.parameters())
    watch.start()
    marks = {FLOW_MATCHING_STEPS // k for k in (20, 10, 4, 2, 1)}
    for step in range(1, FLOW_MATCHING_STEPS + 1):
        ends = rows[torch.randint(len(rows), (256,))]
        starts, t = torch.randn_like(ends), torch.rand(256, 1)
        places = torch.lerp(starts, ends, t) + 0.1 * torch.randn_like(ends)  # torchcfm's sigma
        loss = (network(torch.cat((places, t), 1)) - (ends - starts)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step in marks:
            watch.mark(f"{step} steps", lambda: back(_euler(copy.deepcopy(network), dim)))
    return watch.curve[-1][2]


def _euler(network: nn.Module, dim: int, steps: int = 100) -> Callable[[int], Tensor]:
    @torch.no_grad()
    def draw(n: int) -> Tensor:
        x = torch.randn(n, dim)
        for i in range(steps):
            x = x + network(torch.cat((x, torch.full((n, 1), i / steps)), 1)) / steps
        return x

    return draw


def standardised(latents: Tensor) -> tuple[Tensor, Callable[..., Fitted]]:
    """Standardise by column; give the rows, and what brings a sampler of rows back to latents."""
    mean, scale = latents.mean(0), latents.std(0)

    def back(sample: Callable[[int], Tensor], log_prob: LogProb | None = None) -> Fitted:
        def density(z: Tensor) -> Tensor:
            assert log_prob is not None
            return log_prob((z - mean) / scale) - scale.log().sum()

        return Fitted(lambda n: sample(n) * scale + mean, None if log_prob is None else density)

    return (latents - mean) / scale, back


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what a library prints off the terminal."""
    import logging

    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        logging.disable(logging.INFO)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


OURS: dict[str, Contestant] = {
    "realnvp": ours("realnvp", budgets=True),
    "spline": ours("spline", budgets=True),
    "gmm": ours("gmm", budgets=True),
    "flow-matching": ours("flow-matching", budgets=True),
    "maf": ours("maf"),
    "wgan-gp": ours("wgan-gp"),
    "r3gan": ours("r3gan"),
    "gan": ours("gan"),
}
FLOWS = ("realnvp", "spline", "maf", "flow-matching")
ADVERSARIAL = ("wgan-gp", "r3gan", "gan")
PYTHAE: dict[str, Contestant] = {
    "Pythae GMM": pythae("GaussianMixture"),
    "Pythae MAF": pythae("MAF"),
    "Pythae IAF": pythae("IAF"),
    "Pythae MAF, learning rate 1e-3": pythae("MAF", learning_rate=1e-3),
}
RAW: dict[str, Contestant] = {
    "scikit-learn GMM 10": sklearn_mixture(10),
    "scikit-learn GMM 100": sklearn_mixture(100),
    "scikit-learn GMM 200": sklearn_mixture(200),
    "normflows RealNVP": loop(normflows_realnvp, 5e-4, 1e-5),
    "nflows spline": loop(nflows_spline, 5e-4),
    "zuko NSF": loop(zuko_spline, 1e-3),
    "flow matching loop": flow_matching,
}
FLOOR = "Resample"
CONTESTANTS: dict[str, Contestant] = {FLOOR: resample, **OURS, **PYTHAE, **RAW}
