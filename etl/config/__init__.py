"""The settings: their types and defaults, and how they are loaded and checked."""
