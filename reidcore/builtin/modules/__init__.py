"""The modules behind the built-in parts: plain arguments, usable without a recipe."""
