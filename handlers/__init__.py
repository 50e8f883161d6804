"""Everything a TorchServe worker runs. See the tree's README for the layout."""

# How transformers may read a folder: nothing is fetched, and code that a checkpoint brings with it is never run.
LOCAL = {"local_files_only": True, "trust_remote_code": False}
