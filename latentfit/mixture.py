"""A Gaussian mixture with full covariances: fitted by EM, trained by gradient, exact to sample and score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from latentfit.arguments import check_whole
from latentfit.checkpoint import load_module
from latentfit.em import Terms, expect, factorise, kmeans, widest

if TYPE_CHECKING:
    from latentfit.training import Run

__all__ = ["GaussianMixture", "mixture_size"]

_NUMBERS = 2**20  # in the (rows, K, D) intermediate of a density that is computed at once
_SINGLE = 1e4  # how far terms may cancel before float32 gives way to float64: it leaves 1e-3 nats
_RIDGE = 1e-6


def mixture_size(n: int, dim: int, *, most: int = 100) -> int:
    """Choose the number of components that n rows of dim columns support: a row for each parameter.

    Args:
        n: How many rows, >= 0.
        dim: How many columns, >= 1.
        most: The largest that is chosen, >= 1.

    Raises:
        OptionError: Other numbers.
    """
    n, dim = check_whole("n", n, 0), check_whole("dim", dim, 1)
    most = check_whole("most", most, 1)
    return max(1, min(most, n // (dim * (dim + 3) // 2)))


class Sums(NamedTuple):
    """What an M step needs of the rows.

    Attributes:
        likelihood: Their mean log density before the step.
        terms: Sums over them, weighted by the components' shares.
        centre: What was subtracted from them, (D,).
    """

    likelihood: float
    terms: Terms
    centre: Tensor


class GaussianMixture(nn.Module):
    """K Gaussians in D dimensions, held as weights, means and Cholesky factors of the precisions.

    All parameters are trainable, so that it can be the base of a flow; :meth:`fit` starts it on data.
    Dimensions and a resulting number of components are fixed at construction, so that a state dict fits.

    With a context the weights depend on it and the components do not: the weights' logits are
    ``logits + context @ gate``. Without one a mixture that was fitted to classes is that of all their rows.

    Args:
        dim: D, the number of columns.
        components: K.
        context_dim: C, the number of columns of a context; 0 for none.

    Raises:
        OptionError: Other than whole numbers of such sizes.
    """

    gate: nn.Parameter | None

    def __init__(self, dim: int, components: int, context_dim: int = 0) -> None:
        super().__init__()
        dim, components = check_whole("dim", dim, 1), check_whole("components", components, 1)
        context_dim = check_whole("context_dim", context_dim, 0)
        self.dim, self.components, self.context_dim = dim, components, context_dim
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.zeros(components, dim))
        # The precision of component k is P_k P_k', with P_k upper triangular.
        self.log_diagonal = nn.Parameter(torch.zeros(components, dim))
        self.off_diagonal = nn.Parameter(torch.zeros(components, dim, dim))
        gate = nn.Parameter(torch.zeros(context_dim, components)) if context_dim else None
        self.register_parameter("gate", gate)
        self.register_buffer("_upper", torch.ones(dim, dim).triu(1), persistent=False)
        self._upper: Tensor

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density in nats, (n,), of rows x (n, D), under contexts (n, C)."""
        factor = self._precision_factor()  # (K, D, D)
        # In parts that stay in the cache; a training batch is about one.
        size = max(256, _NUMBERS // (self.components * self.dim))
        pairs: Iterable[tuple[Tensor, Tensor | None]]
        if context is None:
            pairs = ((part, None) for part in x.split(size))
        else:
            pairs = zip(x.split(size), context.split(size), strict=True)
        return torch.cat([self._joint(part, factor, c).logsumexp(dim=1) for part, c in pairs])

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        """Draw n rows, (n, D), in no order; with contexts (n, C), one row for each."""
        if n == 0:
            return self.means.new_zeros(0, self.dim)
        weights = self._log_weights(context).exp()
        if context is None:
            component = torch.multinomial(weights, n, replacement=True, generator=generator)
        else:
            component = torch.multinomial(weights, 1, generator=generator)[:, 0]
        noise = torch.randn(n, self.dim, generator=generator, device=weights.device)
        return self._place(component, noise)

    @torch.no_grad()
    def complete(self, given: Tensor, generator: torch.Generator) -> Tensor:
        """Draw rows (n, D) from the conditional distribution under their first columns (n, C), C < D.

        With P upper triangular the first C of P'(x - m) depend on the first C columns alone: they are known,
        and only the others are noise.
        """
        if not len(given):
            return self.means.new_zeros(0, self.dim)
        columns = given.shape[1]
        marginal = self.head(columns=columns)
        factor = marginal._precision_factor()
        size = max(256, _NUMBERS // (self.components * columns))
        weights = [marginal._joint(part, factor, None).softmax(1) for part in given.split(size)]
        component = torch.multinomial(torch.cat(weights), 1, generator=generator)[:, 0]
        noise = torch.randn(len(given), self.dim, generator=generator, device=given.device)
        return self._place(component, noise, given)

    def head(self, *, components: int | None = None, columns: int | None = None) -> GaussianMixture:
        """The first components' marginal distribution of the first columns; it shares this one's storage.

        Its parameters are views that do not require gradients: writing to them in place writes here.
        """
        k = self.components if components is None else components
        d = self.dim if columns is None else columns
        part = GaussianMixture(d, k, self.context_dim).to(self.means.device)
        for name, view in (
            ("logits", self.logits[:k]),
            ("means", self.means[:k, :d]),
            ("log_diagonal", self.log_diagonal[:k, :d]),
            ("off_diagonal", self.off_diagonal[:k, :d, :d]),
            ("gate", None if self.gate is None else self.gate[:, :k]),
        ):
            if view is not None:
                setattr(part, name, nn.Parameter(view.detach(), requires_grad=False))
        return part

    def fit(
        self,
        x: Tensor,
        generator: torch.Generator,
        *,
        context: Tensor | None = None,
        steps: int = 8,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start on data, then take EM steps.

        Args:
            x: Rows (n, D), n >= 1.
            generator: The source of randomness, on x's device.
            context: Their contexts (n, C). Under one-hot ones EM finds the weights of each class; others are
                left to the gradient, and the gate stays as it is.
            steps: EM steps.
            stop: Asked before each; True ends them.
        """
        self.start(x, generator, context=context)
        for _ in range(steps if self.components > 1 else 0):
            if stop():
                break
            self.improve(x, context=context)

    @torch.no_grad()
    def fit_supported(
        self,
        x: Tensor,
        generator: torch.Generator,
        held_out: Tensor,
        *,
        context: Tensor | None = None,
        held_out_context: Tensor | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Fit with all components, then with half as many as long as held-out rows get likelier.

        Args:
            x: Rows (n, D), n >= 1.
            generator: The source of randomness, on x's device.
            held_out: Rows (m, D) to choose by; with m = 0 all components are kept.
            context: Contexts (n, C) of the rows.
            held_out_context: Contexts (m, C).
            stop: Asked before each EM step and each further size; True ends them.

        Returns:
            The number of components that are used. The others get no weight.
        """
        best, score, kept = 0, -math.inf, {}
        size = self.components
        while size:
            part = self.head(components=size)
            part.fit(x, generator, context=context, stop=stop)
            reached = part.mean_log_prob(held_out, held_out_context) if len(held_out) else 0.0
            if best and not reached > score:
                break
            best, score = size, reached
            kept = {name: tensor.clone() for name, tensor in part.state_dict().items()}
            size = 0 if not len(held_out) or stop() else size // 2
        self.head(components=best).load_state_dict(kept)  # the parts share their storage
        self.logits[best:] = -1e4
        return best

    def fit_within(
        self,
        run: Run,
        x: Tensor,
        context: Tensor | None,
        held_out: Tensor,
        *,
        choose: bool,
        share: float,
    ) -> None:
        """Fit what another model starts from, the same in all processes; the run's facts tell its size.

        Args:
            run: The fit of that model.
            x: Rows (n, D), n >= 1.
            context: Their contexts (n, C).
            held_out: The held-out rows (m, D) that the sampler's ``fit`` was given.
            choose: Whether held-out rows may choose fewer components, see :meth:`fit_supported`.
            share: The part of the run's seconds after which no further step is taken.
        """

        def work() -> dict[str, Any]:
            run.facts["components"] = self.fit_supported(
                x,
                run.generator,
                held_out if choose else held_out[:0],
                context=context,
                held_out_context=run.held_out_context,
                stop=lambda: run.elapsed() >= share,
            )
            run.workers.share(self)  # their clocks may have stopped them at other sizes
            return self.state_dict()

        run.once("mixture", work, partial(load_module, self))

    @torch.no_grad()
    def start(
        self,
        x: Tensor,
        generator: torch.Generator,
        *,
        context: Tensor | None = None,
        shrinkage: float = 1.0,
    ) -> None:
        """Set the components to the clusters of k-means++ on rows x (n, D); see :meth:`improve`."""
        centre = x.mean(0)
        centres = kmeans(x - centre, self.components, generator)
        # Each row belongs to the nearest centre, and in equal shares to those that are equally near.
        sharp = 1e5 / (x - centre).square().sum(1).mean().clamp_min(1e-30)
        classes = self._classes(context)
        near = Terms(
            -0.5 * sharp * centres.square().sum(1),
            sharp * centres,
            torch.zeros_like(self.off_diagonal),
            centres.new_zeros(self.components, 0 if classes is None else self.context_dim),
        )
        _, terms = expect(x, centre, near, classes)
        self.maximise(Sums(math.nan, terms, centre), shrinkage)

    def improve(self, x: Tensor, *, context: Tensor | None = None, shrinkage: float = 1.0) -> float:
        """Take one EM step: :meth:`expect`, then :meth:`maximise`.

        Args:
            x: Rows (n, D), n >= 1.
            context: Their contexts (n, C); those that are not one-hot are not looked at.
            shrinkage: See :meth:`maximise`.

        Returns:
            The mean log density of the rows before the step.
        """
        sums = self.expect(x, context)
        self.maximise(sums, shrinkage)
        return sums.likelihood

    @torch.no_grad()
    def expect(self, x: Tensor, context: Tensor | None = None) -> Sums:
        """Take the E step on rows x (n, D): add up what the M step needs of them."""
        centre, classes = x.mean(0), self._classes(context)
        total, terms = expect(x, centre, self._weights(centre, classes is not None), classes)
        return Sums(float(total) / len(x), terms, centre)

    @torch.no_grad()
    def maximise(self, sums: Sums, shrinkage: float = 1.0) -> None:
        """Take the M step.

        Each covariance is shrunk towards the one within all components, scaled to its own size, so that a
        component with few rows stays regular. Without shrinkage no step lowers the likelihood.

        Args:
            sums: What :meth:`expect` returned.
            shrinkage: The weight of the common covariance, in units of D rows.
        """
        (_, terms, centre), d = sums, self.dim
        count = terms.one
        safe = count.clamp_min(1e-6)
        means = terms.linear / safe[:, None]
        scatter = terms.products - count[:, None, None] * means[:, :, None] * means[:, None]
        common = scatter.sum(0) / count.sum()
        usual, own = common.trace().clamp_min(1e-30), torch.einsum("kii->k", scatter)
        size = (own + d * usual) / (safe + d) / usual  # its own, and less so with few rows
        prior = shrinkage * d
        covariance = (scatter + prior * size[:, None, None] * common) / (safe + prior)[
            :, None, None
        ]
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        diagonal += _RIDGE * (1 + diagonal.amax(1, keepdim=True))
        # With C = L L', the precision is L^-T L^-1; P must be upper triangular, and L^-T is.
        eye = torch.eye(d, dtype=count.dtype, device=count.device).expand(len(count), -1, -1)
        factor = torch.linalg.solve_triangular(factorise(covariance), eye, upper=False).mT
        weights = safe / safe.sum()
        self.logits.copy_(weights.log())
        self.means.copy_(means + centre)
        self.log_diagonal.copy_(factor.diagonal(dim1=1, dim2=2).log())
        self.off_diagonal.copy_(factor.triu(1))
        if self.gate is not None and terms.extra.shape[1]:
            # One more row of each class is spread as all rows are: nothing is impossible or undefined.
            by_class = terms.extra.T
            share = (by_class + weights) / (by_class.sum(1, keepdim=True) + 1)
            self.gate.copy_((share / weights).log())

    @torch.no_grad()
    def mean_log_prob(self, x: Tensor, context: Tensor | None = None) -> float:
        """The mean of :meth:`log_prob` over rows, faster and, with thin components, a little less exact."""
        classes = self._classes(context)
        if context is not None and classes is None:
            return float(self.log_prob(x, context).double().mean())
        centre = x.mean(0)
        weights = self._weights(centre, classes is not None)
        return float(expect(x, centre, weights, classes, only_total=True)[0]) / len(x)

    def _precision_factor(self) -> Tensor:
        return self.off_diagonal * self._upper + torch.diag_embed(self.log_diagonal.exp())

    def _log_weights(self, context: Tensor | None) -> Tensor:
        """Logs of the weights, (K,), or (n, K) under contexts (n, C)."""
        if context is None:
            return self.logits.log_softmax(-1)
        if self.gate is None:
            raise ValueError(
                f"Expected no context, because context_dim is 0; got one of shape {tuple(context.shape)}."
            )
        return (self.logits + context @ self.gate).log_softmax(-1)

    def _joint(self, x: Tensor, factor: Tensor, context: Tensor | None) -> Tensor:
        """Log of weight times density of each component, (n, K)."""
        flat = factor.permute(1, 0, 2).reshape(self.dim, -1)  # (D, K * D)
        offset = torch.bmm(self.means[:, None], factor).reshape(-1)  # (K * D,)
        white = torch.addmm(-offset, x, flat).view(len(x), self.components, self.dim)
        constant = self.log_diagonal.sum(1) - 0.5 * self.dim * math.log(2 * math.pi)
        squares = torch.linalg.vecdot(
            white, white
        )  # less memory traffic than squares and their sum
        return torch.add(self._log_weights(context) + constant, squares, alpha=-0.5)

    def _place(self, component: Tensor, noise: Tensor, given: Tensor | None = None) -> Tensor:
        """Turn noise (n, D) into rows of components (n,), with the first columns given (n, C) or free."""
        # x = m + P^-T e has precision P P'.
        precision = self._precision_factor()
        eye = torch.eye(self.dim, device=noise.device).expand(self.components, -1, -1)
        factor = torch.linalg.solve_triangular(precision, eye, upper=True)
        if given is None and len(noise) * self.dim**2 <= _NUMBERS:
            return self.means[component] + torch.bmm(noise[:, None], factor[component])[:, 0]
        # One component at a time: (n, D, D) would not fit in memory.
        counts = component.bincount(minlength=self.components).tolist()
        rows = torch.empty_like(noise)
        for k, index in enumerate(component.argsort(stable=True).split(counts)):
            own = noise[index]
            if given is not None:
                c = given.shape[1]
                own[:, :c] = (given[index] - self.means[k, :c]) @ precision[k, :c, :c]
            rows[index] = torch.addmm(self.means[k], own, factor[k])
        if given is not None:
            rows[:, : given.shape[1]] = given  # to the last digit
        return rows

    def _classes(self, context: Tensor | None) -> Tensor | None:
        """Contexts that are one-hot, for EM; None for none and for others."""
        if context is None or self.gate is None:
            return None
        whole = ((context == 0) | (context == 1)).all() & (context.sum(1) == 1).all()
        return context if bool(whole) else None

    def _weights(self, centre: Tensor, by_class: bool) -> Terms:
        """The components' log joint densities as functions of rows less the centre."""
        wide = widest(centre.device)
        factor, means = self._precision_factor().to(wide), (self.means - centre).to(wide)
        precision = factor @ factor.mT
        linear = (precision @ means[:, :, None])[:, :, 0]
        constant = self.log_diagonal.to(wide).sum(1) - 0.5 * self.dim * math.log(2 * math.pi)
        constant = constant - 0.5 * (linear * means).sum(1)
        extra = linear[:, :0]
        if by_class:
            each = torch.eye(self.context_dim, device=centre.device)
            extra = self._log_weights(each).T.to(wide)
        else:
            constant = constant + self._log_weights(None)
        # In the log density of a component's rows these terms, in absolute value, cancel to about D.
        eye = torch.eye(self.dim, dtype=wide, device=centre.device).expand(self.components, -1, -1)
        root = torch.linalg.solve_triangular(factor, eye, upper=True)
        size = (means.square() + root.square().sum(1)).sqrt()
        cancelling = torch.einsum("ki,kij,kj->k", size, precision.abs(), size).max()
        weights = Terms(constant, linear, -0.5 * precision, extra)
        return weights.to(torch.float32) if float(cancelling) < _SINGLE else weights
