"""Makes model archives from checkpoints. Nothing here runs in a worker.

What `scripts/package text-encoder --weights SOURCE` goes through:

    command_line      arguments -> typed options (options.py; presets.py has the presets' defaults)
    fingerprint       whether the archive is up to date already
    resolve           options and checkpoint -> the model to package (models.py); checkpoints/ reads the checkpoint
    package           model -> NAME.mar:
      models            writes its files (random_weights, tensorrt_files, onnx_export make some of them)
      trial_run         loads the archive in a fresh process and runs samples through it
      parity            compares the outputs with the checkpoint's in fp32 (reference_pixels prepares its images)
      carried_samples   adds a few samples with their fp32 outputs, with which workers check their engines

`show` and `verify` are in inspection.py; signatures are in signing/, their part of the command line is in
signing_command_line.py. Imports go one way; tests/archive/test_imports.py holds the order.
"""
