"""Measures, reports and pictures of what a network answers."""
