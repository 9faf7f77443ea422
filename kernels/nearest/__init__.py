"""Which token of another set is nearest to each of one, without all pairs: ``torch.ops.rewriter.nearest``."""
