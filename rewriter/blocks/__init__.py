"""Gates and fusion blocks: subgraphs that weigh feature maps by what is computed of them."""

from rewriter.blocks.block import KINDS, Block, NearMiss
from rewriter.blocks.find import blocks

__all__ = ["KINDS", "Block", "NearMiss", "blocks"]
