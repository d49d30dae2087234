"""From the route log to results.json, tables, figures and the report page.

Reads what was played and never plays. May import config, runtime, questions and `evaluation`'s
statistics and route log.
"""
