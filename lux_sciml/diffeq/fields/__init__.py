"""Vector fields with structure."""
