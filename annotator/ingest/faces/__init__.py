"""Faces in photos: where they are (detectors), how well they can be read (quality)."""
