"""Objectives: pure functions from log-ratios, advantages, mask and groups to weights.

Every policy gradient on a batch is sum_t w_t grad log pi_t, and an objective is the choice of w.
The weight carries no gradient; the trainer turns weights into a gradient in one place.
No models, no trainers, no logging here.
"""

from topr.objectives.base import (
    NEGLIGIBLE,
    BaselineRole,
    Normalization,
    Objective,
    ScoredBatch,
    Uses,
    Whole,
    largest_weight,
    log_rho,
    sequence_scale,
    taper_of,
    token_mean,
)
from topr.objectives.baseline import (
    GOOD_SHARES,
    baseline_for_share,
    effective_positive_share,
    resolve_baseline,
    share_advice,
)
from topr.objectives.clipped import GMPO, GSPO, PPO
from topr.objectives.preference import APO, DPO, NFT
from topr.objectives.registry import OBJECTIVES, make_objective
from topr.objectives.regression import DRO, OAPL, QRPO, MirrorDescent
from topr.objectives.relative import AsymRE
from topr.objectives.soft import SAPO, VESPO
from topr.objectives.taper import Taper
from topr.objectives.truncated import CISPO, DISPO, DPPO, M2PO

__all__ = [
    "APO",
    "CISPO",
    "DISPO",
    "DPO",
    "DPPO",
    "DRO",
    "GMPO",
    "GOOD_SHARES",
    "GSPO",
    "M2PO",
    "NEGLIGIBLE",
    "NFT",
    "OAPL",
    "OBJECTIVES",
    "PPO",
    "QRPO",
    "SAPO",
    "VESPO",
    "AsymRE",
    "BaselineRole",
    "MirrorDescent",
    "Normalization",
    "Objective",
    "ScoredBatch",
    "Taper",
    "Uses",
    "Whole",
    "baseline_for_share",
    "effective_positive_share",
    "largest_weight",
    "log_rho",
    "make_objective",
    "resolve_baseline",
    "sequence_scale",
    "share_advice",
    "taper_of",
    "token_mean",
]
