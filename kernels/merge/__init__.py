"""Token merging: similar tokens become one, which counts as often as there were tokens."""
