"""The click commands, one module a noun; each parses, calls one function and prints."""
