"""An archive as a model repository of NVIDIA Triton, without TorchServe. See docs/kserve-triton.md.

    export          the command: an archive -> a model repository
    config          the models' config.pbtxt
    model           runs inside Triton's Python backend; a copy lies in the repository
    binary_tensors  beside it: tensors of Triton <-> a request of the protocol v2 that the archive's handlers read
    wheel_server    starts the server in the wheel of nvidia-pytriton, for tests and for a look on one machine

Not in handlers/: every archive carries those, and no archive needs Triton.
"""
