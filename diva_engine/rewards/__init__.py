"""What an answer is worth. `build_reward` makes the function that the trainer calls."""

from diva_engine.rewards.reward import build_reward

__all__ = ["build_reward"]
