"""Parts of scripts/research/request_cost.py."""
