"""The one error that a replica raises. Its file imports nothing: a front has no PyTorch."""


class ReplicaGoneError(RuntimeError):
    """This replica answers no more; another one can."""
