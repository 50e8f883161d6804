"""What scripts/deployment/per-gpu is made of: which server gets what, nginx's text, and the processes."""
