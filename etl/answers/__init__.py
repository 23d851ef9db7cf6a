"""Pure: decode, normalize and compress the API's answers."""
