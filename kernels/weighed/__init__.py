"""Several maps weighed by a softmax over them, in one pass: ``torch.ops.rewriter.weighed``."""
