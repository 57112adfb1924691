"""What can go wrong, and whose fault it is.

    AxpoError
    ├── UserError               what the user wrote is wrong; the command line prints it and exits with code 2
    │   ├── ConfigError         a configuration file, an override or an option
    │   ├── DataError           a row of a data set, an image, a conversation
    │   ├── CheckpointError     a model path, a tokenizer, a template, a saved run
    │   └── MissingExtraError   an optional package is not installed
    ├── RecordError             a record (see `axpo.types`) that breaks its own invariant
    ├── RolloutFault            a fault of ours during a rollout: retried, else dropped and counted
    │   ├── EngineFault         the inference engine failed or did not answer in time
    │   └── ToolFault           the machinery around a tool failed (not the model's arguments)
    ├── QuotaError              a paid or rationed service is used up; the run stops and can be resumed
    ├── ToolError               how a tool tells the rollout loop that the *model* made a mistake; it reads the message
    ├── RewardError             a reward function did not return in time
    ├── StorageError            a file cannot be written: the disk is full, or writing is not allowed
    ├── NonFiniteError          a loss or a gradient of training is NaN or infinite
    ├── WeightSyncError         the engine does not run the weights it was given
    └── AlarmError              an alarm of `train.stop_on`: the command line exits with code 4

A message names the object, the rule, what came and what to do. A mistake of the *model* (malformed call, bad
arguments) never ends a rollout: the loop turns a `ToolError` into a value, see `axpo.types.ToolFailure`.
"""


class AxpoError(Exception):
    """Base class of everything this package raises on purpose."""


class UserError(AxpoError, ValueError):
    """Something the user wrote has to change."""


class ConfigError(UserError):
    """A configuration file, an override or an option is wrong."""


class DataError(UserError):
    """A data row, an image or a conversation is wrong."""


class CheckpointError(UserError):
    """A model path, a tokenizer, a chat template or a saved run cannot be used."""


class MissingExtraError(UserError, ImportError):
    """An optional package is needed: the message carries the `pip install` line."""


class RecordError(AxpoError, ValueError):
    """A record was built from parts that contradict each other."""


class RolloutFault(AxpoError, RuntimeError):
    """A fault of ours: it never costs the policy reward and never triggers resampling."""


class EngineFault(RolloutFault):
    """The inference engine failed or did not answer in time."""


class ToolFault(RolloutFault):
    """The machinery around a tool failed; the model is not to blame.

    `can_retry`: calling the tool once more with the same arguments may help; False when something that belongs to the
    rollout is lost, so that only a new rollout can help.
    """

    def __init__(self, message: str, *, can_retry: bool = True) -> None:
        super().__init__(message)
        self.can_retry = can_retry


class QuotaError(AxpoError, RuntimeError):
    """A paid or rationed service (requests of a search backend, say) is used up: trying again costs more or is in vain.

    It ends the run with a clear message; `--resume` goes on once there is more.
    """


class RewardError(AxpoError, RuntimeError):
    """A reward function did not return in time. Without a verdict a text is neither right nor wrong."""


class StorageError(AxpoError, OSError):
    """A file cannot be written: the disk is full, or writing is not allowed. The run can be resumed afterwards."""


class ToolError(AxpoError):
    """Raised by a tool for a mistake of the model. `kind` is an `axpo.types.FailureKind`; the model reads `message`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class NonFiniteError(AxpoError, ArithmeticError):
    """A loss or a gradient is NaN or infinite; going on would destroy the weights."""


class WeightSyncError(AxpoError, RuntimeError):
    """After a weight update the engine's log-probabilities do not agree with the trainer's.

    `gap`: by how much, in nats per token of the probe; None when something else gave it away.
    """

    def __init__(self, message: str, *, gap: float | None = None) -> None:
        super().__init__(message)
        self.gap = gap


class AlarmError(AxpoError, RuntimeError):
    """An alarm that `train.stop_on` makes fatal was raised: the run has saved a checkpoint and can be resumed."""
