"""What an agent knows on a route, and what it expects: estimates that answers are right.

`features.py` counts, `outcome_model.py` estimates, `state.py` puts estimates and agreement
together, `planner.py` decides by fitted dynamic programming, `guard.py` lets a fixed order
(`order.py`, `stopping.py`) stand for the plan, `budget.py` finds what is spent at which weight of
cost. Works on arrays over questions and experts; knows neither pool nor environment. May import
config, runtime, questions and metrics.
"""
