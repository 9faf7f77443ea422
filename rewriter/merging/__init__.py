"""Tokens that stay merged from one attention to the next, through a whole program."""
