"""What only training needs: environments stepped together for Tianshou, and its PPO.

Whoever loads an agent to act does not import this room. May import everything up to the agent.
"""
