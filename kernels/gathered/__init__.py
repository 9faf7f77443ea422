"""Attention of a few queries to many keys, which many programs share: ``torch.ops.rewriter.gathered``."""
