"""unbraid: post-training for tool-using language models that think only when it pays."""

__version__ = "0.1.0"
