"""Ways of fitting equations to data that go around one long solve."""
