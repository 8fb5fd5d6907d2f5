"""A variational diffusion model: schedule, network and likelihood as plain functions."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from vdm import condition as conditions, denoisers, draws, losses, noise_levels as levels, samplers
from vdm.choices import unknown
from vdm.codec import Codec
from vdm.condition import Condition, Conditions
from vdm.dequantisation import importance_weighted
from vdm.diffusion import PREDICTIONS, alpha, convert, expand, sigma
from vdm.few_steps import bound as chains
from vdm.few_steps.chain import Chain, check
from vdm.few_steps.sampler import Ancestral
from vdm.likelihoods import Likelihood
from vdm.losses import VLB, EpsFn
from vdm.networks import dropout
from vdm.networks.applied import Applied
from vdm.networks.dropout import Dropout
from vdm.networks.numbers import NumberNetwork
from vdm.noise_levels import NoiseLevels
from vdm.ode import marginal
from vdm.ode.options import Divergence, Steps, of_keywords
from vdm.samplers import Sampler
from vdm.schedules import Schedule
from vdm.schedules.base import LogSnrFn
from vdm.sets import (
    ORDERS,
    Mask,
    NumberLaw,
    NumberLaws,
    check_mask,
    filled,
    keys_for,
    mask_of,
    number_term,
    padding_log_prob,
    wiped,
)

Params = dict[str, Any]
HEADS = (*PREDICTIONS, "edm")
FINALS = ("mode", "draw")
Data = Num[Array | np.ndarray, " b *d"]


@dataclasses.dataclass(frozen=True)
class VDM:
    """A variational diffusion model (Kingma, Salimans, Poole & Ho 2021).

    `network` is a Flax Linen module f(z, log_snr, cond, *, train) whose output has z's
    shape, or a network of `vdm.networks.from_apply`; `prediction` says what that output
    means: "eps", "x", "v", "score" or "edm".
    "edm" is the preconditioned network F of Karras et al. (2022, eq. 7): it is given
    c_in z/α and x̂ = c_skip z/α + c_out F, where `sigma_data` is the data's standard deviation.
    With a `number_law` a model of sets (`vdm.sets`) is one of the number of their points too:
    −log p(n) is a part of the prior term, and so is −log n! where the `order` is "unordered". It is
    a `vdm.sets.NumberLaw`, or a `vdm.networks.NumberNetwork` for −log p(n|c), which has parameters
    and is trained with the model.
    Two models made of equal parts are equal and have equal hashes, so a function jitted with the
    model as a static argument is compiled once for both. Raises ValueError for an unknown
    prediction or order, or a sigma_data that is not positive.
    """

    schedule: Schedule
    network: nn.Module | Applied
    likelihood: Likelihood
    prediction: str = "eps"
    sigma_data: float = 0.5
    number_law: NumberLaw | NumberNetwork | None = None
    order: str = "unordered"

    def __post_init__(self) -> None:
        if self.prediction not in HEADS:
            raise ValueError(unknown("prediction", self.prediction, HEADS))
        if self.order not in ORDERS:
            raise ValueError(unknown("order", self.order, ORDERS))
        if not (math.isfinite(self.sigma_data) and self.sigma_data > 0):
            raise ValueError(f"sigma_data must be positive and finite: got {self.sigma_data}")

    def init(self, key: Key[Array, ""], x: Data, cond: Condition | None = None) -> Params:
        """Return fresh parameters {"schedule": {"ends", "shape"}, "network"} for data like x.

        Where the number law is a network, its parameters are there as "number_law".
        """
        key_schedule, key_network = jax.random.split(key)
        z = self.likelihood.encode(jnp.asarray(x))
        cond = conditions.as_arrays(cond)
        log_snr = jnp.zeros(z.shape[:1], z.dtype)
        variables = self.network.init(key_network, z, log_snr, cond, train=False)
        params = {
            "schedule": self.schedule.init(key_schedule),
            "network": variables.get("params", {}),
        }
        if isinstance(self.number_law, NumberNetwork):
            # The other keys, and what is drawn with them, are those of a model without.
            key_number = jax.random.fold_in(key, 2)
            params["number_law"] = self.number_law.init(key_number, cond, len(z))["params"]
        return params

    def log_snr(self, params: Params) -> LogSnrFn:
        """Return the schedule's λ(t) at these parameters."""
        return lambda t: self.schedule.log_snr(params["schedule"], t)

    def denoiser(
        self,
        params: Params,
        cond: Condition | None = None,
        *,
        guidance: float | None = None,
        clip_denoised: bool = False,
        dropout_key: Array | Dropout | None = None,
    ) -> EpsFn:
        """Return eps_fn(z, log_snr) → ε̂ at these parameters, whatever the network predicts.

        The noise level may be a scalar. Without a dropout key the function is
        deterministic; with a `networks.dropout.Dropout` for a key, what is dropped of an example
        does not depend on the others. ε̂ has the precision of z, not of the network. `guidance`
        exaggerates the condition by this factor (`denoisers.guided`), for a network that was
        trained with and without one; `clip_denoised` then projects x̂ onto the range of encoded data
        (`denoisers.clip_denoised`). Raises ValueError for guidance without a condition or of a
        network that cannot go without, and for clipping data that has no range.
        """
        eps_fn = self._plain_denoiser(params, cond, dropout_key)
        if guidance is not None:
            if not getattr(self.network, "optional_cond", False):
                raise ValueError(
                    "guidance needs a network with optional_cond=True, trained with and without "
                    f"its condition: got {type(self.network).__name__} with optional_cond=False"
                )
            if cond is None:
                raise ValueError("guidance needs a condition: got cond=None")
            mask = mask_of(cond)
            nothing = None if mask is None else Conditions(mask=mask)
            without = self._plain_denoiser(params, nothing, dropout_key)
            eps_fn = denoisers.guided(eps_fn, without, guidance)
        if not clip_denoised:
            return eps_fn
        if self.likelihood.bounds is None:
            raise ValueError(
                "clip_denoised needs a range of encoded data: got a likelihood without one, "
                f"{self.likelihood} (discretised(levels) has one)"
            )
        return denoisers.clip_denoised(eps_fn, *self.likelihood.bounds)

    def _plain_denoiser(
        self,
        params: Params,
        cond: Condition | None,
        dropout_key: Array | Dropout | None,
    ) -> EpsFn:
        cond = conditions.as_arrays(cond)
        mask = mask_of(cond)

        def apply(z: Float[Array, " b *d"], log_snr: Float[Array, " b"]) -> Float[Array, " b *d"]:
            variables = {"params": params["network"]}
            output = dropout.apply(self.network, variables, z, log_snr, cond, dropout_key)
            return output.astype(z.dtype)

        def eps_fn(z: Float[Array, " b *d"], log_snr: Float[Array, "..."]) -> Float[Array, " b *d"]:
            per_example = jnp.broadcast_to(log_snr, z.shape[:1])
            if self.prediction == "edm":
                x_hat = _precondition(apply, z, per_example, self.sigma_data)
                return convert(x_hat, z, per_example, source="x", target="eps")
            output = apply(z, per_example)
            return convert(output, z, per_example, source=self.prediction, target="eps")

        if mask is None:
            return eps_fn

        def of_points(
            z: Float[Array, " b *d"], log_snr: Float[Array, "..."]
        ) -> Float[Array, " b *d"]:
            check_mask(mask, z.shape)
            # The padding is as good as normal: of that law this is the exact ε̂.
            normal = sigma(expand(log_snr, z)) * z
            return jnp.where(mask[..., None], eps_fn(wiped(z, mask), log_snr), normal)

        return of_points

    def vlb(
        self,
        params: Params,
        key: Key[Array, "..."],
        x: Data,
        cond: Condition | None = None,
        *,
        noise_levels: Float[Array, " b"] | NoiseLevels | None = None,
        num_steps: int | Int[Array, ""] | None = None,
        chain: Chain | None = None,
        all_steps: bool = False,
        clip_denoised: bool = False,
        dropout_key: Array | Dropout | None = None,
    ) -> VLB:
        """Return a one-sample estimate of the negative bound for every example, in nats.

        `num_steps` is T; None is T = ∞, and all finite T share one compilation. A `chain` of
        `vdm.few_steps` takes its place, with its own levels, variances and clipping.
        `noise_levels` says where the diffusion term is taken: times in [0, 1] on the
        schedule, or levels with their density from any law of `vdm.noise_levels`. By
        default it is one low-discrepancy set of times over the batch (VDM, appendix I.1), in an
        order drawn with the key; or with one key per example one uniform time from each key.
        For finite T a time t means the step ⌈tT⌉ (1 at t = 0); `all_steps` takes every step of a
        chain instead, the network being given T examples for every one, in one batch. Each term is
        an unbiased estimate
        for uniform times, −VLB being their sum (VDM, eq. 11). `clip_denoised` is the bound of the
        model whose x̂ is clipped to the data's range, never a looser one. Of sets, whose `cond` has
        a mask (`vdm.sets`), it is that of their points and of their number, if there is a law of
        it: padding has no part in it. Raises TypeError for data
        that the likelihood does not model, ValueError for keys or times that do not fit the batch,
        for num_steps < 1 and for arguments that exclude each other.
        """
        x = jnp.asarray(x)
        draws.check_key(key, x.shape[0])
        _check_steps(noise_levels, num_steps, chain, all_steps)
        key_t, key_0, key_eps = draws.split(key, 3)
        mask = _mask(cond, x)
        x = filled(x, mask, self.likelihood)
        key_0, key_eps = keys_for(key_0, mask), keys_for(key_eps, mask)
        if noise_levels is None:
            noise_levels = self._default_times(key_t, x.shape[0])
        given = noise_levels.log_snr if isinstance(noise_levels, NoiseLevels) else noise_levels
        if given.shape != x.shape[:1]:
            raise ValueError(
                f"noise_levels must be one per example, shape {x.shape[:1]}: got shape "
                f"{given.shape}"
            )
        encoded = wiped(self.likelihood.encode(x), mask)
        number = self.number_term(params, cond)
        if all_steps and chain is not None:
            cond = _for_all_steps(cond, chain)
        if chain is not None:
            chain = chain.masked(mask_of(cond))
        log_snr_fn, eps_fn = (
            self.log_snr(params),
            self.denoiser(
                params,
                cond,
                clip_denoised=clip_denoised or (chain is not None and chain.clip_denoised),
                dropout_key=dropout_key,
            ),
        )
        log_snr_0, log_snr_1 = (log_snr_fn(jnp.asarray(t, encoded.dtype)) for t in (0.0, 1.0))
        if chain is not None:
            levels_of_chain = jnp.asarray(chain.log_snrs, encoded.dtype)
            log_snr_0, log_snr_1 = levels_of_chain[-1], levels_of_chain[0]
        eps_0 = wiped(draws.normal(key_0, x.shape, encoded.dtype), mask)
        eps = wiped(draws.normal(key_eps, x.shape, encoded.dtype), mask)
        if chain is not None:
            if all_steps:
                every = _noise(key_eps, chain.num_steps, encoded, mask)
                diffusion = chains.all_steps(encoded, every, chain, eps_fn)
            else:
                step = losses.step_of(jnp.asarray(given), chain.num_steps)
                diffusion = chains.diffusion_loss(encoded, step, eps, chain, eps_fn)
        elif isinstance(noise_levels, NoiseLevels):
            diffusion = losses.diffusion_loss_at(encoded, noise_levels, eps, eps_fn)
        elif num_steps is None:
            diffusion = losses.diffusion_loss(encoded, noise_levels, eps, log_snr_fn, eps_fn)
        else:
            diffusion = losses.diffusion_loss_steps(
                encoded,
                losses.step_of(noise_levels, num_steps),
                eps,
                log_snr_fn,
                eps_fn,
                num_steps=num_steps,
            )
        return VLB(
            prior=losses.prior_kl(encoded, log_snr_1, mask) + number,
            reconstruction=losses.reconstruction(x, eps_0, log_snr_0, self.likelihood, mask),
            diffusion=diffusion,
        )

    def path_weights(
        self,
        params: Params,
        key: Key[Array, "..."],
        x: Data,
        cond: Condition | None = None,
        *,
        chain: Chain,
        clip_denoised: bool = False,
    ) -> Float[Array, " b"]:
        """Return log p(x, z_0 … z_1) − log q(z_0 … z_1|x) of a path drawn from q, in nats, [b].

        `chain` says which steps; that of `num_steps=T` is `few_steps.even`. The mean is VLB(x) of
        the chain; for K draws, `dequantisation.importance_weighted` of them is a bound that grows
        with K, up to log P(x) of the chain (Burda et al. 2016, theorem 1). The network is
        given T examples for every one, in one batch. Raises TypeError and ValueError as `vlb`.
        """
        x = jnp.asarray(x)
        draws.check_key(key, x.shape[0])
        mask = _mask(cond, x)
        x, key = filled(x, mask, self.likelihood), keys_for(key, mask)
        encoded = wiped(self.likelihood.encode(x), mask)
        # In one go: a thousand draws, one after the other, take minutes to compile.
        fresh = _noise(key, chain.num_steps + 1, encoded, mask)
        every = _for_all_steps(cond, chain)
        eps_fn = self.denoiser(
            params,
            every,
            clip_denoised=clip_denoised or chain.clip_denoised,
        )
        chain = chain.masked(mask_of(every))
        eps_0, above = chains.log_weights(encoded, fresh, chain, eps_fn, mask)
        log_snr_0 = jnp.asarray(chain.log_snrs, encoded.dtype)[-1]
        below = losses.reconstruction(x, eps_0, log_snr_0, self.likelihood, mask)
        return -below - above - self.number_term(params, cond)

    def number_term(self, params: Params, cond: Condition | None) -> Float[Array, " b"] | float:
        """Return what the number of points adds to the prior term of sets, in nats, [b].

        It is −log p(n) or −log p(n|c), less log n! where the `order` is "unordered"; 0 without a
        number law, and for data without a mask. Raises ValueError or TypeError for a condition that
        a number law was not built for.
        """
        cond = conditions.as_arrays(cond)
        mask = mask_of(cond)
        if mask is None or self.number_law is None:
            return 0.0
        law = self.number_law
        if isinstance(law, NumberNetwork):
            return number_term(self.number_laws(params, cond, len(mask)), mask, self.order)
        return number_term(law, mask, self.order)

    def number_laws(self, params: Params, cond: Condition | None, size: int) -> NumberLaws:
        """Return the law of the number of points of each of `size` examples, by its condition.

        Their mask has no part in it. Raises ValueError for a model without a number network, and
        ValueError or TypeError for a condition that it was not built for.
        """
        if not isinstance(self.number_law, NumberNetwork):
            raise ValueError(
                "a law for each example needs a NumberNetwork: got number_law="
                f"{type(self.number_law).__name__}"
            )
        found = self.number_law.apply({"params": params["number_law"]}, cond, size)
        return NumberLaws(jnp.asarray(found))

    def number_apart(
        self, params: Params, cond: Condition | None
    ) -> tuple[Params, Float[Array, ""] | float]:
        """Return parameters whose number law has no gradient, and a zero with the gradient for it.

        That is the gradient of the mean of −log p(n|c) in nats, for a loss in bits per dimension:
        in its mean a set of n points weighs 1/n, and the law that makes it least is p(n|c)/n up to
        a constant, not p(n|c). Without a number network it is the same parameters, and 0. Raises
        as `number_term`.
        """
        if not isinstance(self.number_law, NumberNetwork):
            return params, 0.0
        mean = jnp.mean(jnp.asarray(self.number_term(params, cond)))
        held = {**params, "number_law": jax.lax.stop_gradient(params["number_law"])}
        return held, mean - jax.lax.stop_gradient(mean)

    def _default_times(self, key: Key[Array, "..."], n: int) -> Float[Array, " b"]:
        if key.ndim == 0:
            key_times, key_order = jax.random.split(key)
            return jax.random.permutation(key_order, levels.low_discrepancy(key_times, n))
        return jax.vmap(lambda k: levels.uniform(k, 1)[0])(key)

    def sample(
        self,
        params: Params,
        key: Key[Array, "..."],
        shape: tuple[int, ...],
        *,
        num_steps: int | None = None,
        sampler: str | Sampler = "ancestral",
        chain: Chain | None = None,
        cond: Condition | None = None,
        grid: str | Float[Array | np.ndarray, " n"] = "time",
        start: Float[Array, " b *d"] | None = None,
        guidance: float | None = None,
        clip_denoised: bool = False,
        final: str = "mode",
    ) -> Num[Array, " b *d"]:
        """Return data drawn from the model, of the given shape, batch axis first.

        `grid` says which noise levels are passed through: "time", the schedule's at
        num_steps + 1 even times; "lambda", even in λ between its ends; "edm", as EDM spaces
        them (`samplers.grids`); or increasing levels, which need no num_steps. A `chain` of
        `vdm.few_steps` is a grid with its own variances and clipping: it takes the place of
        num_steps and of the grid, for the ancestral sampler. `start` is a
        latent z at the first of the levels, in place of noise. `guidance` and `clip_denoised` are
        those of `denoiser`. Of sets, whose `cond` has a mask (`vdm.sets`), the padding is 0. z_0 is
        turned into data by `final`: the likelihood's "mode", or a "draw" from p(x|z_0), the
        last part of the generative model.
        Raises ValueError for num_steps < 1, missing or superfluous, an unknown sampler, grid
        or final, another sampler or grid with a chain, data without a range to clip to, or keys or
        a start that do not fit the batch.
        """
        if final not in FINALS:
            raise ValueError(unknown("final", final, FINALS))
        if chain is None:
            log_snrs = samplers.grids.on_schedule(grid, self.log_snr(params), num_steps)
        elif isinstance(grid, str) and (sampler, grid, num_steps) == ("ancestral", "time", None):
            log_snrs, sampler = jnp.asarray(chain.log_snrs, float), Ancestral(chain)
            clip_denoised = clip_denoised or chain.clip_denoised
        else:
            raise ValueError(
                "a chain is its own grid, for the ancestral sampler: got "
                f"sampler={sampler!r}, grid={grid!r} and num_steps={num_steps} beside it"
            )
        draws.check_key(key, shape[0] if shape else 0)
        mask = mask_of(conditions.as_arrays(cond))
        if mask is not None:
            check_mask(mask, shape)
        key = keys_for(key, mask)
        eps_fn = self.denoiser(params, cond, guidance=guidance, clip_denoised=clip_denoised)
        z_0 = samplers.sample(key, eps_fn, log_snrs, shape, sampler=sampler, start=start)
        if final == "mode":
            return wiped(self.likelihood.decode(z_0, log_snrs[-1]), mask)
        # The sampler has mixed 0 to len(log_snrs) − 1 into the key.
        drawn = self.likelihood.draw(draws.fold_in(key, len(log_snrs)), z_0, log_snrs[-1])
        return wiped(drawn, mask)

    def codec(
        self,
        params: Params,
        shape: tuple[int, ...],
        *,
        num_steps: int | None = None,
        chain: Chain | None = None,
        guidance: float | None = None,
        clip_denoised: bool = False,
        batch_size: int = 16,
        ramp: int = 8,
        spacing: float = 0.25,
        seed: int = 0,
    ) -> Codec:
        """Return the lossless code of images of this shape, about as long as the bound at T steps.

        T is `num_steps`, on the schedule at even times, or that of a `chain` of `vdm.few_steps`,
        with its own levels, variances and clipping; the lattice of the latents makes
        its length differ a little from the bound. `guidance` and
        `clip_denoised` are those of `denoiser`, the rest is `codec.Codec`'s, and so are the errors.
        Raises ValueError unless there is one of num_steps and chain, and for a chain that does not
        fit the shape.
        """
        if num_steps is not None and chain is None:
            log_snrs = samplers.grids.uniform_in_time(self.log_snr(params), num_steps)
        elif chain is not None and num_steps is None:
            check(chain, shape)
            log_snrs = jnp.asarray(chain.log_snrs)
            clip_denoised = clip_denoised or chain.clip_denoised
        else:
            raise ValueError(
                f"a codec needs num_steps or a chain, and not both: got num_steps={num_steps} and "
                f"{'no chain' if chain is None else f'a chain of {chain.num_steps} steps'}"
            )
        with_v = chain is not None and chain.variance is not None

        def eps_fn(
            params: Params,
            z: Float[Array, " b *d"],
            log_snr: Float[Array, "..."],
            cond: Condition | None,
        ) -> Float[Array, " b *d"]:
            if mask_of(cond) is not None:
                raise ValueError(
                    "a codec is of examples of one shape, which a decoder has to know: got sets "
                    "with a mask (sort them by their number of points, and code each by itself)"
                )
            denoiser = self.denoiser(params, cond, guidance=guidance, clip_denoised=clip_denoised)
            return denoiser(z, log_snr)

        return Codec(
            jax.tree_util.Partial(eps_fn, params),
            log_snrs,
            self.likelihood,
            shape,
            batch_size=batch_size,
            ramp=ramp,
            spacing=spacing,
            seed=seed,
            variance_fn=jax.tree_util.Partial(Chain.v, chain) if with_v else None,
        )

    def log_likelihood(
        self,
        params: Params,
        key: Key[Array, "..."],
        x: Data,
        cond: Condition | None = None,
        *,
        dequantisation: str | None = None,
        num_samples: int = 1,
        divergence: Divergence = "exact",
        steps: Steps = None,
        num_probes: int | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        num_steps: int | None = None,
    ) -> Float[Array, " b"]:
        """Return log p(x) under the probability-flow ODE for every example, in nats.

        For integers it is an estimate of a lower bound of log P(x), tighter with more
        `num_samples`; for real data it is log p(x). This is another model than the bound's:
        the ODE's, without a decoder. `divergence` is "exact", "hutchinson" or
        `ode.hutchinson(num_probes)`; `steps` is None, a number of equal steps or
        `ode.adaptive(rtol, atol)`. Options and errors are those of `log_weights`.
        """
        divergence, steps = of_keywords(divergence, steps, num_probes, rtol, atol, num_steps)
        found = self.log_weights(
            params,
            key,
            x,
            cond,
            dequantisation=dequantisation,
            num_samples=num_samples,
            divergence=divergence,
            steps=steps,
        )
        return importance_weighted(found.log_weights)

    def log_weights(
        self,
        params: Params,
        key: Key[Array, "..."],
        x: Data,
        cond: Condition | None = None,
        *,
        dequantisation: str | None = None,
        num_samples: int = 1,
        divergence: Divergence = "exact",
        steps: Steps = None,
        num_probes: int | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        num_steps: int | None = None,
    ) -> marginal.Draws:
        """Return the log-weights of the draws that `log_likelihood` averages, and their cost.

        Options and errors are those of `marginal.log_weights` and `ode.solve`, the older
        keywords `num_probes`, `rtol`, `atol` and `num_steps` included. With one key per
        example, or one key for all, an example's result does not depend on the others'.
        """
        divergence, steps = of_keywords(divergence, steps, num_probes, rtol, atol, num_steps)
        x = jnp.asarray(x)
        draws.check_key(key, x.shape[0])
        log_snr_fn = self.log_snr(params)

        def one(key: Key[Array, ""], x: Num[Array, "*d"], cond: Condition | None) -> marginal.Draws:
            x, cond = x[None], jax.tree.map(lambda part: part[None], cond)
            mask = mask_of(cond)
            x = filled(x, mask, self.likelihood)
            encoded = self.likelihood.encode(x)
            log_snr_max, log_snr_min = (log_snr_fn(jnp.asarray(t, encoded.dtype)) for t in (0, 1))
            found = marginal.log_weights(
                key[None],
                x,
                self.denoiser(params, cond),
                self.likelihood,
                log_snr_max=log_snr_max,
                log_snr_min=log_snr_min,
                dequantisation=dequantisation,
                num_samples=num_samples,
                divergence=divergence,
                steps=steps,
            )
            if mask is not None:
                share = padding_log_prob(x, mask, self.likelihood, log_snr_max)
                share = share + self.number_term(params, cond)
                found = found._replace(log_weights=found.log_weights - share[None])
            return jax.tree.map(lambda leaf: leaf[:, 0], found)

        if _mask(cond, x) is not None and self.likelihood.levels is not None:
            raise ValueError(
                "the ODE's likelihood of sets is for real numbers: got a mask and a likelihood of "
                f"integers, {self.likelihood}"
            )
        keys = jax.random.split(key, x.shape[0]) if key.ndim == 0 else key
        cond = conditions.as_arrays(cond)
        return jax.vmap(one, out_axes=1)(keys, x, cond)


