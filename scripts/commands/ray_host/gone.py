"""The errors that a replica raises. This file imports nothing: a front has no PyTorch."""


class ReplicaGoneError(RuntimeError):
    """This replica answers no more; another one can."""


class AnswerError(RuntimeError):
    """The model raised an error of this class for one request of several. Another replica would, too."""


class NotLoadedError(RuntimeError):
    """The request's model is not loaded; another replica is not asked.

    Args:
        status: of the answer.
        kind: of the error, as clients read it.
        message: what is known; it holds nothing that a client has sent.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(status, kind, message)  # pickle makes a copy of these
        self.status, self.kind, self.message = int(status), kind, message
