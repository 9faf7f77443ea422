"""Gated attention: each head's result is multiplied by a gate that its query opens or closes."""