def _check_steps(
    noise_levels: Array | NoiseLevels | None,
    num_steps: int | Array | None,
    chain: Chain | None,
    all_steps: bool,
) -> None:
    """Raise ValueError for arguments of a bound that exclude each other."""
    if chain is not None and num_steps is not None:
        raise ValueError(
            f"a chain takes the place of num_steps: got num_steps={num_steps} and a chain of "
            f"{chain.num_steps} steps"
        )
    if all_steps and chain is None:
        raise ValueError("all_steps=True needs a chain (few_steps.even has the steps of num_steps)")
    if all_steps and noise_levels is not None:
        raise ValueError("all_steps=True leaves nothing to choose: expected no noise_levels")
    if isinstance(noise_levels, NoiseLevels) and not (num_steps is None and chain is None):
        raise ValueError("a bound with num_steps takes times, not noise levels with a density")


def _noise(
    key: Key[Array, "..."], num: int, x: Float[Array, " b *d"], mask: Mask | None
) -> Float[Array, " num b *d"]:
    """Return several draws of the noise of a batch, each from its own number mixed into the key."""
    # One program for all of them: T may be hundreds.
    return jax.vmap(lambda i: wiped(draws.normal(draws.fold_in(key, i), x.shape, x.dtype), mask))(
        jnp.arange(num)
    )


