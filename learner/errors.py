"""The errors of the learner, as one tree.

LearnerError
├── InputError           a value given by a person or a file is wrong (exit code 2); also a ValueError
├── CheckpointError      a checkpoint or weight file is missing, refused, or does not fit
├── PixelsMissingError   a row has no pixels in the cache
└── DivergedError        the loss is not finite
"""


class LearnerError(Exception):
    """Base of every error that the learner raises on purpose."""


class InputError(LearnerError, ValueError):
    """A value given by a person or read from a file is wrong; the message names the value and the remedy."""


class CheckpointError(LearnerError):
    """A checkpoint or weight file is missing, refused, or does not fit the model."""


class PixelsMissingError(LearnerError):
    """A row that has no pixels in the cache."""


class DivergedError(LearnerError):
    """The loss is not finite; the message names the terms that are not."""
