"""What an answer is worth. `build_reward` in reward.py makes the function that the trainer calls."""
