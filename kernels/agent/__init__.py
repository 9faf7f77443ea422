"""Agent attention: a few agents gather values from all keys, and every query asks the agents."""
