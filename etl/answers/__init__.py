"""Pure: decode, normalize and compress what the API said."""
