"""The configuration: one tree of typed settings for each kind of recipe.

A recipe is a YAML file whose `kind` names its tree: `pretrain` a teacher, `distill` it into a one-step generator, or
`tune` the settings of a distillation. Unknown keys are refused, every field has a description and a range, and lengths
are counted in images, as in the papers.
"""

from __future__ import annotations

from raysid.config.compute import ColocatedSettings, ComputeSettings, ResourceSettings, RoleResources
from raysid.config.data import DataConfig, DataSettings
from raysid.config.distill import Config
from raysid.config.method import AdversarialSettings, GuidanceSettings, MethodSettings
from raysid.config.pretrain import PretrainConfig
from raysid.config.settings import Settings, fixed_settings
from raysid.config.teacher import TeacherAutoscaling, TeacherCompute, TeacherSettings
from raysid.config.training import (
    CheckpointSettings,
    EMASettings,
    EvaluationSettings,
    FailureSettings,
    FakeScoreSettings,
    GeneratorSettings,
    LearnerSettings,
    LearningRateSchedule,
    RunCheckpointSettings,
    RunSettings,
    TrackingSettings,
)
from raysid.config.tune import SearchDimension, SearchScheduler, TuneConfig

AnyConfig = PretrainConfig | Config | TuneConfig

__all__ = [
    "AdversarialSettings",
    "AnyConfig",
    "CheckpointSettings",
    "ColocatedSettings",
    "ComputeSettings",
    "Config",
    "DataConfig",
    "DataSettings",
    "EMASettings",
    "EvaluationSettings",
    "FailureSettings",
    "FakeScoreSettings",
    "GeneratorSettings",
    "GuidanceSettings",
    "LearnerSettings",
    "LearningRateSchedule",
    "MethodSettings",
    "PretrainConfig",
    "ResourceSettings",
    "RoleResources",
    "RunCheckpointSettings",
    "RunSettings",
    "SearchDimension",
    "SearchScheduler",
    "Settings",
    "TeacherAutoscaling",
    "TeacherCompute",
    "TeacherSettings",
    "TrackingSettings",
    "TuneConfig",
    "fixed_settings",
]
