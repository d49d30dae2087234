"""The roles that a report looks for. A policy is found by its role, never by its name."""

from __future__ import annotations

RIVAL_KINDS = ("static", "random", "cascade", "learned", "ensemble")  # what the agent has to beat
ANCHOR_ROLES = ("best_single", "random", "cascade", "full_information")
# Every other policy is compared with the anchors.
ORACLE_ROLES = {  # entry of results.json's `oracle` -> role
    "oracle_stop": "der_oracle",
    "optimum": "optimum",
    "full_information": "full_information",
    "full_information_oracle_stop": "full_information_oracle",
    "best_of_all": "oracle_pick",
}
# They ask one expert and never read its answer
ONE_SHOT_ROLES = (
    "single",
    "best_single",
    "best_single_return",
    "task_lookup",
    "knn_router",
    "logistic_router",
)
# The rules that a report of several alphas holds beside the agent, one by one
YARDSTICK_ROLES = (
    "best_single_return",
    "task_lookup",
    "knn_router",
    "logistic_router",
    "agreement_cascade",
    "threshold_cascade",
    "learned_stop",
    "cascade_routing",
    "plan",
)


# Of a policy whose name changes from alpha to alpha; the others are called as their roles
ROLE_NAMES = {
    "best_single": "best fixed expert in quality",
    "best_single_return": "best fixed expert in return",
}


def is_deployable(role: str, kind: str) -> bool:
    """Whether a user could run this policy: it sees no reference and no outcome of other routes."""
    return kind != "oracle" and role != "full_information"
