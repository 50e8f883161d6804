"""What commands report to a person, without a traceback."""


class ServerError(RuntimeError):
    """TorchServe did not do what was asked. The message gives the reason, and the path of the log if that helps."""


class NotReadyError(ServerError):
    """Workers that were asked for are not ready. TorchServe may go on starting them."""
