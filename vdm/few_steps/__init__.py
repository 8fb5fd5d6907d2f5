"""Few steps: the bound, the sampler and the code of a chain that was fitted after training.

A chain is taken in place of num_steps by `VDM.vlb`, `VDM.sample` and `VDM.codec`. `chain` makes
the best one for training data; `fit` and `place` are its two halves, for chains of many lengths.
"""

from vdm.few_steps.bound import all_steps, diffusion_loss, log_weights, step_kl
from vdm.few_steps.chain import VARIANCES, Chain, Head, Table, check
from vdm.few_steps.error import Moments, moments
from vdm.few_steps.fitting import Fitted, chain, even, fit, fit_head, place, tables
from vdm.few_steps.head import VarianceHead, head_loss
from vdm.few_steps.placement import best_steps, cost_matrix, step_costs
from vdm.few_steps.sampler import Ancestral

__all__ = [
    "VARIANCES",
    "Ancestral",
    "Chain",
    "Fitted",
    "Head",
    "Moments",
    "Table",
    "VarianceHead",
    "all_steps",
    "best_steps",
    "chain",
    "check",
    "cost_matrix",
    "diffusion_loss",
    "even",
    "fit",
    "fit_head",
    "head_loss",
    "log_weights",
    "moments",
    "place",
    "step_costs",
    "step_kl",
    "tables",
]
