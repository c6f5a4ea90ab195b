"""How solves are differentiated."""
