"""Image files -> pixels -> what the network takes."""
