"""Every error a user can correct. A command ends with its message and no traceback."""

from __future__ import annotations


class DERError(Exception):
    """An error a user can correct; commands end with its message and no traceback."""


class ConfigError(DERError):
    """A configuration that cannot be used; the message says what to change."""


class DataError(DERError):
    """A question source that cannot be used; the message names file and line."""


class ReferenceSealedError(RuntimeError):
    """Something that must decide without the reference answer asked for it."""


class PromptError(DERError):
    """A prompt format that cannot be used."""


class MetricError(DERError):
    """A metric that does not exist or cannot judge what it was given."""


class ExpertError(DERError):
    """An expert that cannot be loaded or asked; the message names it and says what to do."""


class BudgetError(DERError):
    """The run has generated as many answers as it was allowed to."""


class StoreError(DERError):
    """A store that cannot be used; the message says how to go on."""


class AgentError(DERError):
    """An agent or encoder that cannot be used; the message says what to do."""


class RankerError(DERError):
    """A ranker that cannot be used; the message says why."""


class RunError(DERError):
    """A run folder that cannot be used; the message says why."""


class GuaranteeError(DERError):
    """A promise that the calibration questions do not support; the message says how many would."""


class ReportError(DERError):
    """Route logs or results that cannot be reported; the message says why."""


class NotRunError(DERError):
    """Why something was not run: one reason per argument."""


class BoundsError(DERError):
    """The pool is not the test bed it claims to be."""
