"""The configuration: one tree of typed settings for each kind of recipe.

A recipe is a YAML file whose `kind` names its tree: `pretrain` a teacher, `distill` it into a one-step generator, or
`tune` the settings of a distillation. Unknown keys are refused, every field has a description and a range, and lengths
are counted in images, as in the papers.
"""

# ruff: noqa: F401 (the imports are what this module exports)

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
