"""What diffrax's solvers lack."""
