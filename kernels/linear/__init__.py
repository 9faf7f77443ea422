"""Linear attention: features of queries and keys in place of the softmax, so that no score is computed."""
