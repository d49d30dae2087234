"""Plays questions with trained agents and with every baseline, and measures the difference.

`runner.py` plays, `stats.py` compares, `route_log.py` writes and reads routes. May import
everything but `report`, the two commands and `scripts`.
"""
