"""Helper package of the LSTM course lab; every module is imported on its own."""

__version__ = "0.1.0"
