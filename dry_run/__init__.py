"""`--dry_run`: what a run would ask for and cost, and what it still lacks. Loads no weights and
needs no network.

May import the pool and everything below it, and `rollout`.
"""
