"""How many nodes a pool should have: observations in, decisions out."""
