"""What the controller answers to: one file for each noun, each method a translation of its message into a command."""
