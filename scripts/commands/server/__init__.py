"""A TorchServe on this machine: start it, ask it, manage it, stop it. Commands and end-to-end tests use this.

process.py starts and stops one; client.py asks and manages a running one; options.py reads from the command line
which one is meant. The other files serve these three: config.py (config.properties), ports.py, java.py, tokens.py,
http.py, logs.py (why a worker does not start), errors.py, paths.py.
"""
