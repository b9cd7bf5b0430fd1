"""Helpers that every part needs. Imports nothing else of ours."""
