"""Everything a TorchServe worker runs. See the tree's README for the layout."""
