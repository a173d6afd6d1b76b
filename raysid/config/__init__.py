"""The configuration: one tree of typed settings for each kind of recipe.

A recipe's `kind` names its tree. Unknown keys are refused, and lengths are counted in images, as in the papers.

    pretrain.py, distill.py, tune.py              the three trees, and settings that only one of them has
    data.py, networks.py, teacher.py, method.py   sections: real images, networks, the teacher, the loss
    training.py, compute.py                       sections: training loops, hardware
    settings.py                                   the base class, value ranges, and marks of fields
    fields.py                                     all fields by dotted name, for the command line and messages

To add a setting, add a field with a range, a description and, if its section's does not fit, a mark to its section.
Conflicts between settings go into the section's `problems`. Commands take the field as an option without further code.
To add a section, write its class in the file of its subject, and add a field to each tree that has it.
"""

# ruff: noqa: F401 (the imports are what this module exports)

from __future__ import annotations

from raysid.config.compute import ColocatedSettings, ComputeSettings, ResourceSettings, RoleResources
from raysid.config.data import DataConfig, DataSettings
from raysid.config.distill import Config
from raysid.config.method import AdversarialSettings, GuidanceSettings, MethodSettings
from raysid.config.pretrain import PretrainConfig
from raysid.config.prompts import PromptConfig, PromptSettings
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
    RunFailureSettings,
    RunSettings,
    TrackingSettings,
)
from raysid.config.tune import SearchDimension, SearchScheduler, TuneConfig

AnyConfig = PretrainConfig | Config | TuneConfig
