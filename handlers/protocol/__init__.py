"""What speaks to TorchServe and its clients: rows in, requests; answers, rows out. Knows no model and no torch."""
