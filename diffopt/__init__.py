"""diffopt: declarative recipes that make diffusion models small and fast, with the evidence."""

__version__ = "0.1.0"
