"""diva_engine: reinforcement-learning post-training of vision-language models at the difficulty the model needs."""

__version__ = "0.1.0"
