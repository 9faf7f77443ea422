"""What a graph's readers read of each value, and the same graph that computes no more than that."""
