"""Commands beside training and evaluation. `support/` holds what they share."""
