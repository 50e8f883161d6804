"""The errors that a replica raises. This file imports nothing: a front has no PyTorch."""


class ReplicaGoneError(RuntimeError):
    """This replica answers no more; another one can."""


class AnswerError(RuntimeError):
    """The model raised an error of this class for one request of several. Another replica would, too."""
