"""An archive behind KServe's own model server, without TorchServe. See docs/kserve-triton.md.

    server         the command: loads archives, starts KServe's ModelServer
    command_line   its options, and what is refused before a model loads
    archive_model  one archive as KServe's Model: readiness, metadata, batches
    routes         HTTP requests reach the archive's protocol adapters as they came
    figures        figures of batches, for KServe's /metrics

Not in handlers/: every archive carries those, and no archive needs KServe.
"""