def _mask(cond: Condition | None, x: Num[Array, " b *d"]) -> Mask | None:
    """Return the mask of a batch of sets, once it is known to fit; None for other data."""
    mask = mask_of(conditions.as_arrays(cond))
    if mask is not None:
        check_mask(mask, x.shape)
    return mask


def _for_all_steps(cond: Condition | None, chain: Chain) -> Condition | None:
    """Return the conditions of examples that are repeated for every step."""
    found: Condition | None = jax.tree.map(
        lambda part: jnp.tile(part, (chain.num_steps, *(1,) * (part.ndim - 1))), cond
    )
    return found


def _precondition(
    apply: EpsFn, z: Float[Array, " b *d"], log_snr: Float[Array, " b"], sigma_data: float
) -> Float[Array, " b *d"]:
    """Return EDM's x̂ from its network F, with ς = σ/α = e^{−λ/2} (Karras et al. 2022, table 1)."""
    level = expand(log_snr, z)
    noise, noised = jnp.exp(-0.5 * level), z / alpha(level)  # ς and x + ς ε
    total = jnp.sqrt(jnp.square(noise) + sigma_data**2)
    c_in, c_out, c_skip = 1.0 / total, noise * sigma_data / total, jnp.square(sigma_data / total)
    return c_skip * noised + c_out * apply(c_in * noised, log_snr)
