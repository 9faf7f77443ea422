"""Models of a dozen attentions, written once for both kinds of graph, in which faults can be planted."""
