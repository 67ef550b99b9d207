"""tokenmill: raw images, video and text in, an Emu3-style next-token model out."""

__version__ = "0.1.0"
