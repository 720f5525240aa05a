"""Every setting of a run: its name, type, default, meaning and range. settings.py reads and checks them.

Names follow EasyR1 where EasyR1 has the setting.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from diva_engine.config.algorithm import (
    AdvantageConfig,
    AlgorithmConfig,
    DapoConfig,
    DifficultyConfig,
    DurianConfig,
    HintConfig,
    HintGrpoConfig,
    RescueConfig,
    VariantsConfig,
)
from diva_engine.config.data import DataConfig
from diva_engine.config.trainer import TrainerConfig
from diva_engine.config.worker import (
    ActorConfig,
    FsdpConfig,
    LoraConfig,
    ModelConfig,
    OffloadConfig,
    OptimConfig,
    RewardConfig,
    RolloutConfig,
    WorkerConfig,
)

__all__ = [
    "ActorConfig",
    "AdvantageConfig",
    "AlgorithmConfig",
    "Config",
    "DapoConfig",
    "DataConfig",
    "DifficultyConfig",
    "DurianConfig",
    "FsdpConfig",
    "HintConfig",
    "HintGrpoConfig",
    "LoraConfig",
    "ModelConfig",
    "OffloadConfig",
    "OptimConfig",
    "RescueConfig",
    "RewardConfig",
    "RolloutConfig",
    "TrainerConfig",
    "VariantsConfig",
    "WorkerConfig",
]


@dataclass(frozen=True)
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    difficulty: DifficultyConfig = field(default_factory=DifficultyConfig)
    variants: VariantsConfig = field(default_factory=VariantsConfig)
    hint: HintConfig = field(default_factory=HintConfig)
    dapo: DapoConfig = field(default_factory=DapoConfig)
    durian: DurianConfig = field(default_factory=DurianConfig)
    hint_grpo: HintGrpoConfig = field(default_factory=HintGrpoConfig)
    rescue: RescueConfig = field(default_factory=RescueConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
