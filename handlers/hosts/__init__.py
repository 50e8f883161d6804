"""What runs the handlers without TorchServe. The other rooms know nothing of it.

    contents        what an archive says of itself: its files with their digests, its name, its kind
    unpacking       a .mar -> a private folder, every file checked
    code_versions   whether the archive was made with the handlers that run here
    loading         load_archive: an archive -> a Model
    model           predict for Python values, answer for HTTP requests; one batch at a time
    python_values   Python values -> what the protocols' adapters would have read
    messages        HTTP requests and responses, and which model a path asks
    rows            an HTTP request -> the row that TorchServe's front end would have made of it
    futures         the results of a batch -> the futures of those who wait
    async_model     the same model for asyncio, with dynamic batching

Every host (Ray Serve, Triton, KServe, a script) goes through these, so an answer does not depend on the host.
Importing this package imports nothing heavy: archive/ reads contents.py, too.
"""
