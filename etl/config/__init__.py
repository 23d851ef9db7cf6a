"""The settings: what they are, and how they are loaded and checked."""
