"""Everything that makes a model archive. Nothing here runs in a worker."""
