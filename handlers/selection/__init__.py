"""Which engine serves: candidates are compared with fp32, and timed, on the device that serves."""
