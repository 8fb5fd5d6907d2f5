"""What a compiled program takes of its devices, which need not be there."""
