"""Layers whose output is the solution of a differential equation."""
