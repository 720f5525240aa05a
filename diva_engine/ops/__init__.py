"""The engine's operations on tensors, each on CPU and CUDA, compiled from csrc/.

Every file here holds one op, in the same order: the public call, its definition in plain torch (`<op>_reference`), what
it looks like to torch.compile, its gradient.
"""

from diva_engine.ops.diva_advantage import DivaAdvantage, diva_advantage
from diva_engine.ops.group_stats import GroupStats, group_stats
from diva_engine.ops.histogram_entropy import histogram_entropy
from diva_engine.ops.image_batch import ImageBatch, pack_images
from diva_engine.ops.perturb_images import perturb_images, perturb_packed
from diva_engine.ops.perturbation_plan import PerturbationPlan, plan_perturbations
from diva_engine.ops.policy_loss import PolicyLoss, PolicyLossMetrics, policy_loss
from diva_engine.ops.shared_std_advantage import shared_std_advantage
from diva_engine.ops.spectral_entropy import spectral_entropy
from diva_engine.ops.token_logprob import TokenLogprob, token_logprob
from diva_engine.ops.update_difficulty import update_difficulty

__all__ = [
    "DivaAdvantage",
    "GroupStats",
    "ImageBatch",
    "PerturbationPlan",
    "PolicyLoss",
    "PolicyLossMetrics",
    "TokenLogprob",
    "diva_advantage",
    "group_stats",
    "histogram_entropy",
    "pack_images",
    "perturb_images",
    "perturb_packed",
    "plan_perturbations",
    "policy_loss",
    "shared_std_advantage",
    "spectral_entropy",
    "token_logprob",
    "update_difficulty",
]
