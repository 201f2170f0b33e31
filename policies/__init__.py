"""What decides how much a reasoning thread thinks: depth of each token, children, limits.

`Policy(depth=..., spawn=..., select=...)` is what an engine takes; docs/policies.md lists the choices.
"""

from policies.depth import exit_rule
from policies.depth.argmax_stability import ArgmaxStability
from policies.depth.base import Carry, DepthPolicy, DepthView, EntryView, Role
from policies.depth.bounding import Bounding
from policies.depth.by_load import ByLoad
from policies.depth.by_role import ByRole
from policies.depth.cosine import Cosine
from policies.depth.entropy_diff import EntropyDiff
from policies.depth.entropy_switch import EntropySwitch
from policies.depth.even_budget import EvenBudget
from policies.depth.fixed import Fixed
from policies.depth.gate_exit import GateExit
from policies.depth.kl import KL, MinPKL
from policies.depth.latent_diff import LatentDiff
from policies.depth.speculative import Speculative
from policies.limits import Limits
from policies.policy import Policy
from policies.registry import from_builtins, from_json, to_builtins, to_json
from policies.select.base import SelectPolicy
from policies.select.best_of import BestOf
from policies.select.self_consistency import SelfConsistency
from policies.spawn.all_children import AllChildren
from policies.spawn.base import SpawnDecision, SpawnPolicy, SpawnRequest, TreeView
from policies.spawn.by_entropy import ByEntropy
from policies.spawn.by_slack import BySlack
from policies.spawn.load import EngineLoad, TickCosts, TreeLoad
from policies.spawn.max_children import MaxChildren
from policies.spawn.no_children import NoChildren

__all__ = [
    "KL",
    "AllChildren",
    "ArgmaxStability",
    "BestOf",
    "Bounding",
    "ByEntropy",
    "ByLoad",
    "ByRole",
    "BySlack",
    "Carry",
    "Cosine",
    "DepthPolicy",
    "DepthView",
    "EngineLoad",
    "EntropyDiff",
    "EntropySwitch",
    "EntryView",
    "EvenBudget",
    "Fixed",
    "GateExit",
    "LatentDiff",
    "Limits",
    "MaxChildren",
    "MinPKL",
    "NoChildren",
    "Policy",
    "Role",
    "SelectPolicy",
    "SelfConsistency",
    "SpawnDecision",
    "SpawnPolicy",
    "SpawnRequest",
    "Speculative",
    "TickCosts",
    "TreeLoad",
    "TreeView",
    "exit_rule",
    "from_builtins",
    "from_json",
    "to_builtins",
    "to_json",
]
