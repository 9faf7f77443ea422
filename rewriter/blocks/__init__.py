"""Gates and fusion blocks: subgraphs that weigh feature maps by what is computed of them."""
