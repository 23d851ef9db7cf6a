"""Commands as users have them."""
