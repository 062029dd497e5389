"""Measuring the user's own machine: operators, retrieval; and looking at what was measured."""
