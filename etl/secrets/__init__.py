"""Secrets: how they are masked, where API keys come from, how read tokens are encrypted."""
