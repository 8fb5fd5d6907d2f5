"""From a config to a model: names become constructors, and every mistake is found here.

Nothing in this module computes anything, but for a user's own schedule: shapes are traced, not
evaluated, so a config that does not fit its data is an error before the first compilation.
"""

import flax.linen as nn
import numpy as np

from vdm.likelihoods import Likelihood
from vdm.model import VDM
from vdm.networks import NumberNetwork
from vdm.networks.applied import Applied
from vdm.run.config import Config, fields, own
from vdm.run.config.blocks import construct, parameters
from vdm.run.config.own import find
from vdm.run.config.words import LIKELIHOODS, NETWORKS, SCHEDULES
from vdm.run.errors import UserError
from vdm.run.training import number_law, objective, optim, own_parts
from vdm.run.training.checks import check_clip, check_dropped, check_sampling, check_unconditional
from vdm.run.training.objective import for_evaluation
from vdm.run.training.step import Trainer
from vdm.schedules import Schedule


def model(config: Config) -> VDM:
    """Return the model that a config describes; raises UserError for a bad name or argument."""
    parts = config.model
    fields.check(parts, "model.")
    schedule = construct("model.schedule", parts.schedule, SCHEDULES)
    own_parts.check_kind("model.schedule", parts.schedule["name"], schedule, Schedule)
    if own.is_own(parts.schedule["name"]):
        own_parts.check_schedule(parts.schedule["name"], schedule)
    if schedule.log_snr_max <= 0:
        raise UserError(
            f"model.schedule.log_snr_max must be positive: got {schedule.log_snr_max}; at the "
            "clean end there would be more noise than data"
        )
    # The network sees the noise level on the scale of the schedule's range.
    ends = {"log_snr_max": schedule.log_snr_max, "log_snr_min": schedule.log_snr_min}
    taken = parameters(find("model.network", parts.network["name"], NETWORKS))
    ends = {name: end for name, end in ends.items() if name in taken}
    network = construct("model.network", {**ends, **parts.network}, NETWORKS)
    own_parts.check_kind("model.network", parts.network["name"], network, (nn.Module, Applied))
    likelihood = construct("model.likelihood", parts.likelihood, LIKELIHOODS)
    own_parts.check_kind("model.likelihood", parts.likelihood["name"], likelihood, Likelihood)
    law = number_law.build(parts.number_law, network)
    vdm = VDM(schedule, network, likelihood, parts.prediction, parts.sigma_data, law, parts.order)
    # Checked now: otherwise only `vdm sample` or `vdm evaluate` would find the error.
    check_sampling(vdm, config.sample)
    check_clip(vdm, config.evaluate.clip_denoised)
    check_unconditional(vdm, config.evaluate.unconditional)
    return vdm


def trainer(config: Config) -> Trainer:
    """Return the parts of a training step; raises UserError for parts that do not fit."""
    fields.check(config.evaluate, "evaluate.")
    vdm = model(config)
    check_dropped(vdm.network, config)
    counts = isinstance(vdm.number_law, NumberNetwork)
    optimizer = optim.build(config.optimizer, config.train.num_steps, number_network=counts)
    aim = objective.build(config.objective, vdm)
    for_evaluation(config.evaluate.law, aim.law)  # checked now, as above
    return Trainer(vdm, optimizer, aim, config)


def blank(vdm: VDM, shape: tuple[int, ...]) -> np.ndarray:
    """Return one example of zeros with the model's kind of number, for its shape."""
    return np.zeros((1, *shape), np.float32 if vdm.likelihood.levels is None else np.int32)
