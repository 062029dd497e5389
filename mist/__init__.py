"""MIST: which deployment serves an LLM pipeline for the most tokens per dollar while the SLOs hold?"""

__version__ = "0.1.0"
