"""Damaged and hostile inputs, made from a seed and given to commands in a process of their own."""
