"""Flow attention: keys compete for what flows, queries are allocated what arrives."""
